"""The retrieval stage: sources blended by quota, then filters; every candidate keeps where it came from and why it left."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch, Ragged
from serve_app.kernels import kernel
from serve_app.stages.retrieval.availability import Overlay
from serve_app.stages.retrieval.collect import Tables
from serve_app.stages.retrieval.evidence import EVIDENCE
from serve_app.stages.retrieval.filters import Filters
from serve_app.stages.retrieval.gather import Asked, Found, gather
from serve_app.stages.retrieval.scratch import Scratch
from serve_app.stages.retrieval.session_embedding import session_queries
from serve_app.stages.retrieval.settings import DEFAULT_RETRIEVAL, RequestSettings, SurfaceRetrieval, settings_of
from serve_app.stages.retrieval.tables import RetrievalTables
from serve_app.stages.stage import Context

__all__ = ["DEFAULT_RETRIEVAL", "Retrieval", "SurfaceRetrieval"]

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
U64 = npt.NDArray[np.uint64]

_MOST_RECENTS = 200
_SIMILAR, _TASTE, _FRESH = 0, 1, 6  # columns of QUOTA_SOURCES
_READ = ("surface", "policy", "variant", "anchor", "recents", "region", "categories", "excluded", "bought", "width")


@dataclass(frozen=True, slots=True)
class _Rows:
    """What the kernels read by item row, for one state of the live catalogue."""

    seq: int
    tables: Tables
    category: I32
    category_hashes: U64


class Retrieval:
    """Built once from a release's tables. `run` needs the request columns surface, policy, anchor, recents, region,
    categories, excluded, bought, width (and variant, where policies have variants); `context.parts["availability"]` may hold
    an Overlay, and a policy of the context may offer `retrieval(surface, variant) -> SurfaceRetrieval | None` to replace the
    defaults."""

    name = "retrieval"

    def __init__(self, tables: RetrievalTables, regions: Mapping[int, int] | None = None) -> None:
        """`regions` maps the batch's region index to the release's row of popularity lists."""
        self.tables = tables
        known = dict(regions or {})
        self._region_rows = np.full(max(known, default=-1) + 2, -1, np.int64)  # the last one stands for region -1
        self._region_rows[list(known)] = list(known.values())
        self._base = Overlay.of_release(np.asarray(tables.available), tables.vectors.shape[1])
        popular = tables.popular
        self._popular = [_frozen(a) for a in (popular.offsets, popular.items, popular.scores)]
        self._query_maps = [_frozen(a) for a in (tables.last_map, tables.mean_map, tables.step_weights)]
        self._memory = threading.local()
        self._rows: _Rows | None = None

    @staticmethod
    def read_of(batch: Batch) -> Batch:
        """The batch with only what candidates are found by: what has to travel."""
        read = [name for name in _READ if name in batch.requests]
        return Batch(batch.requests.only(read), batch.candidates, batch.offsets, batch.meta)

    def run(self, batch: Batch, context: Context) -> Batch:
        """Sets item, category, sources, source_scores, retrieval_score, drop_reason; candidates in blended order.
        Where filters leave more than `width`, the rest is dropped as over_width."""
        overlay: Overlay = context.parts.get("availability") or self._base
        rows = self._rows_of(overlay)
        own: Ragged = batch.requests["recents"]
        anchors = _dense(batch.requests["anchor"])
        recents, offsets = _with_anchor(own, anchors)
        settings = settings_of(batch, context)
        asked = self._ask(batch, rows.tables, overlay, recents, offsets, anchors, settings)
        excluded, bought, wanted = (batch.requests[name] for name in ("excluded", "bought", "categories"))
        filters = Filters(
            rows.category, overlay.unavailable, anchors, _dense(excluded.values), _dense(excluded.offsets),
            _dense(own.values), _dense(own.offsets), _dense(bought.values), _dense(bought.offsets),
            _dense(wanted.values), _dense(wanted.offsets), settings.drops, _dense(batch.requests["width"]),
        )  # fmt: skip
        found = _room(settings.room, len(batch))
        gather(self._scratch(), rows.tables, asked, filters, found)
        m = int(found.offsets[-1])
        items = found.items[:m]
        out = batch.with_candidates(
            found.offsets, item=items, category=rows.category_hashes[items], sources=found.bits[:m],
            source_scores=found.scores[:m], retrieval_score=found.blended[:m], drop_reason=found.reasons[:m],
        )  # fmt: skip
        out.meta = {**batch.meta, "sources": EVIDENCE}
        return out

    def _scratch(self) -> Scratch:
        """This thread's memory."""
        scratch: Scratch | None = getattr(self._memory, "scratch", None)
        if scratch is None:
            scratch = self._memory.scratch = Scratch.fresh(self.tables.vectors.shape[1])
        return scratch

    def _rows_of(self, overlay: Overlay) -> _Rows:
        """Release rows with the overlay's behind them (remembered by its sequence number)."""
        known = self._rows
        if known is None or known.seq != overlay.seq:
            known = self._rows = self._join(overlay)
        return known

    def _join(self, overlay: Overlay) -> _Rows:
        t, side = self.tables, len(overlay.side_hashes)
        vectors = np.concatenate([t.vectors, overlay.side_embeddings]) if side else t.vectors
        rarest = np.full(side, np.max(t.item_idf, initial=0.0), np.float32)
        names = np.append(t.category_hashes, np.uint64(0))  # index -1: no category
        tables = Tables(
            *(_frozen(a) for a in (
                vectors, t.follow.offsets, t.follow.neighbours, t.follow.weights, t.follow.totals,
                t.covisits.offsets, t.covisits.neighbours, t.covisits.weights, t.covisits.totals,
                np.float32(1.0) / np.sqrt(t.covisits.totals + np.float32(5.0)),
                t.sessions.items, t.sessions.offsets, t.session_prior, t.sessions.item_offsets, t.sessions.item_sessions,
                t.sessions.item_positions, np.concatenate([t.item_idf, rarest]),
            )),
        )  # fmt: skip
        category = np.concatenate([t.item_category, overlay.side_categories]).astype(np.int32)
        return _Rows(overlay.seq, tables, category, np.concatenate([names[t.item_category], overlay.side_category_hashes]))

    def _ask(
        self,
        batch: Batch,
        tables: Tables,
        overlay: Overlay,
        recents: I32,
        offsets: I64,
        anchors: I32,
        settings: RequestSettings,
    ) -> Asked:
        """Search by embedding, look up lists: everything the kernel does not do itself."""
        list_offsets, list_items, list_scores = self._popular
        queries = np.empty((len(batch), tables.vectors.shape[1]), np.float32)
        last_map, mean_map, step_weights = self._query_maps
        session_queries(tables.vectors, last_map, mean_map, step_weights, recents, offsets, queries)
        similar, taste = self._search(tables.vectors, queries, anchors, settings.most)
        wanted: Ragged = batch.requests["categories"]
        lists = np.empty(len(batch), np.int64)
        _popular_lists(
            _dense(batch.requests["region"]), self._region_rows, _dense(wanted.values), _dense(wanted.offsets),
            list_offsets, self.tables.popular.categories, lists,
        )  # fmt: skip
        return Asked(
            recents, offsets, settings.quotas, queries, similar, taste,
            _fresh(overlay, queries, anchors, tables.vectors, settings.most[_FRESH]),
            lists, list_offsets, list_items, list_scores,
        )  # fmt: skip

    def _search(self, vectors: F32, queries: F32, anchors: I32, most: tuple[int, ...]) -> tuple[I32, I32]:
        """Embedding neighbours of anchors and of recents, in one search. Rows of requests without them mean nothing; the
        kernel passes over those, which costs less than picking requests here."""
        n = len(anchors)
        similar, taste = most[_SIMILAR] > 0 and (anchors >= 0).any(), most[_TASTE] > 0
        nothing = np.full((n, 1), -1, np.int32)
        if n == 0 or not (similar or taste):
            return nothing, nothing
        asked = vectors[np.maximum(anchors, 0)] if similar else queries
        if similar and taste:
            asked = np.concatenate([asked, queries])
        rows, _ = self.tables.neighbours.search(asked, max(most[_SIMILAR] if similar else 0, most[_TASTE]))
        return rows[:n] if similar else nothing, rows[-n:] if taste else nothing


