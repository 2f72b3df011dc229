"""Candidates that need no search: a catalogue's widgets, a product's reviews, or those the caller names."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch, Ragged
from serve_app.release.rows import CatalogueRows
from serve_app.stages.retrieval import Overlay, SurfaceRetrieval
from serve_app.vocabulary import DropReason, Source, Surface

__all__ = ["KIND_SOURCES", "KindPolicies", "given_reviews", "given_widgets", "widget_can_fill"]

I32 = npt.NDArray[np.int32]

_MANY = 200
# What fills a widget of each kind. A category's widget shows its best-sellers and what fits the user's taste.
KIND_SOURCES: dict[str, dict[Source, int]] = {
    "taste": {Source.taste: _MANY, Source.session: 60},
    "popular": {Source.popular: _MANY},
    "recent": {Source.recent: _MANY},
    "covisited": {Source.covisited: _MANY},
    "fresh": {Source.fresh: _MANY},
    "category": {Source.popular: _MANY, Source.taste: 60},
}
_NEEDS_RECENTS = frozenset({"taste", "recent", "covisited"})


@cache
def _settings(kind: str, drop_seen: bool, drop_bought: bool) -> SurfaceRetrieval:
    return SurfaceRetrieval(KIND_SOURCES[kind], drop_seen=drop_seen, drop_bought=drop_bought)


class KindPolicies:
    """Stands in for a policy while a widget of one kind is filled: the kind's sources, the policy's filters."""

    def __init__(self, kind: str, base: SurfaceRetrieval | None) -> None:
        # A shelf of things seen lately must not drop what was seen.
        drops = (base.drop_seen, base.drop_bought) if base is not None and kind != "recent" else (False, False)
        self._settings = _settings(kind, *drops)

    def retrieval(self, surface: Surface, variant: int = 0) -> SurfaceRetrieval:  # noqa: ARG002 - the protocol's signature
        """See serve_app.stages.retrieval.Retrieval."""
        return self._settings


def widget_can_fill(kind: str, *, has_recents: bool, overlay: Overlay) -> bool:
    """Whether a widget of this kind can hold anything for a user with or without recent items."""
    if kind == "fresh":
        return bool(len(overlay.side_hashes))
    return has_recents or kind not in _NEEDS_RECENTS


def given_widgets(batch: Batch, rows: CatalogueRows, overlay: Overlay, named: Sequence[Sequence[int] | None]) -> Batch:
    """Candidates of requests on surface `widgets`: those named, else all of the catalogue; ones that cannot be filled for
    the user are dropped as unavailable."""
    kinds = rows.widget_kinds
    recents: Ragged = batch.requests["recents"]
    lists, reasons = [], []
    for r, own in enumerate(named):
        widgets = range(len(kinds)) if own is None else own
        lists.append(list(widgets))
        some = bool(len(recents[r]))
        reasons += [
            DropReason.kept
            if widget_can_fill(kinds[w], has_recents=some, overlay=overlay) or own is not None
            else DropReason.unavailable
            for w in widgets
        ]
    given = Ragged.of(lists, np.int32)
    nothing = np.full(len(given.values), -1, np.int32)
    return _given(batch, given, reasons, item=nothing, widget=given.values)


def given_reviews(batch: Batch, rows: CatalogueRows, named: Sequence[Sequence[int] | None]) -> Batch:
    """Candidates of requests on surface `reviews`: those named, else all reviews of the anchor."""
    lists = []
    for anchor, own in zip(batch.requests["anchor"].tolist(), named, strict=True):
        known = 0 <= anchor < len(rows.review_offsets) - 1
        every = range(int(rows.review_offsets[anchor]), int(rows.review_offsets[anchor + 1])) if known else range(0)
        lists.append(list(every if own is None else own))
    given = Ragged.of(lists, np.int32)
    anchors = np.repeat(batch.requests["anchor"], given.lengths).astype(np.int32)
    release_items = len(rows.item_hashes)
    return _given(
        batch,
        given,
        [DropReason.kept] * len(given.values),
        item=np.where(anchors < release_items, anchors, -1).astype(np.int32),
        review=given.values,
    )


def _given(batch: Batch, given: Ragged, reasons: Sequence[int], **things: I32) -> Batch:
    place = np.arange(len(given.values)) - np.repeat(given.offsets[:-1], given.lengths)
    return batch.with_candidates(
        given.offsets,
        **things,
        category=np.zeros(len(given.values), np.uint64),
        sources=np.full(len(given.values), Source.given, np.uint32),
        retrieval_score=-place.astype(np.float64),
        drop_reason=np.array(reasons, np.int8),
    )
