"""The order of a request's candidates, and what is known of each: their rows of evidence."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from serve_app.kernels import kernel
from serve_app.stages.retrieval.collect import Tables
from serve_app.stages.retrieval.evidence import INDEX, NO_RANK, RANKED, SCORES
from serve_app.stages.retrieval.scratch import (
    AFTER,
    AGE,
    BACK,
    BEST,
    COUNT,
    COVISITED,
    COVISITED_LAST,
    FOLLOW,
    FOLLOW_LAST,
    FOLLOW_SECOND,
    NEXT,
    NOT_SEEN,
    POPULAR,
    SESSION,
    TIMES,
    Scratch,
    entry_of,
)  # fmt: skip

__all__ = ["Near", "choose_and_order", "describe", "look_at"]

I32 = npt.NDArray[np.int32]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

_NEAR = 6  # newest recents compared by embedding
_DAMP = np.float32(3.0)  # co-visits that a share is damped by
_RANKED = len(RANKED)
_BY_COUNTS = 4  # the first ranked sources are running sums, the others products of embeddings: taste, similar
_RELATIVE = INDEX["follow_relative"]  # ranks follow the shares
_TASTE, _SIMILAR, _POPULAR, _RECENT = (INDEX[name] for name in ("taste", "similar", "popular", "recent"))
_LAST, _LAST_SHARE, _REVERSE_SHARE = INDEX["follow_last"], INDEX["follow_last_share"], INDEX["follow_last_reverse_share"]
_SIM_LAST, _SIM_SECOND, _SIM_MAX, _SIM_MEAN = (
    INDEX[f"similar_{one}"] for one in ("last", "second", "max", "mean")
)  # fmt: skip
_AGE, _RARITY = INDEX["session_age"], INDEX["rarity"]
_MATCHED, _DISTINCT, _NEWEST_TIMES = INDEX["sessions_matched"], INDEX["recents_distinct"], INDEX["newest_times_seen"]
_NEWEST_RARITY, _NEWEST_COSINE = INDEX["newest_rarity"], INDEX["newest_cosine"]
_FOLLOW, _COVISITED, _SESSION, _AFTER = (INDEX[name] for name in ("follow", "covisited", "session", "session_after"))
_SECOND, _COVISITED_LAST = INDEX["follow_second"], INDEX["covisited_last"]
_COUNT, _BEST, _NEXT = INDEX["session_count"], INDEX["session_best"], INDEX["session_next"]
_BACK, _TIMES = INDEX["steps_back"], INDEX["times_seen"]
# Order before ranking: weight of each ranked source's relative score, popularity last. Also the fall-back ranking.
_BLEND = np.array([1.0, 0.6, 1.0, 0.8, 1.0, 0.8])
_POPULAR_WEIGHT = 0.1
assert SCORES[:6] == ("follow", "covisited", "session", "session_after", "taste", "similar")


class Near(NamedTuple):
    """What candidates are compared with. columns f32[d, 8]: vectors of the query, the anchor and the newest six recents,
    side by side (0 where there is none, or where it stands among newer ones already). items i32[6]: rows of these recents,
    -1 without one."""

    columns: F32
    items: I32


@kernel
def look_at(s: Scratch, t: Tables, recents: I32, query: F32, anchor: int, near: Near) -> None:
    """Fill `near` for a request. Needs its recents among the entries."""
    n, columns = len(recents), near.columns
    for d in range(len(query)):
        columns[d, 0] = query[d]
        columns[d, 1] = t.vectors[anchor, d] if anchor >= 0 else np.float32(0.0)
    for k in range(_NEAR):
        x = recents[n - 1 - k] if k < n else -1
        near.items[k] = x if x >= 0 and s.hot[entry_of(s, x), BACK] == k + 1 else -1
        for d in range(len(query)):
            columns[d, 2 + k] = t.vectors[x, d] if near.items[k] >= 0 else np.float32(0.0)


@kernel
def _products(near: F32, vector: F32, out: F32) -> None:
    """out f32[8]: inner products of a vector with the columns of `near`, even and odd places summed apart."""
    p0 = p1 = p2 = p3 = p4 = p5 = p6 = p7 = np.float32(0.0)
    q0 = q1 = q2 = q3 = q4 = q5 = q6 = q7 = np.float32(0.0)
    even = near.shape[0] - near.shape[0] % 2
    for d in range(0, even, 2):
        x, row = vector[d], near[d]
        p0 += row[0] * x
        p1 += row[1] * x
        p2 += row[2] * x
        p3 += row[3] * x
        p4 += row[4] * x
        p5 += row[5] * x
        p6 += row[6] * x
        p7 += row[7] * x
        y, next_row = vector[d + 1], near[d + 1]
        q0 += next_row[0] * y
        q1 += next_row[1] * y
        q2 += next_row[2] * y
        q3 += next_row[3] * y
        q4 += next_row[4] * y
        q5 += next_row[5] * y
        q6 += next_row[6] * y
        q7 += next_row[7] * y
    out[0], out[1], out[2], out[3] = p0 + q0, p1 + q1, p2 + q2, p3 + q3
    out[4], out[5], out[6], out[7] = p4 + q4, p5 + q5, p6 + q6, p7 + q7
    for d in range(even, near.shape[0]):
        for k in range(8):
            out[k] += near[d, k] * vector[d]


@kernel
def _compare(own: I32, products: F32, j: int, row: F32) -> None:
    """Embedding evidence of item row j from its products with the query, the anchor and the recents `own`."""
    row[_TASTE], row[_SIMILAR] = products[0], products[1]
    row[_SIM_LAST], row[_SIM_SECOND] = products[2], products[3]
    best, total, count = np.float32(-1.0), np.float32(0.0), 0
    for k in range(_NEAR):
        if own[k] >= 0 and own[k] != j:
            best = max(best, products[2 + k])
            total += products[2 + k]
            count += 1
    row[_SIM_MAX] = best
    row[_SIM_MEAN] = total / np.float32(max(count, 1))


@kernel
def _facts(s: Scratch, t: Tables, recents: I32, near: Near, out: F32) -> None:
    """out f32[5]: evidence that all candidates of the request share."""
    n, distinct = len(recents), 0
    for e in range(min(n, s.clock[1])):
        distinct += s.hot[e, BACK] != NOT_SEEN
    out[:] = np.float32(0.0)
    out[_MATCHED - _MATCHED] = np.float32(s.clock[2])
    out[_DISTINCT - _MATCHED] = np.float32(distinct)
    if n:
        newest = recents[n - 1]
        out[_NEWEST_TIMES - _MATCHED] = s.hot[entry_of(s, newest), TIMES]
        out[_NEWEST_RARITY - _MATCHED] = t.rarity[newest]
        if n > 1:
            second = t.vectors[recents[n - 2]]
            for d in range(len(second)):
                out[_NEWEST_COSINE - _MATCHED] += near.columns[d, 2] * second[d]


@kernel
def _fill(hot: F32, rarity: np.float32, total: np.float32, newest_total: np.float32, sessions: int, row: F32) -> None:
    """Fill the evidence row of one entry, all but what embeddings, relative scores and ranks say. total and newest_total:
    co-visits of the candidate and follow-ups of the newest recent, damped; 0: none. (Few and plain arguments: the tuples of
    arrays cost more to hand over, candidate by candidate, than all this.)"""
    row[_FOLLOW], row[_COVISITED], row[_SESSION], row[_AFTER] = hot[FOLLOW], hot[COVISITED], hot[SESSION], hot[AFTER]
    row[_LAST], row[_SECOND], row[_COVISITED_LAST] = hot[FOLLOW_LAST], hot[FOLLOW_SECOND], hot[COVISITED_LAST]
    row[_COUNT], row[_BEST], row[_NEXT] = hot[COUNT], hot[BEST], hot[NEXT]
    row[_BACK], row[_TIMES], row[_POPULAR] = hot[BACK], hot[TIMES], hot[POPULAR]
    row[_RECENT] = np.float32(1.0) / hot[BACK] if hot[BACK] != NOT_SEEN else np.float32(0.0)
    age = np.float32(sessions + 1) - hot[AGE]  # hot: number of the newest session, from 1
    row[_AGE] = age / np.float32(1000.0) if hot[AGE] > 0 else np.float32(0.0)
    row[_RARITY] = rarity
    row[_LAST_SHARE] = hot[FOLLOW_LAST] / newest_total if newest_total > 0 else np.float32(0.0)
    row[_REVERSE_SHARE] = hot[FOLLOW_LAST] / total if total > 0 else np.float32(0.0)


@kernel
def _rank(s: Scratch, count: int) -> None:
    """ranked f32[12, entries]: share of the best and rank per ranked source over one request's candidates, by place; of
    equals, the first ranks first."""
    bits = s.buffer.view(np.uint32)
    for c in range(_RANKED):
        share, rank = s.ranked[c], s.ranked[_RANKED + c]
        best, known = np.float32(0.0), 0
        for z in range(count):
            score = s.hot[s.chosen[z], c] if c < _BY_COUNTS else s.products[z, c - _BY_COUNTS]
            share[z], rank[z] = np.float32(0.0), NO_RANK
            if score > 0:
                best = max(best, score)
                share[z] = s.buffer[known] = score
                # Bits of positive floats rise with them; their complement above the place sorts best first.
                s.keys[known] = (np.uint64(~bits[known]) << np.uint64(32)) | np.uint64(z)
                known += 1
        s.keys[:known].sort()
        for at in range(known):
            z = int(s.keys[at] & np.uint64(0xFFFFFFFF))
            share[z] /= best
            rank[z] = np.float32(at + 1)


@kernel
def choose_and_order(s: Scratch, t: Tables, near: Near) -> int:
    """Entries with bits become candidates: their products and ranks, and in `keys` their order. The low 32 bits of a key are
    the item row; candidates come by falling blended score (`buffer`, by place), ties by row. Returns their number."""
    count = 0
    for e in range(s.clock[1]):
        if s.bits[e] != 0:
            s.chosen[count] = e
            s.place[e] = count
            count += 1
    # A loop of copies waits for many far rows at once; one that multiplies as it goes would wait for each.
    for z in range(count):
        vector = t.vectors[s.items[s.chosen[z]]]
        for d in range(len(vector)):
            s.vectors[z, d] = vector[d]
    for z in range(count):
        _products(near.columns, s.vectors[z], s.products[z])
    _rank(s, count)
    bits = s.buffer.view(np.uint32)
    for z in range(count):
        total = _POPULAR_WEIGHT * float(s.hot[s.chosen[z], POPULAR])
        for c in range(_RANKED):
            total += _BLEND[c] * float(s.ranked[c, z])
        s.buffer[z] = np.float32(total)
        s.keys[z] = (np.uint64(~bits[z]) << np.uint64(32)) | np.uint64(s.items[s.chosen[z]])
    s.keys[:count].sort()
    return count


@kernel
def describe(s: Scratch, t: Tables, near: Near, recents: I32, facts: F32, count: int, out: F32) -> None:
    """Evidence of the ordered candidates into out f32[count, columns]; facts f32[5]: memory."""
    _facts(s, t, recents, near, facts)
    newest = recents[len(recents) - 1] if len(recents) else len(t.follow_totals)
    newest_total = t.follow_totals[newest] + _DAMP if newest < len(t.follow_totals) else np.float32(0.0)
    for k in range(count):
        j = int(s.keys[k] & np.uint64(0xFFFFFFFF))
        entry = entry_of(s, j)
        place, row = s.place[entry], out[k]
        total = t.covisit_totals[j] + _DAMP if j < len(t.covisit_totals) else np.float32(0.0)
        _fill(s.hot[entry], t.rarity[j], total, newest_total, len(t.session_offsets) - 1, row)
        _compare(near.items, s.products[place], j, row)
        for c in range(2 * _RANKED):
            row[_RELATIVE + c] = s.ranked[c, place]
        for c in range(len(facts)):
            row[_MATCHED + c] = facts[c]