def _frozen(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A plain, contiguous, read-only view: kernels see one type of a table, mapped from a file or joined with live items,
    and are never compiled again while serving."""
    view = np.ascontiguousarray(array).view(np.ndarray)
    view.flags.writeable = False
    return view


def _dense(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Contiguous and writable, as the kernels were compiled for; columns that came over the wire may be neither."""
    return array if array.flags.carray else np.require(array, requirements=["C", "W"])


def _room(rows: int, requests: int) -> Found:
    """Empty output."""
    return Found(
        np.empty(rows, np.int32), np.empty(rows, np.uint32), np.empty((rows, len(EVIDENCE)), np.float32), np.empty(rows),
        np.empty(rows, np.int8), np.empty(requests + 1, np.int64),
    )  # fmt: skip


@kernel
def _popular_lists(
    region: npt.NDArray[np.int16], region_rows: I64, wanted: I32, wanted_offsets: I64, list_offsets: I64, categories: int,
    out: I64,
) -> None:  # fmt: skip
    """As Popular.list_of: the most specific list that is not empty, for the request's region and single wanted category."""
    for r in range(len(out)):
        place = region_rows[region[r]] if 0 <= region[r] < len(region_rows) else -1
        category = wanted[wanted_offsets[r]] if wanted_offsets[r + 1] - wanted_offsets[r] == 1 else -1
        out[r] = 0
        for k in range(3):
            own = -1 if k == 1 else place
            group = -1 if k == 2 else category
            at = (own + 1) * (categories + 1) + group + 1
            if list_offsets[at + 1] > list_offsets[at] and (category < 0 or group >= 0):
                out[r] = at
                break


@kernel
def _newest(values: I32, offsets: I64, anchors: I32, most: int, out: I32, out_offsets: I64) -> None:
    """The newest `most` recents of each request, and the anchor as the newest of all, where it is not that already."""
    used = 0
    out_offsets[0] = 0
    for r in range(len(anchors)):
        begin, end = offsets[r], offsets[r + 1]
        for q in range(max(begin, end - most), end):
            out[used] = values[q]
            used += 1
        if anchors[r] >= 0 and (end == begin or values[end - 1] != anchors[r]):
            out[used] = anchors[r]
            used += 1
        out_offsets[r + 1] = used


def _with_anchor(recents: Ragged, anchors: I32) -> tuple[I32, I64]:
    """Recents as the sources take them: the anchor is what the user looks at now. Values and offsets."""
    out, offsets = np.empty(len(recents.values) + len(anchors), np.int32), np.empty(len(anchors) + 1, np.int64)
    _newest(_dense(recents.values), _dense(recents.offsets), anchors, _MOST_RECENTS, out, offsets)
    return out, offsets


def _fresh(overlay: Overlay, queries: F32, anchors: I32, vectors: F32, count: int) -> I32:
    """Side items nearest to the anchor (or the recents), exactly searched; without either, the newest first."""
    n, side = len(anchors), len(overlay.side_hashes)
    out = np.full((n, max(count, 1)), -1, np.int32)
    if not side or not count:
        return out
    targets = np.where((anchors >= 0)[:, None], vectors[np.maximum(anchors, 0)], queries)
    scores = np.zeros((n, side), np.float64)
    for d in range(targets.shape[1]):
        scores += targets[:, d, None].astype(np.float64) * overlay.side_embeddings[None, :, d]
    newest = np.arange(side)
    for r in range(n):
        best = np.lexsort((-newest, -scores[r]))[:count]
        out[r, : len(best)] = overlay.release_items + best
    return out
