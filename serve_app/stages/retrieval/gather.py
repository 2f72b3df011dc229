"""The retrieval kernel: for each request, collect evidence from every source, choose by quota, emit candidates.

A request's entries live in a small open-addressing map (item row -> entry), so that work grows with what is touched and not
with the catalogue. Everything runs in a fixed order per request: the answer for one is the same among thousands.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from serve_app.kernels import kernel
from serve_app.stages.retrieval.evidence import EVIDENCE, INDEX, NO_RANK, RANKED

__all__ = ["Lists", "Scratch", "Tables", "gather"]

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
U32 = npt.NDArray[np.uint32]

RECENTS_USED = 12
MAX_ENTRIES = 16_384
_MAP = 65_536  # a power of two, several times MAX_ENTRIES
_SESSION_MAP = 65_536
MAX_SESSIONS = 16_384
_WIDTH = len(EVIDENCE)

_FOLLOW, _COVISITED, _SESSION, _SESSION_AFTER, _TASTE, _SIMILAR, _POPULAR, _RECENT = range(8)
_RELATIVE, _RANK = INDEX["follow_relative"], INDEX["follow_rank"]
_LAST, _SECOND = INDEX["follow_last"], INDEX["follow_second"]
_LAST_SHARE, _REVERSE_SHARE = INDEX["follow_last_share"], INDEX["follow_last_reverse_share"]
_COV_LAST = INDEX["covisited_last"]
_SIM_LAST, _SIM_SECOND = INDEX["similar_last"], INDEX["similar_second"]
_SIM_MAX, _SIM_MEAN = INDEX["similar_max"], INDEX["similar_mean"]
_COUNT, _BEST, _AGE, _NEXT = INDEX["session_count"], INDEX["session_best"], INDEX["session_age"], INDEX["session_next"]
_BACK, _TIMES, _GAP = INDEX["steps_back"], INDEX["times_seen"], INDEX["first_seen_gap"]
_RANKED = len(RANKED)
# Bits of serve_app.vocabulary.Source by quota column: similar, taste, covisited, session, popular, recent, fresh.
_BITS = np.array([1, 2, 4, 8, 16, 32, 128], np.uint32)
_DECAY, _SESSION_DECAY, _SESSION_DISTANCE, _SESSION_RECENCY = 0.8, 0.6, 0.85, 1.0
_PER_ITEM, _KEPT_SESSIONS = 1_500, 500


class Tables(NamedTuple):
    """Immutable arrays of a release (see serve_app.stages.retrieval.tables), side rows appended to the per-item ones."""

    vectors: F32
    follow_offsets: I64
    follow_items: I32
    follow_weights: F32
    follow_totals: F32
    covisit_offsets: I64
    covisit_items: I32
    covisit_weights: F32
    covisit_totals: F32
    session_items: I32
    session_offsets: I64
    item_offsets: I64
    item_sessions: I32
    item_positions: npt.NDArray[np.int16]
    item_idf: F32
    first_seen: F32


class Lists(NamedTuple):
    """Per-request lists from outside the kernel, [n, k], padded with row -1: embedding neighbours of the anchor and of the
    recents, popular, fresh (side) items; `queries` f32[n, d] the session embedding (zero: none)."""

    similar: I32
    taste: I32
    popular: I32
    popular_scores: F32
    fresh: I32
    queries: F32
    anchors: I32


class Scratch(NamedTuple):
    """Reusable memory of one thread; stamps make clearing unnecessary."""

    map_stamp: I64
    map_entry: I32
    items: I32
    score: F32
    bits: U32
    session_stamp: I64
    session_entry: I32
    sessions: I32
    session_score: F32
    session_back: I32
    session_match: I32
    clock: I64

    @classmethod
    def fresh(cls) -> Scratch:
        """New memory, about 6 MB."""
        return cls(
            np.zeros(_MAP, np.int64), np.empty(_MAP, np.int32), np.empty(MAX_ENTRIES, np.int32),
            np.empty((MAX_ENTRIES, _WIDTH), np.float32), np.empty(MAX_ENTRIES, np.uint32),
            np.zeros(_SESSION_MAP, np.int64), np.empty(_SESSION_MAP, np.int32), np.empty(MAX_SESSIONS, np.int32),
            np.empty(MAX_SESSIONS, np.float32), np.empty(MAX_SESSIONS, np.int32), np.empty(MAX_SESSIONS, np.int32),
            np.zeros(3, np.int64),
        )  # fmt: skip


# clock[0]: stamp of the current request; clock[1]: entries used; clock[2]: sessions used.


@kernel
def _entry(s: Scratch, item: int) -> int:
    """Entry of an item in the current request, made when new; -1 when full."""
    stamp = s.clock[0]
    slot = (item * 40503) & (_MAP - 1)
    while s.map_stamp[slot] == stamp:
        if s.items[s.map_entry[slot]] == item:
            return int(s.map_entry[slot])
        slot = (slot + 1) & (_MAP - 1)
    entry = s.clock[1]
    if entry >= MAX_ENTRIES:
        return -1
    s.clock[1] = entry + 1
    s.map_stamp[slot] = stamp
    s.map_entry[slot] = entry
    s.items[entry] = item
    s.bits[entry] = 0
    s.score[entry, :] = np.float32(0.0)
    s.score[entry, _BACK] = np.float32(99.0)
    return int(entry)


@kernel
def _covisits(s: Scratch, t: Tables, recents: I32, used: int) -> None:
    """Evidence of both co-visit tables over the recent items, newest first."""
    n = len(recents)
    last = recents[n - 1]
    for k in range(used):
        x = recents[n - 1 - k]
        if s.score[_entry(s, x), _BACK] != k + 1 or x >= len(t.follow_totals):
            continue  # an older sight of an item already used, or an item newer than the release
        weight = np.float32(_DECAY**k)
        for c in range(t.follow_offsets[x], t.follow_offsets[x + 1]):
            e = _entry(s, t.follow_items[c])
            if e < 0:
                break
            s.score[e, _FOLLOW] += weight * t.follow_weights[c] / (t.follow_totals[x] + np.float32(3.0))
            if x == last:
                s.score[e, _LAST] = t.follow_weights[c]
            elif n > 1 and x == recents[n - 2]:
                s.score[e, _SECOND] = t.follow_weights[c]
        for c in range(t.covisit_offsets[x], t.covisit_offsets[x + 1]):
            j = t.covisit_items[c]
            e = _entry(s, j)
            if e < 0:
                break
            norm = np.sqrt((t.covisit_totals[x] + np.float32(5.0)) * (t.covisit_totals[j] + np.float32(5.0)))
            value = t.covisit_weights[c] / norm
            s.score[e, _COVISITED] += weight * value
            if k == 0:
                s.score[e, _COV_LAST] = value


@kernel
def _match_sessions(s: Scratch, t: Tables, recents: I32, used: int) -> None:
    """Find past sessions that share recent items; scores in session_score."""
    n, stamp = len(recents), s.clock[0]
    for k in range(used):
        x = recents[n - 1 - k]
        if s.score[_entry(s, x), _BACK] != k + 1 or x >= len(t.item_idf):
            continue
        weight = np.float32(_SESSION_DECAY**k) * t.item_idf[x]
        previous = -1
        for c in range(t.item_offsets[x + 1] - 1, max(t.item_offsets[x], t.item_offsets[x + 1] - _PER_ITEM) - 1, -1):
            session = t.item_sessions[c]
            if session == previous:
                continue
            previous = session
            slot = (session * 40503) & (_SESSION_MAP - 1)
            while s.session_stamp[slot] == stamp and s.sessions[s.session_entry[slot]] != session:
                slot = (slot + 1) & (_SESSION_MAP - 1)
            if s.session_stamp[slot] != stamp:
                e = s.clock[2]
                if e >= MAX_SESSIONS:
                    return
                s.clock[2] = e + 1
                s.session_stamp[slot] = stamp
                s.session_entry[slot] = e
                s.sessions[e] = session
                s.session_score[e] = np.float32(0.0)
                s.session_back[e] = k + 1
                s.session_match[e] = t.item_positions[c]
            s.session_score[s.session_entry[slot]] += weight


@kernel
def _threshold(values: F32, count: int) -> float:
    """The count-th largest of values (scrambled in place); -inf when there are not more than `count`."""
    low, high = 0, len(values) - 1
    if count > high:
        return -np.inf
    k = count - 1
    while low < high:
        pivot = values[(low + high) >> 1]
        i, j = low, high
        while i <= j:
            while values[i] > pivot:
                i += 1
            while values[j] < pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if k <= j:
            high = j
        elif k >= i:
            low = i
        else:
            break
    return float(values[k])


@kernel
def _session_items(s: Scratch, t: Tables) -> None:
    """Evidence of the best matching sessions' items."""
    found, total = s.clock[2], len(t.session_offsets) - 1
    for z in range(found):
        session = s.sessions[z]
        length = float(t.session_offsets[session + 1] - t.session_offsets[session])
        s.session_score[z] *= np.float32(np.exp(-_SESSION_RECENCY * (total - 1 - session) / total) / np.sqrt(length))
    limit = _threshold(s.session_score[:found].copy(), _KEPT_SESSIONS)
    for z in range(found):
        weight = s.session_score[z]
        if weight < limit:
            continue
        session = s.sessions[z]
        begin = t.session_offsets[session]
        after = np.float32(0.9 ** (s.session_back[z] - 1))
        for q in range(begin, t.session_offsets[session + 1]):
            distance = q - begin - s.session_match[z]
            if distance == 0:
                continue
            e = _entry(s, t.session_items[q])
            if e < 0:
                return
            part = weight * np.float32(_SESSION_DISTANCE ** (abs(distance) - 1))
            row = s.score[e]
            row[_SESSION] += part
            row[_COUNT] += np.float32(1.0)
            row[_BEST] = max(row[_BEST], weight)
            row[_AGE] = max(row[_AGE], np.float32(session + 1))  # newest session; turned into an age at emission
            if distance > 0:
                row[_SESSION_AFTER] += part * after
                if distance == 1 and s.session_back[z] == 1:
                    row[_NEXT] += np.float32(1.0)


