"""Quotas: which entries each source makes candidates."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from serve_app.kernels import kernel
from serve_app.stages.retrieval.scratch import BACK, NOT_SEEN, Scratch, entry_of

__all__ = ["choose_best", "choose_listed", "choose_recent", "threshold"]

I32 = npt.NDArray[np.int32]
F32 = npt.NDArray[np.float32]


@kernel
def threshold(values: F32, count: int) -> float:
    """The count-th largest of values (scrambled in place; quickselect); -inf when there are not more than `count`."""
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
def choose_best(s: Scratch, column: int, bit: int, quota: int) -> None:
    """Give the source's bit to its best `quota` entries with a positive score; of equals, the ones touched first."""
    if quota <= 0:
        return
    used, count = s.clock[1], 0
    for e in range(used):
        value = s.hot[e, column]
        if value > 0:
            s.buffer[count] = value
            count += 1
    if count == 0:
        return
    limit = max(threshold(s.buffer[:count], quota), 0.0)
    given = 0
    for e in range(used):
        value = s.hot[e, column]
        if value >= limit and value > 0 and given < quota:
            s.bits[e] |= np.uint32(bit)
            given += 1


@kernel
def choose_listed(s: Scratch, rows: I32, bit: int, quota: int) -> None:
    """Give the bit to the first `quota` items of a list that is in order already and ends at row -1."""
    for k in range(min(quota, len(rows))):
        if rows[k] < 0:
            break
        e = entry_of(s, rows[k])
        if e < 0:
            return
        s.bits[e] |= np.uint32(bit)


@kernel
def choose_recent(s: Scratch, bit: int, quota: int) -> None:
    """Give the bit to the newest `quota` distinct recents: they are the first entries, newest first."""
    for e in range(min(quota, s.clock[1])):
        if s.hot[e, BACK] == NOT_SEEN:
            return
        s.bits[e] |= np.uint32(bit)
