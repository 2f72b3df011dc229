"""The gateway page: widgets ordered by their value, items ordered in each, no item twice on a page.

A page is one root request on surface `widgets` and, for every widget shown, a child request on surface `gateway` whose
`parent_request_id` is the root. Children are retrieved and scored in one batch; their lists are made in the order shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from serve_app.batch import Batch
from serve_app.ids import decision_id_text
from serve_app.ingress.answers import chosen, degraded_names, envelope, explained, ranked_items
from serve_app.ingress.asks import Ask, child_batch
from serve_app.ingress.recommend import Lists, ListsOptions, Recommender, Shelves
from serve_app.noise import hash_key, salt_of
from serve_app.serving.given import given_widgets
from serve_app.serving.library import Pins
from serve_app.vocabulary import Surface

__all__ = ["PageAsk", "Pages", "child_request_ids"]

_CHILD_SALT = salt_of("child request of a page")


@dataclass(slots=True)
class PageAsk:
    """One page: the root request (its slots: how many widgets), and how many items in each widget."""

    root: Ask
    items: int


def child_request_ids(root_id: int, widgets: int) -> list[int]:
    """The request ids of a page's widgets, in the order shown."""
    ids: list[int] = hash_key(_CHILD_SALT, np.uint64(root_id), np.arange(widgets, dtype=np.uint64)).tolist()
    return ids


class Pages:
    """Makes pages for micro-batches."""

    def __init__(self, recommender: Recommender) -> None:
        self._recommender = recommender

    async def pages(self, asks: Sequence[PageAsk], options: ListsOptions, quality: float = 1.0) -> list[dict[str, Any]]:
        """One answer per ask. quality: share of the policy's width to fill widgets from; see request_batch."""
        recommender, roots = self._recommender, [ask.root for ask in asks]
        edition, known = await recommender.admit(roots, options)
        pins = Pins(options.release, options.policy, edition.view.seq)
        batch = recommender.requests(roots, edition, known)
        given = given_widgets(batch, edition.release.catalogue, edition.view.overlay, [None] * len(asks))
        asked: list[tuple[list[Ask], list[int]]] = []

        def fill(page: Lists) -> tuple[Batch, Shelves] | None:
            children, owners, widgets = _children(asks, page)
            asked[:] = [(children, owners)]
            if not children:
                return None
            kinds = page.edition.release.catalogue.widget_kinds
            shelves = Shelves(np.array(widgets, np.int32), [kinds[widget] for widget in widgets], np.array(owners, np.int32))
            return child_batch(batch, owners, children, edition, quality=quality), shelves

        most = sum(given.requests["slots"].tolist())
        page, filled = await recommender.page(given, pins, edition, options, fill, most)
        ((children, owners),) = asked
        answers = []
        for row, ask in enumerate(asks):
            own = [at for at, owner in enumerate(owners) if owner == row]
            answers.append(self._answer(ask, row, page, filled, own, [children[at] for at in own]))
        return answers

    @staticmethod
    def _answer(
        ask: PageAsk, row: int, page: Lists, filled: Lists | None, own: Sequence[int], children: Sequence[Ask]
    ) -> dict[str, Any]:
        rows = page.edition.release.catalogue
        answer = envelope(page, row, ask.root)
        root_id = int(page.batch.requests["request_id"][row])
        answer["widgets"] = []
        degraded = int(page.batch.requests["degraded"][row])
        shown_widgets = page.batch.candidates["widget"][chosen(page.batch, row)].tolist() if own else ()
        for place, (at, child, widget) in enumerate(zip(own, children, shown_widgets, strict=True)):
            assert filled is not None
            shown = {
                "id": rows.widget_ids[widget],
                "slot": place,
                "decision_id": decision_id_text(ask.root.user_hash, root_id, place),
                "title": rows.widget_titles[widget],
                "request_id": f"{int(filled.batch.requests['request_id'][at]):016x}",
                "items": ranked_items(filled, at, child),
            }
            if "drop_reason" in filled.batch.candidates:
                shown["explain"] = explained(filled, at)
            degraded |= int(filled.batch.requests["degraded"][at])
            if shown["items"]:
                answer["widgets"].append(shown)
        if own:
            answer["degraded"] = sorted(degraded_names(degraded))
        if "drop_reason" in page.batch.candidates:
            answer["explain"] = explained(page, row, "widget")
        return answer


def _children(asks: Sequence[PageAsk], page: Lists) -> tuple[list[Ask], list[int], list[int]]:
    """The child requests of all pages, the page of each and its widget's row."""
    rows = page.edition.release.catalogue
    kinds, arguments = rows.widget_kinds, rows.widget_arguments
    children, owners, widgets = [], [], []
    for row, ask in enumerate(asks):
        root_id = int(page.batch.requests["request_id"][row])
        picked = page.batch.candidates["widget"][chosen(page.batch, row)].tolist()
        for widget, request_id in zip(picked, child_request_ids(root_id, len(picked)), strict=True):
            child = Ask(
                surface=Surface.gateway,
                request_id=request_id,
                root_id=root_id,
                parent_request_id=root_id,
                decided_at=ask.root.decided_at,
                deadline_at=ask.root.deadline_at,
                user=ask.root.user,
                region=ask.root.region,
                device=ask.root.device,
                recent_items=ask.root.recent_items,
                exclude=ask.root.exclude,
                categories=_limit(ask.root.categories, kinds[widget], arguments[widget]),
                slots=ask.items,
            )
            children.append(child)
            owners.append(row)
            widgets.append(widget)
    return children, owners, widgets


def _limit(asked: Sequence[str], kind: str, argument: str) -> Sequence[str]:
    """Categories a widget is limited to: its own, and only where the request allows it."""
    if kind != "category":
        return asked
    return [argument] if not asked or argument in asked else ["\0nothing"]
