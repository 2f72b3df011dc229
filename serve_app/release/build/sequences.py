"""What a user had seen and bought before a time: the `recents` and `bought` of requests, past or present."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serve_app.batch import Ragged, lengths_to_offsets
from serve_app.kernels import kernel
from serve_app.release.build.interactions import SHOWN, Interactions
from serve_app.release.histories import BOUGHT_KEPT, RECENTS_KEPT, UserHistories
from serve_app.vocabulary import EventType

__all__ = ["UserSequences"]

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]


@kernel
def _collect(
    offsets: I64, items: I32, at: I64, users: I32, before: I64, limit: int, distinct: bool, picked: I64, out: I64
) -> None:
    """picked[out[i]:out[i + 1]]: events of users[i] known before before[i], oldest first, at most `limit`: without immediate
    repeats, or (distinct) each item at its last time. `out` is filled along the way; `picked` must hold limit per row."""
    used = 0
    for i in range(len(users)):
        out[i] = used
        if users[i] < 0:
            continue
        begin, low, high = offsets[users[i]], offsets[users[i]], offsets[users[i] + 1]
        while low < high:
            middle = (low + high) // 2
            if at[middle] < before[i]:
                low = middle + 1
            else:
                high = middle
        first, k = used, low - 1
        while k >= begin and used - first < limit:
            repeated = False
            back = first if distinct else max(first, used - 1)
            for q in range(back, used):
                if items[picked[q]] == items[k]:
                    repeated = True
                    break
            if not repeated:
                picked[used] = k
                used += 1
            k -= 1
        left, right = first, used - 1
        while left < right:
            picked[left], picked[right] = picked[right], picked[left]
            left += 1
            right -= 1
    out[len(users)] = used


@dataclass(frozen=True, slots=True)
class _Sequence:
    offsets: I64
    items: I32
    at: I64

    @classmethod
    def of(cls, log: Interactions, rows: npt.NDArray[np.bool_], users: int) -> _Sequence:
        keep = np.flatnonzero(rows & (log.user >= 0) & (log.item >= 0))
        part = log.take(keep)
        order = np.lexsort((np.arange(len(part)), part.position, part.at, part.known_at, part.user))
        offsets = lengths_to_offsets(np.bincount(part.user, minlength=users))
        return cls(offsets, part.item[order], part.known_at[order])

    def last(self, users: I32, before: I64, limit: int, distinct: bool) -> tuple[Ragged, I64]:
        """Items (i32, oldest first) and when each became known, per (user row, time)."""
        width = np.minimum(np.diff(self.offsets).max(initial=0), limit)
        picked = np.empty(int(width) * len(users) + 1, np.int64)
        out = np.empty(len(users) + 1, np.int64)
        args = (np.ascontiguousarray(users), np.ascontiguousarray(before), limit, distinct)
        _collect(self.offsets, self.items, self.at, *args, picked, out)
        flat = picked[: out[-1]]
        return Ragged(self.items[flat], out), self.at[flat]


@dataclass(frozen=True, slots=True)
class UserSequences:
    """Items shown to or bought by each user, in the order they became known."""

    shown: _Sequence
    bought: _Sequence

    @classmethod
    def build(cls, log: Interactions, users: int) -> UserSequences:
        """Over `users` user rows."""
        shown = _Sequence.of(log, np.isin(log.kind, SHOWN), users)
        return cls(shown, _Sequence.of(log, log.kind == EventType.conversion, users))

    def before(self, users: I32, when: I64) -> UserHistories:
        """Histories of n (user row, time) pairs, as known before each time; row i of the result is pair i."""
        recents, at = self.shown.last(users, when, RECENTS_KEPT, False)
        bought, _ = self.bought.last(users, when, BOUGHT_KEPT, True)
        return UserHistories(recents.offsets, recents.values, at, bought.offsets, bought.values)

    def now(self, users: int, when: int) -> UserHistories:
        """Histories of all user rows at one time: what a release carries."""
        return self.before(np.arange(users, dtype=np.int32), np.full(users, when, np.int64))
