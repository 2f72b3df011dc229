"""What users were sent, in memory: histories grown wave by wave, and the deliveries known to have failed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serve_app.kernels import kernel
from serve_app.ledger.arena import Arena
from serve_app.ledger.columns import HISTORY_DTYPE, Histories
from serve_app.ledger.refunds import flag_refunded, is_refunded

__all__ = ["Failures", "UserHistories"]

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Failures:
    """Deliveries known to have failed, by user and time. begin, end i64[u]: each user's part; next i64[u]: the first that is
    not applied yet; at i64, request u64, slot i16 of each."""

    begin: I64
    end: I64
    next: I64
    at: I64
    request: U64
    slot: npt.NDArray[np.int16]

    @classmethod
    def of(cls, users: U64, user: U64, at: I64, request: U64, slot: npt.NDArray[np.int16]) -> Failures:
        """`users`: the partition's, sorted; the rest: one value a failure, in any order."""
        order = np.lexsort((at, user))
        ordered = user[order]
        begin = np.searchsorted(ordered, users, "left").astype(np.int64)
        end = np.searchsorted(ordered, users, "right").astype(np.int64)
        return cls(begin, end, begin.copy(), at[order], request[order], slot[order])

    def applied(self, rows: I64) -> I64:
        """How many of each user's have been applied."""
        return self.next[rows] - self.begin[rows]


@kernel
def _refund(
    rows: I64, now: I64, read: npt.NDArray[np.int16], end: I64, next_: I64, at: I64, request: U64,
    slot: npt.NDArray[np.int16], start: I64, length: I64, requests: U64, slots: npt.NDArray[np.int16], holdouts: U64,
    flags: npt.NDArray[np.uint8],
) -> None:  # fmt: skip
    for i in range(len(rows)):
        row, seen = rows[i], 0
        for e in range(start[row], start[row] + length[row]):
            seen += 1 if is_refunded(flags[e]) else 0
        while next_[row] < end[row]:
            f = next_[row]
            due = seen < read[i] if read[i] >= 0 else at[f] <= now[i]
            if not due:
                break
            first, last = start[row], start[row] + length[row]
            seen += flag_refunded(first, last, request[f], slot[f], requests, slots, holdouts, flags)
            next_[row] += 1


class UserHistories:
    """Histories of a partition's users (u64, sorted), grown wave by wave."""

    def __init__(self, users: U64, start: Histories | None, keep_us: int) -> None:
        self._users, self._keep_us = users, keep_us
        self._arena = Arena(HISTORY_DTYPE)
        self._arena.grow_rows(len(users))
        if start is not None:
            self._arena.replace(np.arange(len(users)), start.entries, start.offsets)

    def rows(self, users: U64) -> I64:
        """Rows of users, all of which must be known."""
        return np.searchsorted(self._users, users)

    def read(self, rows: I64) -> Histories:
        """Histories of distinct rows."""
        return Histories(*self._arena.gather(rows))

    def refund(self, rows: I64, at: I64, read: npt.NDArray[np.int16], failures: Failures) -> None:
        """Flag the sends whose failure was known, for distinct rows: as many as make `read` refunded uses; where that is -1,
        those that failed by `at`."""
        records = self._arena.records
        _refund(
            rows, at, read, failures.end, failures.next, failures.at, failures.request, failures.slot,
            self._arena.start, self._arena.length, records["request_id"], records["slot"], records["holdout"],
            records["flags"],
        )  # fmt: skip

    def add(self, rows: I64, at: I64, entries: npt.NDArray[np.void], offsets: I64) -> None:
        """Append, and drop what no window reaches any more."""
        grown = np.flatnonzero(np.diff(offsets))
        self._arena.append(rows, entries, offsets)
        self._arena.trim(rows[grown], at[grown] - self._keep_us, len(self._arena.records), np.zeros(len(grown), np.int64))