@kernel
def _dot(a: F32, b: F32) -> float:
    """Inner product in eight interleaved partial sums of fixed order (so that it vectorizes and never varies)."""
    p0 = p1 = p2 = p3 = p4 = p5 = p6 = p7 = np.float32(0.0)
    n = len(a)
    full = n - n % 8
    for d in range(0, full, 8):
        p0 += a[d] * b[d]
        p1 += a[d + 1] * b[d + 1]
        p2 += a[d + 2] * b[d + 2]
        p3 += a[d + 3] * b[d + 3]
        p4 += a[d + 4] * b[d + 4]
        p5 += a[d + 5] * b[d + 5]
        p6 += a[d + 6] * b[d + 6]
        p7 += a[d + 7] * b[d + 7]
    for d in range(full, n):
        p0 += a[d] * b[d]
    return float(((p0 + p1) + (p2 + p3)) + ((p4 + p5) + (p6 + p7)))


@kernel
def _choose(s: Scratch, column: int, bit: int, quota: int, buffer: F32) -> None:
    """Give the source's bit to its best `quota` entries with a positive score."""
    if quota <= 0:
        return
    count = 0
    for e in range(s.clock[1]):
        if s.score[e, column] > 0:
            buffer[count] = s.score[e, column]
            count += 1
    limit = _threshold(buffer[:count], quota) if count else np.inf
    given = 0
    for e in range(s.clock[1]):
        if s.score[e, column] > 0 and s.score[e, column] >= limit and given < quota:
            s.bits[e] |= np.uint32(bit)
            given += 1


