"""The retrieval kernel: for each request, collect evidence from every source, choose by quota, describe, order, filter.

Everything runs in a fixed order per request: the answer for one is the same among thousands.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from serve_app.kernels import kernel
from serve_app.stages.retrieval.choose import choose_best, choose_listed, choose_recent
from serve_app.stages.retrieval.collect import Tables, add_covisits, add_recents, add_sessions
from serve_app.stages.retrieval.describe import Near, choose_and_order, describe, look_at
from serve_app.stages.retrieval.evidence import QUOTA_SOURCES
from serve_app.stages.retrieval.filters import Filters, drop_reasons
from serve_app.stages.retrieval.scratch import AFTER, COVISITED, FOLLOW, POPULAR, SESSION, Scratch, begin_request, entry_of
from serve_app.vocabulary import Source

__all__ = ["Asked", "Found", "gather"]

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

_BIT_SIMILAR, _BIT_TASTE, _BIT_COVISITED, _BIT_SESSION, _BIT_POPULAR, _BIT_RECENT, _BIT_FRESH = (
    int(source) for source in QUOTA_SOURCES
)
assert QUOTA_SOURCES[2:4] == (Source.covisited, Source.session)


class Asked(NamedTuple):
    """Requests: recents i32 (oldest first) with offsets i64[n + 1], quotas i32[n, 7] by QUOTA_SOURCES, queries f32[n, d]
    (the session embedding; zero: none). Lists [n, k] of item rows that end at row -1: neighbours of the anchor and of the
    recents (of no meaning without one), side items. popular_list i64[n] indexes the popularity lists (offsets, items,
    scores)."""

    recents: I32
    recent_offsets: I64
    quotas: I32
    queries: F32
    similar: I32
    taste: I32
    fresh: I32
    popular_list: I64
    popular_offsets: I64
    popular_items: I32
    popular_scores: F32


class Found(NamedTuple):
    """Output with room for every quota: one row per candidate, offsets i64[n + 1]."""

    items: I32
    bits: npt.NDArray[np.uint32]
    scores: F32
    blended: F64
    reasons: npt.NDArray[np.int8]
    offsets: I64


@kernel
def _add_popular(s: Scratch, a: Asked, r: int) -> None:
    """The request's best-sellers, with their scores, as far as the quota goes."""
    begin = a.popular_offsets[a.popular_list[r]]
    end = min(a.popular_offsets[a.popular_list[r] + 1], begin + a.quotas[r, 4])
    for k in range(begin, end):
        e = entry_of(s, a.popular_items[k])
        if e >= 0:
            s.hot[e, POPULAR] = a.popular_scores[k]
            s.bits[e] |= np.uint32(_BIT_POPULAR)


@kernel
def _collect(s: Scratch, t: Tables, a: Asked, r: int, recents: I32, anchor: int) -> None:
    """Evidence and choice of every source for request r: entries with bits become its candidates."""
    begin_request(s)
    quota = a.quotas[r]
    add_recents(s, recents)
    if len(recents):
        if quota[2] > 0:
            add_covisits(s, t, recents)
        if quota[3] > 0:
            add_sessions(s, t, recents)
    choose_recent(s, _BIT_RECENT, min(quota[5], len(recents)))
    choose_best(s, FOLLOW, _BIT_COVISITED, quota[2])
    choose_best(s, COVISITED, _BIT_COVISITED, quota[2])
    choose_best(s, SESSION, _BIT_SESSION, quota[3])
    choose_best(s, AFTER, _BIT_SESSION, quota[3])
    _add_popular(s, a, r)
    if anchor >= 0:
        choose_listed(s, a.similar[r], _BIT_SIMILAR, quota[0])
    if len(recents):
        choose_listed(s, a.taste[r], _BIT_TASTE, quota[1])
    choose_listed(s, a.fresh[r], _BIT_FRESH, quota[6])


@kernel
def gather(s: Scratch, t: Tables, a: Asked, f: Filters, out: Found) -> None:
    """Fill `out` for all requests. Its rows must suffice: per request the sum of quotas, co-visits and sessions twice."""
    begin = 0
    out.offsets[0] = 0
    near = Near(np.empty((t.vectors.shape[1], 8), np.float32), np.empty(6, np.int32))
    facts = np.empty(5, np.float32)
    for r in range(len(a.recent_offsets) - 1):
        recents = a.recents[a.recent_offsets[r] : a.recent_offsets[r + 1]]
        _collect(s, t, a, r, recents, f.anchors[r])
        look_at(s, t, recents, a.queries[r], f.anchors[r], near)
        count = choose_and_order(s, t, near)
        end = begin + count
        for k in range(count):
            item = int(s.keys[k] & np.uint64(0xFFFFFFFF))
            entry = entry_of(s, item)
            out.items[begin + k], out.bits[begin + k] = item, s.bits[entry]
            out.blended[begin + k] = s.buffer[s.place[entry]]
        describe(s, t, near, recents, facts, count, out.scores[begin:end])
        drop_reasons(f, r, out.items[begin:end], out.reasons[begin:end])
        out.offsets[r + 1] = begin = end
