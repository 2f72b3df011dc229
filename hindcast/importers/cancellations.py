"""Which purchases a shop's cancellation lines take back."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import numpy.typing as npt

__all__ = ["net_cancellations"]

I64 = npt.NDArray[np.int64]


def net_cancellations(key: I64, at: I64, quantity: I64, cancels: npt.NDArray[np.bool_]) -> tuple[I64, npt.NDArray[np.bool_]]:
    """Match cancellation lines to earlier purchase lines of the same key (customer and item; -1 never matches).

    key, at, quantity i64[n] (negative quantity on cancellation lines). A cancellation takes back the latest earlier purchase
    of exactly its quantity; where there is none, the latest earlier purchases one after the other, and it counts as matched
    only if they cover it. Returns what is left of every line's quantity (cancellation lines: 0), and bool[n]: cancellation
    lines that were matched.
    """
    left = np.where(cancels, 0, quantity)
    matched = np.zeros(len(key), np.bool_)
    interesting = np.isin(key, key[cancels & (key >= 0)]) & (key >= 0)
    bought: dict[int, list[int]] = defaultdict(list)
    # In time order; of one minute, purchases before cancellations.
    rows = np.flatnonzero(interesting)
    for row in rows[np.lexsort((rows, cancels[rows], at[rows]))].tolist():
        lines = bought[int(key[row])]
        if not cancels[row]:
            lines.append(row)
            continue
        wanted = -int(quantity[row])
        exact = next((one for one in reversed(lines) if left[one] == wanted), None)
        if exact is not None:
            left[exact] = 0
        elif sum(int(left[one]) for one in lines) >= wanted:
            _take_back(left, lines, wanted)
        else:
            continue
        matched[row] = True
    return left, matched


def _take_back(left: I64, lines: list[int], wanted: int) -> None:
    for one in reversed(lines):
        taken = min(wanted, int(left[one]))
        left[one] -= taken
        wanted -= taken
