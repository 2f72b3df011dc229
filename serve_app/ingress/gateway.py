"""The gateway page: widgets ordered by their value, items ordered in each, no item twice on a page.

Its lists (see `serve_app.serving.list_requests`) are retrieved and scored in one batch and made in the order shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from serve_app.ids import decision_id_text
from serve_app.ingress.answers import degraded_names, envelope, explained, ranked_items
from serve_app.ingress.asks import Ask
from serve_app.ingress.recommend import Lists, ListsOptions, Recommender
from serve_app.serving.given import given_widgets
from serve_app.serving.library import Pins
from serve_app.serving.list_requests import PageFill, Shelves

__all__ = ["PageAsk", "Pages"]


@dataclass(slots=True)
class PageAsk:
    """One page: the root request (its slots: how many widgets), and how many items in each widget."""

    root: Ask
    items: int


class Pages:
    """Makes pages for micro-batches."""

    def __init__(self, recommender: Recommender) -> None:
        self._recommender = recommender

    async def pages(self, asks: Sequence[PageAsk], options: ListsOptions, quality: float = 1.0) -> list[dict[str, Any]]:
        """One answer per ask. quality: share of the policy's width to fill widgets from; see PageFill."""
        recommender, roots = self._recommender, [ask.root for ask in asks]
        edition, known = await recommender.admit(roots, options)
        pins = Pins(options.release, options.policy, edition.view.seq)
        batch = recommender.requests(roots, edition, known)
        given = given_widgets(batch, edition.release.catalogue, edition.view.overlay, [None] * len(asks))
        slots = np.array([ask.items for ask in asks], np.int32)
        fill = PageFill(slots, [tuple(root.categories) for root in roots], quality)
        page, filled, shelves = await recommender.page(given, pins, edition, options, fill)
        explain = options.explain
        return [self._answer(ask, row, page, filled, shelves, explain=explain) for row, ask in enumerate(asks)]

    @staticmethod
    def _answer(
        ask: PageAsk, row: int, page: Lists, filled: Lists | None, shelves: Shelves, *, explain: bool
    ) -> dict[str, Any]:
        rows = page.edition.release.catalogue
        answer = envelope(page, row, ask.root)
        root_id = int(page.batch.requests["request_id"][row])
        answer["widgets"] = []
        degraded = int(page.batch.requests["degraded"][row])
        own = shelves.of_page(row)
        for place, at in enumerate(own):
            assert filled is not None
            widget = int(shelves.widget[at])
            shown = {
                "id": rows.widget_ids[widget],
                "slot": place,
                "decision_id": decision_id_text(ask.root.user_hash, root_id, place),
                "title": rows.widget_titles[widget],
                "request_id": f"{int(filled.batch.requests['request_id'][at]):016x}",
                "items": ranked_items(filled, at, ask.root),
            }
            if explain:
                shown["explain"] = explained(filled, at)
            degraded |= int(filled.batch.requests["degraded"][at])
            if shown["items"]:
                answer["widgets"].append(shown)
        if own:
            answer["degraded"] = sorted(degraded_names(degraded))
        if explain:
            answer["explain"] = explained(page, row, "widget")
        return answer
