"""Session index: past sessions and, per item, the sessions that hold it, oldest first.

Neighbouring sessions are found as in VSKNN / STAN (Ludewig and Jannach 2018; Garg et al. 2019): sessions sharing recent
items, newer shared items and newer sessions weighing more, long sessions less.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serve_app.kernels import kernel

__all__ = ["SessionIndex", "build_session_index"]

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SessionIndex:
    """items i32[k] of sessions offsets i64[s + 1], oldest session first; occurrences of item a: sessions i32 and
    positions i16 at item_offsets[a]:item_offsets[a + 1], oldest first."""

    items: I32
    offsets: I64
    item_offsets: I64
    item_sessions: I32
    item_positions: npt.NDArray[np.int16]


@kernel
def _invert(items: I32, offsets: I64, cursor: I64, sessions: I32, positions: npt.NDArray[np.int16]) -> None:
    for s in range(len(offsets) - 1):
        for k in range(offsets[s], offsets[s + 1]):
            slot = cursor[items[k]]
            sessions[slot] = s
            positions[slot] = min(k - offsets[s], 32_767)
            cursor[items[k]] += 1


def build_session_index(items: I32, offsets: I64, item_count: int) -> SessionIndex:
    """Invert the sessions."""
    counts = np.bincount(items, minlength=item_count)
    item_offsets = np.zeros(item_count + 1, np.int64)
    np.cumsum(counts, out=item_offsets[1:])
    sessions, positions = np.empty(len(items), np.int32), np.empty(len(items), np.int16)
    _invert(items, offsets, item_offsets[:-1].copy(), sessions, positions)
    return SessionIndex(items, offsets, item_offsets, sessions, positions)
