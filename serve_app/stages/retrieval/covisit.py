"""Windowed co-visitation: which items follow, or surround, which within a few steps of one session.

A click at distance g of another adds ``decay ** (g - 1) * exp(-recency * age)``, age being the share of sessions that came
later. `forward` counts only later clicks (a repeat of the item itself among them), otherwise both sides. Rows keep their
best `neighbours`; `totals` are the row sums before that cut.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serve_app.kernels import kernel
from serve_app.stages.retrieval.sessions import SessionIndex

__all__ = ["Covisits", "build_covisits"]

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Covisits:
    """CSR over items: `neighbours` i32, `weights` f32 of row a at offsets[a]:offsets[a + 1], best first; totals f32[n]."""

    offsets: I64
    neighbours: I32
    weights: F32
    totals: F32


@kernel
def _count_row(
    item: int, items: I32, offsets: I64, first: I64, sessions: I32, positions: npt.NDArray[np.int16],
    decay: float, forward: bool, recency: float, window: int, weight: npt.NDArray[np.float64], touched: I32,
) -> int:  # fmt: skip
    """Add up the neighbours of one item into `weight` (dense, zero before); returns how many were touched."""
    count, session_count = 0, len(offsets) - 1
    for c in range(first[item], first[item + 1]):
        s = sessions[c]
        fresh = np.exp(-recency * (session_count - 1 - s) / session_count)
        here = offsets[s] + positions[c]
        low = here + 1 if forward else max(offsets[s], here - window)
        for q in range(low, min(offsets[s + 1], here + window + 1)):
            other = items[q]
            if q == here or (other == item and not forward):
                continue
            if weight[other] == 0.0:
                touched[count] = other
                count += 1
            weight[other] += fresh * decay ** (abs(q - here) - 1)
    return count


@kernel
def _count_all(
    items: I32, offsets: I64, first: I64, sessions: I32, positions: npt.NDArray[np.int16],
    decay: float, forward: bool, recency: float, window: int, keep: int,
    counts: I64, neighbours: I32, weights: F32, totals: F32,
) -> None:  # fmt: skip
    item_count = len(first) - 1
    weight = np.zeros(item_count, np.float64)
    touched = np.empty(item_count, np.int32)
    for item in range(item_count):
        count = _count_row(
            item, items, offsets, first, sessions, positions, decay, forward, recency, window, weight, touched
        )
        # Ascending item order first, then a stable sort by weight: ties never depend on the order of touching.
        found = np.sort(touched[:count])
        negative = np.empty(count, np.float64)
        total = 0.0
        for k in range(count):
            negative[k] = -weight[found[k]]
            total += weight[found[k]]
            weight[found[k]] = 0.0
        order = np.argsort(negative, kind="mergesort")
        totals[item] = total
        counts[item] = min(count, keep)
        for k in range(min(count, keep)):
            neighbours[item * keep + k] = found[order[k]]
            weights[item * keep + k] = -negative[order[k]]


def build_covisits(
    index: SessionIndex, *, window: int, decay: float, forward: bool, recency: float, neighbours: int
) -> Covisits:
    """Count over all sessions of the index."""
    item_count = len(index.item_offsets) - 1
    counts = np.zeros(item_count, np.int64)
    found = np.zeros(item_count * neighbours, np.int32)
    weights = np.zeros(item_count * neighbours, np.float32)
    totals = np.zeros(item_count, np.float32)
    _count_all(
        index.items, index.offsets, index.item_offsets, index.item_sessions, index.item_positions,
        decay, forward, recency, window, neighbours, counts, found, weights, totals,
    )  # fmt: skip
    offsets = np.zeros(item_count + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    used = np.arange(neighbours)[None, :] < counts[:, None]
    return Covisits(offsets, found[used.ravel()], weights[used.ravel()], totals)
