"""Counting a million decisions in one pass: the loops under `simulators.replay.counts`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.kernels import kernel

__all__ = ["DAY_US", "by_code_and_day", "count_decisions", "first_differences", "rows_that_differ"]

I64 = npt.NDArray[np.int64]
I8 = npt.NDArray[np.int8]
Bools = npt.NDArray[np.bool_]

DAY_US = 86_400_000_000


@kernel
def count_decisions(
    rows: I64, at: I64, action: I8, reason: I8, owner: I64, start: int, end: int, first_day: int, counts: I64, present: Bools
) -> None:
    """counts i64[days, actions, reasons] from `first_day` on; present bool[users]: whoever has a decision in the window."""
    for i in range(len(rows)):
        if start <= at[i] < end:
            counts[at[i] // DAY_US - first_day, action[i], reason[i]] += 1
            present[owner[rows[i]]] = True


@kernel
def rows_that_differ(
    logged_at: I64, logged_action: I8, rows: I64, at: I64, action: I8, logged_rows: I64, logged_decision: I64,
    logged_candidate: I64, send_decision: I64, send_candidate: I64, differs: Bools,
) -> None:  # fmt: skip
    """differs bool[n]: logged requests that came out another way, or were not asked at their time."""
    differs[:] = True
    for i in range(len(rows)):
        row = rows[i]
        if at[i] == logged_at[row] and action[i] == logged_action[row]:
            differs[row] = False
    first = np.full(len(differs), -1, np.int64)
    for s in range(len(send_decision) - 1, -1, -1):
        first[rows[send_decision[s]]] = send_candidate[s]
    for s in range(len(logged_decision) - 1, -1, -1):
        row = logged_rows[logged_decision[s]]
        if s == 0 or logged_rows[logged_decision[s - 1]] != row:
            if first[row] != logged_candidate[s]:
                differs[row] = True
            first[row] = -1
    for row in range(len(differs)):
        if first[row] >= 0:
            differs[row] = True


@kernel
def first_differences(
    differing: I64, owner: I64, logged_at: I64, rows: I64, at: I64, start: int, end: int, first: I64
) -> int:
    """first i64[users]: set to when the first of a user's `differing` requests was decided, where there is one. Returns how
    many decisions in the window come after that of their user."""
    for i in range(len(differing)):
        row = differing[i]
        first[owner[row]] = min(first[owner[row]], logged_at[row])
    beyond = 0
    for i in range(len(rows)):
        if start <= at[i] < end and at[i] > first[owner[rows[i]]]:
            beyond += 1
    return beyond


@kernel
def _by_code_and_day(codes: npt.NDArray[Any], places: I64, days: I64, counts: I64) -> None:
    for i in range(len(places)):
        counts[codes[places[i]], days[i]] += 1


def by_code_and_day(codes: npt.NDArray[Any], places: I64, days: I64, values: int, span: int) -> I64:
    """i64[values, span]: how many of `places` have each code, by day (i64, 0 <= day < span)."""
    counts = np.zeros((values, span), np.int64)
    _by_code_and_day(codes, places, days, counts)
    return counts
