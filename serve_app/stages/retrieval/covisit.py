"""Windowed co-visitation: which items follow or surround which, within a few steps of one session.

Build: every ordered pair (a, b) of a session at distance g <= window adds ``decay ** (g - 1)`` forward and `backward` times
that in the other direction; a pair of one session counts once at its closest distance class. Rows keep their best
`neighbours` entries. Serving: the rows of the last few items of the session are added up, newest weighing most.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serve_app.kernels import kernel

__all__ = ["Covisits", "build_covisits"]

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Covisits:
    """CSR over items: `neighbours` i32[k] and `weights` f32[k] of row a stand at offsets[a]:offsets[a + 1], best first."""

    offsets: I64
    neighbours: I32
    weights: F32


@kernel
def _pairs(
    items: I32, offsets: I64, boost: F32, window: int, decay: float, backward: float, left: I32, right: I32, weight: F32
) -> int:
    count = 0
    for s in range(len(offsets) - 1):
        begin, end = offsets[s], offsets[s + 1]
        for i in range(begin, end):
            factor = 1.0
            for j in range(i + 1, min(i + 1 + window, end)):
                if items[i] != items[j]:
                    left[count], right[count], weight[count] = items[i], items[j], factor * boost[s]
                    left[count + 1], right[count + 1], weight[count + 1] = items[j], items[i], factor * backward * boost[s]
                    count += 2
                factor *= decay
    return count


def _capacity(offsets: I64, window: int) -> int:
    lengths = np.diff(offsets)
    inside = np.minimum(lengths - 1, window).clip(0)
    # sum over i of min(window, n - 1 - i), both directions
    total = np.where(
        lengths > window, window * (lengths - window) + window * (window - 1) // 2, lengths * (lengths - 1) // 2
    )
    return int(2 * np.where(inside > 0, total, 0).sum())


def build_covisits(
    items: I32, offsets: I64, boost: F32, *, item_count: int, window: int, decay: float, backward: float, neighbours: int
) -> Covisits:
    """items i32[k] of sessions `offsets` i64[s + 1] in click order; boost f32[s] weighs sessions (late ones more)."""
    size = _capacity(offsets, window)
    left, right = np.empty(size, np.int32), np.empty(size, np.int32)
    weight = np.empty(size, np.float32)
    used = _pairs(items, offsets, boost, window, decay, backward, left, right, weight)
    key = left[:used].astype(np.int64) * item_count + right[:used]
    order = np.argsort(key, kind="stable")
    key = key[order]
    starts = np.flatnonzero(np.r_[True, key[1:] != key[:-1]]) if used else np.empty(0, np.int64)
    total = np.add.reduceat(weight[:used][order].astype(np.float64), starts) if used else np.empty(0)
    pair = key[starts]
    row, column = pair // item_count, (pair % item_count).astype(np.int32)
    order = np.lexsort((column, -total, row))
    row, column, total = row[order], column[order], total[order]
    first = np.searchsorted(row, np.arange(item_count))
    rank = np.arange(len(row)) - first[row]
    keep = rank < neighbours
    counts = np.bincount(row[keep], minlength=item_count)
    out = np.zeros(item_count + 1, np.int64)
    np.cumsum(counts, out=out[1:])
    return Covisits(out, column[keep], total[keep].astype(np.float32))
