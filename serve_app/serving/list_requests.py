"""What lists are asked for, as columns: sizes, categories; and the lists of a page, once it is known which widgets it shows.

A page is a root request on surface `widgets` and, for every widget shown, a child request on surface `gateway` whose
`parent_request_id` is the root. A child is asked as it would be by itself; it differs from its root in surface, ids, slots,
width and categories alone, and where nobody is named, in arms and cell, which are drawn by the request then.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch, Columns, Ragged
from serve_app.columns import CANDIDATE_COLUMNS
from serve_app.noise import hash_key, salt_of
from serve_app.policy.assign import assign
from serve_app.policy.compile import CompiledPolicy
from serve_app.release.rows import CatalogueRows
from serve_app.serving.library import Edition
from serve_app.vocabulary import Surface

__all__ = ["PageFill", "Shelves", "category_rows", "child_batch", "list_sizes", "narrowed"]

I16 = npt.NDArray[np.int16]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

_CHILD_SALT = salt_of("child request of a page")
_NO_CATEGORY = -2  # no item carries it: a limit to categories that nobody knows must not become no limit


@dataclass(slots=True)
class PageFill:
    """What pages want their widgets to hold. slots: i32[n] of each list of a page. categories: names that each is
    limited to, () where it is not. quality: share of the policy's width to fill from; see `narrowed`."""

    slots: I32
    categories: Sequence[Sequence[str]]
    quality: float


@dataclass(frozen=True, slots=True)
class Shelves:
    """Where the lists of a batch of pages stand, page by page in the order shown: page i32[n] and widget i32[n] of each,
    place i64[n] on its page."""

    page: I32
    widget: I32
    place: I64

    @classmethod
    def of(cls, pages: Batch) -> Shelves:
        """pages: ranked; chosen widgets have a slot."""
        at = np.flatnonzero(pages.candidates["slot"] >= 0)
        page = np.searchsorted(pages.offsets, at, side="right") - 1
        order = np.lexsort((pages.candidates["slot"][at], page))
        page = page[order]
        place = np.arange(len(at)) - np.searchsorted(page, page)
        return cls(page.astype(np.int32), pages.candidates["widget"][at[order]], place)

    def __len__(self) -> int:
        return len(self.page)

    def of_page(self, page: int) -> range:
        """Rows of one page."""
        return range(int(np.searchsorted(self.page, page)), int(np.searchsorted(self.page, page, side="right")))


def child_batch(pages: Batch, shelves: Shelves, roots: Batch, fill: PageFill, edition: Edition) -> Batch:
    """Requests, without candidates, of the lists that stand on `shelves`. pages: ranked, whose request ids are the parents';
    roots: the same pages with all that was asked."""
    owner = shelves.page
    own, policy, rows = roots.requests.take(owner), edition.policy, edition.release.catalogue
    parents, users = pages.requests["request_id"][owner], own["user"]
    ids = hash_key(_CHILD_SALT, parents, shelves.place.astype(np.uint64))
    own["request_id"], own["root_id"], own["parent_request_id"] = ids, parents, parents
    own["surface"] = np.full(len(owner), Surface.gateway, np.int8)
    if not users.all():
        for name, values in assign(policy.trials, np.where(users == 0, ids, users), own["decided_at"]).columns().items():
            own[name] = values
    limits = [
        _limit(fill.categories[page], rows, widget)
        for page, widget in zip(owner.tolist(), shelves.widget.tolist(), strict=True)
    ]
    own["categories"] = category_rows(limits, rows)
    surfaces = ["gateway"] * len(owner)
    own["slots"], own["width"] = list_sizes(surfaces, fill.slots[owner].tolist(), own["variant"], policy, fill.quality)
    return Batch(own, Columns(0, CANDIDATE_COLUMNS), np.zeros(len(owner) + 1, np.int64))


def _limit(asked: Sequence[str], rows: CatalogueRows, widget: int) -> Sequence[str]:
    """Categories a widget is limited to: its own, and only where the request allows it."""
    if rows.widget_kinds[widget] != "category":
        return asked
    own = rows.widget_arguments[widget]
    return [own] if not asked or own in asked else ["\0nothing"]


def list_sizes(
    surfaces: Sequence[str], slots: Sequence[int | None], variant: I16, policy: CompiledPolicy, quality: float
) -> tuple[I32, I32]:
    """Slots to fill, the policy's where None are asked for, and candidates to look at."""
    own = [policy.variants[v].surfaces.by_name(name) for v, name in zip(variant.tolist(), surfaces, strict=True)]
    most = [one.slots if asked is None else asked for one, asked in zip(own, slots, strict=True)]
    width = [narrowed(one.width, max(one.min_width, fill), quality) for one, fill in zip(own, most, strict=True)]
    return np.array(most, np.int32), np.array(width, np.int32)


def narrowed(width: int, least: int, quality: float) -> int:
    """Candidates to rank: `quality` of `width`, never fewer than `least`, never more than `width`."""
    return min(width, max(least, math.floor(quality * width + 0.5)))


def category_rows(limits: Sequence[Sequence[str]], rows: CatalogueRows) -> Ragged:
    """Indices of the categories each list is limited to; none: no limit."""
    if not any(limits):
        return Ragged.empty(len(limits), np.int32)
    index = {name: at for at, name in enumerate(rows.category_names)}
    return Ragged.of(
        [[index[c] for c in names if c in index] or ([_NO_CATEGORY] if names else []) for names in limits], np.int32
    )
