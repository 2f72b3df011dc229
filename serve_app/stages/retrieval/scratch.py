"""Reusable memory of the retrieval kernel: a request's entries in a small open-addressing map (item row -> entry).

Work grows with what a request touches and not with the catalogue: nothing is cleared between requests, because every map
slot carries the stamp of the request that wrote it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from serve_app.kernels import kernel
from serve_app.stages.retrieval.evidence import RANKED

__all__ = [
    "AFTER", "AGE", "BACK", "BEST", "COUNT", "COVISITED", "COVISITED_LAST", "FOLLOW", "FOLLOW_LAST", "FOLLOW_SECOND",
    "MAX_ENTRIES", "MAX_SESSIONS", "NEXT", "NOT_SEEN", "POPULAR", "SESSION", "TIMES", "Scratch", "begin_request", "entry_of",
    "session_of",
]  # fmt: skip

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]

MAX_ENTRIES = 16_384
MAX_SESSIONS = 16_384
_MAP = 65_536  # slots: a power of two, several times MAX_ENTRIES and MAX_SESSIONS
_SPREAD = 40_503  # odd: multiplying spreads neighbouring rows, and no two of the low 16 bits meet

# Columns of `Scratch.hot`: what sources add up while they run, one cache line per entry.
FOLLOW, COVISITED, SESSION, AFTER = 0, 1, 2, 3
FOLLOW_LAST, FOLLOW_SECOND, COVISITED_LAST = 4, 5, 6
COUNT, BEST, AGE, NEXT = 7, 8, 9, 10
BACK, TIMES, POPULAR = 11, 12, 13
_HOT = 16
NOT_SEEN = np.float32(99.0)  # BACK of an item that is not among the recents


class Scratch(NamedTuple):
    """One thread's memory.

    map, session_map i64[slots, 2]: ``stamp << 32 | item row (or session)``, entry. hot f32[entries, 16]: running sums
    (columns above). bits: sources that chose the entry. chosen: entries that became candidates; place: where they stand in
    it. By place: vectors, their products with the request's, and ranked f32[12, entries], shares and ranks. clock: stamp,
    entries used, sessions used.
    """

    map: I64
    items: I32
    bits: npt.NDArray[np.uint32]
    hot: F32
    session_map: I64
    sessions: I32
    session_score: F32
    session_back: I32
    session_match: I32
    buffer: F32
    keys: npt.NDArray[np.uint64]
    chosen: I32
    place: I32
    vectors: F32
    products: F32
    ranked: F32
    clock: I64

    @classmethod
    def fresh(cls, dimensions: int) -> Scratch:
        """New memory for embeddings of this length, about 5 MB and what their copies take."""
        return cls(
            map=np.zeros((_MAP, 2), np.int64),
            items=np.empty(MAX_ENTRIES, np.int32),
            bits=np.empty(MAX_ENTRIES, np.uint32),
            hot=np.empty((MAX_ENTRIES, _HOT), np.float32),
            session_map=np.zeros((_MAP, 2), np.int64),
            sessions=np.empty(MAX_SESSIONS, np.int32),
            session_score=np.empty(MAX_SESSIONS, np.float32),
            session_back=np.empty(MAX_SESSIONS, np.int32),
            session_match=np.empty(MAX_SESSIONS, np.int32),
            buffer=np.empty(max(MAX_ENTRIES, MAX_SESSIONS), np.float32),
            keys=np.empty(MAX_ENTRIES, np.uint64),
            chosen=np.empty(MAX_ENTRIES, np.int32),
            place=np.empty(MAX_ENTRIES, np.int32),
            vectors=np.empty((MAX_ENTRIES, dimensions), np.float32),
            products=np.empty((MAX_ENTRIES, 8), np.float32),
            ranked=np.empty((2 * len(RANKED), MAX_ENTRIES), np.float32),
            clock=np.zeros(3, np.int64),
        )


@kernel
def begin_request(s: Scratch) -> None:
    """Forget the request before."""
    s.clock[0] += 1
    s.clock[1] = 0
    s.clock[2] = 0


@kernel
def entry_of(s: Scratch, item: int) -> int:
    """Entry of an item row in the current request, made when new; -1 when full."""
    key = (s.clock[0] << 32) | item
    slot = (item * _SPREAD) & (_MAP - 1)
    while (s.map[slot, 0] >> 32) == s.clock[0]:
        if s.map[slot, 0] == key:
            return int(s.map[slot, 1])
        slot = (slot + 1) & (_MAP - 1)
    entry = s.clock[1]
    if entry >= MAX_ENTRIES:
        return -1
    s.clock[1] = entry + 1
    s.map[slot, 0] = key
    s.map[slot, 1] = entry
    s.items[entry] = item
    s.bits[entry] = 0
    for column in range(_HOT):
        s.hot[entry, column] = np.float32(0.0)
    s.hot[entry, BACK] = NOT_SEEN
    return int(entry)


@kernel
def session_of(s: Scratch, session: int) -> int:
    """Place of a past session among those of the current request; a new one has score 0 and back 0. -1 when full."""
    key = (s.clock[0] << 32) | session
    slot = (session * _SPREAD) & (_MAP - 1)
    while (s.session_map[slot, 0] >> 32) == s.clock[0]:
        if s.session_map[slot, 0] == key:
            return int(s.session_map[slot, 1])
        slot = (slot + 1) & (_MAP - 1)
    place = s.clock[2]
    if place >= MAX_SESSIONS:
        return -1
    s.clock[2] = place + 1
    s.session_map[slot, 0] = key
    s.session_map[slot, 1] = place
    s.sessions[place] = session
    s.session_score[place] = np.float32(0.0)
    s.session_back[place] = 0
    return int(place)