@kernel
def _take_list(s: Scratch, rows: I32, bit: int, quota: int) -> None:
    """Give the bit to the first `quota` items of a list that is in order already."""
    for k in range(min(quota, len(rows))):
        if rows[k] < 0:
            break
        e = _entry(s, rows[k])
        if e < 0:
            return
        s.bits[e] |= np.uint32(bit)


@kernel
def _similarities(s: Scratch, t: Tables, recents: I32, query: F32, anchor: int, entry: int, near: int) -> None:
    """Embedding evidence of one chosen entry."""
    j, n = s.items[entry], len(recents)
    row = s.score[entry]
    row[_TASTE] = _dot(query, t.vectors[j])
    if anchor >= 0:
        row[_SIMILAR] = _dot(t.vectors[anchor], t.vectors[j])
    best, total, count = -1.0, 0.0, 0
    for k in range(min(near, n)):
        x = recents[n - 1 - k]
        if s.score[_entry(s, x), _BACK] != k + 1:
            continue
        cosine = _dot(t.vectors[x], t.vectors[j])
        if k == 0:
            row[_SIM_LAST] = cosine
        elif k == 1:
            row[_SIM_SECOND] = cosine
        if x != j:
            best = max(best, cosine)
            total += cosine
            count += 1
    row[_SIM_MAX] = best
    row[_SIM_MEAN] = total / max(count, 1)


