"""The retrieval stage: sources blended by quota, then filters; every candidate keeps where it came from and why it left."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch, Ragged
from serve_app.stages.retrieval.availability import Overlay
from serve_app.stages.retrieval.evidence import EVIDENCE, INDEX, QUOTA_SOURCES, RANKED
from serve_app.stages.retrieval.filters import drop_reasons
from serve_app.stages.retrieval.gather import Lists, Scratch, Tables, gather
from serve_app.stages.retrieval.session_embedding import session_queries
from serve_app.stages.retrieval.tables import RetrievalTables
from serve_app.stages.stage import Context
from serve_app.vocabulary import DropReason, Source, Surface

__all__ = ["DEFAULT_RETRIEVAL", "Retrieval", "SurfaceRetrieval"]

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]

_MOST_RECENTS = 200
_NEAR = 6
_OVER_WIDTH = np.int8(DropReason.over_width)
# Order before ranking: weight of each ranked source's relative score, popularity last. Also the fall-back ranking.
_BLEND = (("follow", 1.0), ("covisited", 0.6), ("session", 1.0), ("session_after", 0.8), ("taste", 1.0), ("similar", 0.8))
_POPULAR_WEIGHT = 0.1


@dataclass(frozen=True, slots=True)
class SurfaceRetrieval:
    """Quotas by Source, and whether seen or bought items are dropped."""

    quotas: Mapping[Source, int]
    drop_seen: bool = False
    drop_bought: bool = False


def _quotas(*counts: int) -> Mapping[Source, int]:
    """Counts in the order of QUOTA_SOURCES."""
    return MappingProxyType(dict(zip(QUOTA_SOURCES, counts, strict=True)))


DEFAULT_RETRIEVAL: Mapping[Surface, SurfaceRetrieval] = MappingProxyType(
    {
        Surface.related: SurfaceRetrieval(_quotas(60, 80, 50, 60, 20, 0, 10)),
        Surface.gateway: SurfaceRetrieval(_quotas(0, 80, 50, 60, 60, 20, 10)),
    }
)


@dataclass(slots=True)
class _Requests:
    """Request columns the kernels read, made contiguous once."""

    recents: I32
    recent_offsets: I64
    anchors: I32
    quotas: I32
    drop_seen: npt.NDArray[np.bool_]
    drop_bought: npt.NDArray[np.bool_]
    own: Ragged = field(default_factory=lambda: Ragged.empty(0, np.int32))


class Retrieval:
    """Built once from a release's tables. `run` needs the request columns surface, anchor, recents, region, categories,
    excluded, bought, width; `context.parts["availability"]` may hold an Overlay, and a policy of the context may offer
    `retrieval(surface) -> SurfaceRetrieval | None` to replace the defaults."""

    name = "retrieval"

    def __init__(self, tables: RetrievalTables, regions: Mapping[int, int] | None = None) -> None:
        """`regions` maps the batch's region index to the release's row of popularity lists."""
        self.tables = tables
        self._regions = dict(regions or {})
        self._base = Overlay.of_release(np.asarray(tables.available), tables.vectors.shape[1])
        self._memory = threading.local()
        self._arrays: tuple[int, Tables, I32, npt.NDArray[np.uint64]] | None = None

    # -- the overlay's rows behind the release's ------------------------------------------------------------------

    def _with_side(self, overlay: Overlay) -> tuple[Tables, I32, npt.NDArray[np.uint64]]:
        """Kernel tables and category arrays for one state of the catalogue (remembered by sequence number)."""
        known = self._arrays
        if known is None or known[0] != overlay.seq:
            known = (overlay.seq, *self._join(overlay))
            self._arrays = known
        return known[1], known[2], known[3]

    def _join(self, overlay: Overlay) -> tuple[Tables, I32, npt.NDArray[np.uint64]]:
        t, side = self.tables, len(overlay.side_hashes)
        vectors = np.concatenate([t.vectors, overlay.side_embeddings]) if side else np.ascontiguousarray(t.vectors)
        first_seen = np.concatenate([t.first_seen, np.full(side, len(t.first_seen), np.float32)])
        category = np.concatenate([t.item_category, overlay.side_categories]).astype(np.int32)
        names = np.append(t.category_hashes, np.uint64(0))  # index -1: no category
        hashes = np.concatenate([names[t.item_category], overlay.side_category_hashes])
        tables = Tables(
            vectors, *(np.ascontiguousarray(a) for a in (
                t.follow.offsets, t.follow.neighbours, t.follow.weights, t.follow.totals,
                t.covisits.offsets, t.covisits.neighbours, t.covisits.weights, t.covisits.totals,
                t.sessions.items, t.sessions.offsets, t.sessions.item_offsets, t.sessions.item_sessions,
                t.sessions.item_positions, t.item_idf, first_seen,
            )),
        )  # fmt: skip
        return tables, category, hashes

    # -- the stage ------------------------------------------------------------------------------------------------

    def run(self, batch: Batch, context: Context) -> Batch:
        """Sets item, category, sources, source_scores, retrieval_score, drop_reason; candidates in blended order.
        Where filters leave more than `width`, the rest is dropped as over_width."""
        overlay: Overlay = context.parts.get("availability") or self._base
        tables, category, category_hashes = self._with_side(overlay)
        requests = self._requests(batch, context)
        lists = self._lists(batch, requests, overlay, tables)
        items, bits, scores, offsets = self._gather(tables, lists, requests)
        blended = _blend(scores)
        order = _order(blended, items, offsets)
        items, bits, scores, blended = items[order], bits[order], scores[order], blended[order]
        reasons = self._filter(batch, requests, overlay, category, items, offsets)
        _limit_width(reasons, offsets, batch.requests["width"])
        out = batch.with_candidates(
            offsets, item=items, category=category_hashes[items], sources=bits, source_scores=scores,
            retrieval_score=blended, drop_reason=reasons,
        )  # fmt: skip
        out.meta = {**batch.meta, "sources": EVIDENCE}
        return out

    def _requests(self, batch: Batch, context: Context) -> _Requests:
        recents: Ragged = batch.requests["recents"]
        if len(recents.values) and recents.lengths.max() > _MOST_RECENTS:
            recents = Ragged.of([own[-_MOST_RECENTS:] for own in recents], np.int32)
        anchors = np.ascontiguousarray(batch.requests["anchor"])
        # The anchor is what the user looks at now: the newest of the recents.
        query = _append_anchor(recents, anchors)
        surface, policy = batch.requests["surface"], batch.requests["policy"]
        settings = [self._settings(context, int(p), Surface(int(s))) for p, s in zip(policy, surface, strict=True)]
        quotas = np.array([[one.quotas.get(source, 0) for source in QUOTA_SOURCES] for one in settings], np.int32)
        return _Requests(
            query.values, query.offsets, anchors, quotas.reshape(len(settings), len(QUOTA_SOURCES)),
            np.array([one.drop_seen for one in settings], np.bool_),
            np.array([one.drop_bought for one in settings], np.bool_),
            recents,
        )  # fmt: skip

    @staticmethod
    def _settings(context: Context, policy: int, surface: Surface) -> SurfaceRetrieval:
        if policy < len(context.policies):
            chosen = context.policies[policy].retrieval(surface)
            if chosen is not None:
                return chosen
        return DEFAULT_RETRIEVAL[surface]

    def _lists(self, batch: Batch, requests: _Requests, overlay: Overlay, tables: Tables) -> Lists:
        n, d = len(batch), tables.vectors.shape[1]
        queries = np.zeros((n, d), np.float32)
        t = self.tables
        session_queries(
            tables.vectors, t.last_map, t.mean_map, t.step_weights, requests.recents, requests.recent_offsets, queries
        )
        has_recents = np.diff(requests.recent_offsets) > 0
        most = requests.quotas.max(axis=0, initial=0).tolist()
        anchors = np.ascontiguousarray(tables.vectors[np.maximum(requests.anchors, 0)])
        similar = self._search(anchors, requests.anchors >= 0, most[0])
        taste = self._search(queries, has_recents, most[1])
        popular, popular_scores = self._popular(batch, most[4])
        fresh = _fresh(overlay, queries, requests.anchors, tables, most[6])
        return Lists(similar, taste, popular, popular_scores, fresh, queries, requests.anchors)

    def _search(self, queries: F32, wanted: npt.NDArray[np.bool_], count: int) -> I32:
        out = np.full((len(wanted), max(count, 1)), -1, np.int32)
        chosen = np.flatnonzero(wanted)
        if count and len(chosen):
            found, _ = self.tables.neighbours.search(queries[chosen], count)
            out[chosen] = found
        return out

    def _popular(self, batch: Batch, count: int) -> tuple[I32, F32]:
        lists = self.tables.popular
        rows = np.full((len(batch), max(count, 1)), -1, np.int32)
        scores = np.zeros((len(batch), max(count, 1)), np.float32)
        wanted: Ragged = batch.requests["categories"]
        for r, region in enumerate(batch.requests["region"]):
            own = wanted[r]
            k = lists.list_of(self._regions.get(int(region), -1), int(own[0]) if len(own) == 1 else -1)
            begin, end = lists.offsets[k], min(lists.offsets[k + 1], lists.offsets[k] + count)
            rows[r, : end - begin] = lists.items[begin:end]
            scores[r, : end - begin] = lists.scores[begin:end]
        return rows, scores

    def _gather(self, tables: Tables, lists: Lists, requests: _Requests) -> tuple[I32, npt.NDArray[np.uint32], F32, I64]:
        n = len(requests.anchors)
        # Co-visits and sessions give two lists each.
        capacity = int((requests.quotas.sum() + requests.quotas[:, 2:4].sum()) + n) if n else 1
        scratch = getattr(self._memory, "scratch", None)
        if scratch is None:
            scratch = self._memory.scratch = Scratch.fresh()
        items = np.empty(capacity, np.int32)
        bits = np.empty(capacity, np.uint32)
        scores = np.empty((capacity, len(EVIDENCE)), np.float32)
        offsets = np.zeros(n + 1, np.int64)
        gather(
            scratch, tables, lists, requests.recents, requests.recent_offsets, requests.quotas, _NEAR,
            items, bits, scores, offsets,
        )  # fmt: skip
        m = int(offsets[-1])
        return items[:m], bits[:m], scores[:m], offsets

    def _filter(
        self, batch: Batch, requests: _Requests, overlay: Overlay, category: I32, items: I32, offsets: I64
    ) -> npt.NDArray[np.int8]:
        out = np.empty(len(items), np.int8)
        excluded, bought, wanted = (batch.requests[name] for name in ("excluded", "bought", "categories"))
        drop_reasons(
            items, offsets, category, overlay.unavailable, requests.anchors, excluded.values, excluded.offsets,
            requests.own.values, requests.own.offsets, bought.values, bought.offsets, wanted.values, wanted.offsets,
            requests.drop_seen, requests.drop_bought, out,
        )  # fmt: skip
        return out


def _append_anchor(recents: Ragged, anchors: I32) -> Ragged:
    """Recents with the anchor as their newest, where it is not that already."""
    lengths = recents.lengths
    last = np.full(len(anchors), -1, np.int32)
    some = lengths > 0
    last[some] = recents.values[recents.offsets[1:][some] - 1]
    add = (anchors >= 0) & (last != anchors)
    if not add.any():
        return Ragged(np.ascontiguousarray(recents.values), recents.offsets)
    values = np.insert(recents.values, recents.offsets[1:][add], anchors[add])
    offsets = recents.offsets.copy()
    offsets[1:] += np.cumsum(add)
    return Ragged(values.astype(np.int32, copy=False), offsets)


def _blend(scores: F32) -> npt.NDArray[np.float64]:
    """f64[m]: fixed-order weighted sum of relative scores."""
    total = _POPULAR_WEIGHT * scores[:, INDEX["popular"]].astype(np.float64)
    for name, weight in _BLEND:
        assert name in RANKED
        total = total + weight * scores[:, INDEX[f"{name}_relative"]]
    return total


def _order(blended: npt.NDArray[np.float64], items: I32, offsets: I64) -> I64:
    """Candidates of each request by falling score, ties by item row."""
    owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    return np.lexsort((items, -blended, owner))


def _limit_width(reasons: npt.NDArray[np.int8], offsets: I64, width: I32) -> None:
    """Mark kept candidates beyond the request's width (in place)."""
    kept = np.zeros(len(reasons) + 1, np.int64)
    np.cumsum(reasons == 0, out=kept[1:])
    place = kept[1:] - np.repeat(kept[offsets[:-1]], np.diff(offsets))
    reasons[(reasons == 0) & (place > np.repeat(width, np.diff(offsets)))] = _OVER_WIDTH


def _fresh(overlay: Overlay, queries: F32, anchors: I32, tables: Tables, count: int) -> I32:
    """Side items nearest to the anchor (or the recents), exactly searched; without either, the newest first."""
    n, side = len(anchors), len(overlay.side_hashes)
    out = np.full((n, max(count, 1)), -1, np.int32)
    if not side or not count:
        return out
    targets = np.where((anchors >= 0)[:, None], tables.vectors[np.maximum(anchors, 0)], queries)
    scores = np.zeros((n, side), np.float64)
    for d in range(targets.shape[1]):
        scores += targets[:, d, None].astype(np.float64) * overlay.side_embeddings[None, :, d]
    newest = np.arange(side)
    for r in range(n):
        best = np.lexsort((-newest, -scores[r]))[:count]
        out[r, : len(best)] = overlay.release_items + best
    return out
