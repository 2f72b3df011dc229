"""Evidence rows of the chosen entries, and the order retrieval puts them in."""

from __future__ import annotations

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

__all__ = ["describe", "order_by_blend"]

I32 = npt.NDArray[np.int32]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

_NEAR = 6  # newest recents compared by embedding
_DAMP = np.float32(3.0)  # co-visits that a share is damped by
_RANKED = len(RANKED)
_RELATIVE, _RANK = INDEX["follow_relative"], INDEX["follow_rank"]
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


@kernel
def _side_by_side(s: Scratch, t: Tables, recents: I32, query: F32, anchor: int, near: F32, own: I32) -> int:
    """Vectors that candidates are compared with, as columns of near f32[d, 8]: query, anchor, the newest recents (0 where
    there is none, or where it stands among newer ones already). own i32[6]: item rows of the recents' columns, -1 without
    one. Returns how many of these columns to look at."""
    n = len(recents)
    for d in range(near.shape[0]):
        near[d, 0] = query[d]
        near[d, 1] = t.vectors[anchor, d] if anchor >= 0 else np.float32(0.0)
    for k in range(_NEAR):
        x = recents[n - 1 - k] if k < n else -1
        own[k] = x if x >= 0 and s.hot[entry_of(s, x), BACK] == k + 1 else -1
        for d in range(near.shape[0]):
            near[d, 2 + k] = t.vectors[x, d] if own[k] >= 0 else np.float32(0.0)
    return min(n, _NEAR)


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
def _compare(own: I32, used: int, products: F32, j: int, row: F32) -> None:
    """Embedding evidence of item row j from its products with the query, the anchor and the recents."""
    row[_TASTE], row[_SIMILAR] = products[0], products[1]
    row[_SIM_LAST], row[_SIM_SECOND] = products[2], products[3]
    best, total, count = np.float32(-1.0), np.float32(0.0), 0
    for k in range(used):
        if own[k] >= 0 and own[k] != j:
            best = max(best, products[2 + k])
            total += products[2 + k]
            count += 1
    row[_SIM_MAX] = best
    row[_SIM_MEAN] = total / np.float32(max(count, 1))


@kernel
def _facts(s: Scratch, t: Tables, recents: I32, near: F32, products: F32, row: F32) -> None:
    """Evidence that all candidates of the request share."""
    n, distinct = len(recents), 0
    for e in range(min(n, s.clock[1])):
        distinct += s.hot[e, BACK] != NOT_SEEN
    row[_MATCHED] = np.float32(s.clock[2])
    row[_DISTINCT] = np.float32(distinct)
    row[_NEWEST_TIMES] = row[_NEWEST_RARITY] = row[_NEWEST_COSINE] = np.float32(0.0)
    if n:
        newest = recents[n - 1]
        row[_NEWEST_TIMES] = s.hot[entry_of(s, newest), TIMES]
        row[_NEWEST_RARITY] = t.rarity[newest]
        if n > 1:
            _products(near, t.vectors[recents[n - 2]], products)
            row[_NEWEST_COSINE] = products[2]


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
def _relative(rows: F32, keys: npt.NDArray[np.uint64], value: F32) -> None:
    """Share of the best and rank per ranked source, over one request's candidates; of equals, the first ranks first."""
    count = len(rows)
    bits = value.view(np.uint32)
    for c in range(_RANKED):
        best, known = np.float32(0.0), 0
        for z in range(count):
            score = rows[z, c]
            rows[z, _RELATIVE + c] = np.float32(0.0)
            rows[z, _RANK + c] = NO_RANK
            if score > 0:
                best = max(best, score)
                value[known] = score
                # Bits of positive floats rise with them; their complement above the row number sorts best first.
                keys[known] = (np.uint64(~bits[known]) << np.uint64(32)) | np.uint64(z)
                known += 1
        keys[:known].sort()
        for place in range(known):
            at = int(keys[place] & np.uint64(0xFFFFFFFF))
            rows[at, _RELATIVE + c] = rows[at, c] / best
            rows[at, _RANK + c] = np.float32(place + 1)


@kernel
def describe(s: Scratch, t: Tables, recents: I32, query: F32, anchor: int, near: F32, products: F32) -> int:
    """Fill `rows` for the entries with bits, `chosen`; returns their number. near f32[d, 8], products f32[8]: memory."""
    count = 0
    for e in range(s.clock[1]):
        if s.bits[e] != 0:
            s.chosen[count] = e
            s.place[e] = count
            count += 1
    if count == 0:
        return 0
    own = np.empty(_NEAR, np.int32)
    used = _side_by_side(s, t, recents, query, anchor, near, own)
    _facts(s, t, recents, near, products, s.rows[0])
    newest = recents[len(recents) - 1] if len(recents) else len(t.follow_totals)
    newest_total = t.follow_totals[newest] + _DAMP if newest < len(t.follow_totals) else np.float32(0.0)
    for z in range(count):
        row, entry = s.rows[z], s.chosen[z]
        for column in range(_MATCHED, len(row)):
            row[column] = s.rows[0, column]
        j = s.items[entry]
        total = t.covisit_totals[j] + _DAMP if j < len(t.covisit_totals) else np.float32(0.0)
        _fill(s.hot[entry], t.rarity[j], total, newest_total, len(t.session_offsets) - 1, row)
        _products(near, t.vectors[j], products)
        _compare(own, used, products, j, row)
    _relative(s.rows[:count], s.keys, s.buffer)
    return count


@kernel
def order_by_blend(s: Scratch, count: int) -> None:
    """Sort `keys`: their low 32 bits give item rows by falling blended score, ties by row. `buffer` holds the blend by
    place in `chosen`."""
    bits = s.buffer.view(np.uint32)
    for z in range(count):
        row = s.rows[z]
        total = _POPULAR_WEIGHT * float(row[_POPULAR])
        for c in range(_RANKED):
            total += _BLEND[c] * float(row[_RELATIVE + c])
        s.buffer[z] = np.float32(total)
        s.keys[z] = (np.uint64(~bits[z]) << np.uint64(32)) | np.uint64(s.items[s.chosen[z]])
    s.keys[:count].sort()