@kernel
def _finish(s: Scratch, t: Tables, recents: I32, entry: int) -> None:
    """Ratios that need the whole request."""
    row, j = s.score[entry], s.items[entry]
    if row[_AGE] > 0:
        row[_AGE] = (np.float32(len(t.session_offsets)) - row[_AGE]) / np.float32(1000.0)
    if len(recents):
        last = recents[len(recents) - 1]
        if last < len(t.follow_totals):
            row[_LAST_SHARE] = row[_LAST] / (t.follow_totals[last] + np.float32(3.0))
        if j < len(t.covisit_totals):
            row[_REVERSE_SHARE] = row[_LAST] / (t.covisit_totals[j] + np.float32(3.0))
        row[_GAP] = abs(t.first_seen[j] - t.first_seen[last]) / np.float32(1000.0)


@kernel
def _relative(out: F32, key: F32) -> None:
    """Share of the best and rank per ranked source, over one request's candidates."""
    count = len(out)
    for c in range(_RANKED):
        best = np.float32(0.0)
        for z in range(count):
            key[z] = -out[z, c]
            best = max(best, out[z, c])
        order = np.argsort(key[:count], kind="mergesort")
        for place in range(count):
            z = order[place]
            known = out[z, c] > 0
            out[z, _RELATIVE + c] = out[z, c] / best if known else np.float32(0.0)
            out[z, _RANK + c] = np.float32(place + 1) if known else NO_RANK


@kernel
def _one(s: Scratch, t: Tables, lists: Lists, r: int, recents: I32, quota: I32, buffer: F32) -> None:
    """Collect and choose for request r: entries with bits are its candidates."""
    s.clock[0] += 1
    s.clock[1] = 0
    s.clock[2] = 0
    n = len(recents)
    used = min(n, RECENTS_USED)
    for k in range(n):
        e = _entry(s, recents[n - 1 - k])
        if e >= 0:
            s.score[e, _TIMES] += np.float32(1.0)
            if s.score[e, _BACK] == np.float32(99.0):
                s.score[e, _BACK] = np.float32(k + 1)
                s.score[e, _RECENT] = np.float32(1.0 / (1.0 + k))
    if n:
        if quota[2] > 0:
            _covisits(s, t, recents, used)
        if quota[3] > 0:
            _match_sessions(s, t, recents, used)
            _session_items(s, t)
    for k in range(lists.popular.shape[1]):
        if lists.popular[r, k] < 0:
            break
        e = _entry(s, lists.popular[r, k])
        if e >= 0:
            s.score[e, _POPULAR] = lists.popular_scores[r, k]
    _take_list(s, lists.similar[r], 1, quota[0])
    _take_list(s, lists.taste[r], 2, quota[1])
    _choose(s, _FOLLOW, 4, quota[2], buffer)
    _choose(s, _COVISITED, 4, quota[2], buffer)
    _choose(s, _SESSION, 8, quota[3], buffer)
    _choose(s, _SESSION_AFTER, 8, quota[3], buffer)
    _take_list(s, lists.popular[r], 16, quota[4])
    _choose(s, _RECENT, 32, quota[5], buffer)
    _take_list(s, lists.fresh[r], 128, quota[6])


@kernel
def gather(
    s: Scratch, t: Tables, lists: Lists, recents: I32, recent_offsets: I64, quotas: I32, near: int,
    out_items: I32, out_bits: U32, out_score: F32, out_offsets: I64,
) -> int:  # fmt: skip
    """Fill candidates of all requests; returns how many requests fitted the output (the caller grows it and goes on).

    recents i32 with recent_offsets i64[n + 1], oldest first; quotas i32[n, len(QUOTA_SOURCES)]; near: recents compared by
    embedding; out_*: one row per candidate, in order of touching within a request.
    """
    written = 0
    buffer = np.empty(MAX_ENTRIES, np.float32)
    for r in range(len(recent_offsets) - 1):
        own = recents[recent_offsets[r] : recent_offsets[r + 1]]
        _one(s, t, lists, r, own, quotas[r], buffer)
        begin, total = written, 0
        for e in range(s.clock[1]):
            total += s.bits[e] != 0
        if begin + total > len(out_items):
            return r
        for e in range(s.clock[1]):
            if s.bits[e] != 0:
                _similarities(s, t, own, lists.queries[r], lists.anchors[r], e, near)
                _finish(s, t, own, e)
                out_items[written] = s.items[e]
                out_bits[written] = s.bits[e]
                out_score[written] = s.score[e]
                written += 1
        _relative(out_score[begin:written], buffer)
        out_offsets[r + 1] = written
    return len(recent_offsets) - 1
