"""Hash tables over u64 keys for whole batches: user -> row, and the set of event ids seen."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from serve_app.kernels import kernel
from serve_app.noise import mix

__all__ = ["EventIds", "RowIndex"]

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
_LEAST = 1024


@kernel
def _find(slots: I64, keys: U64, query: U64) -> I64:
    mask = np.uint64(len(slots) - 1)
    out = np.full(len(query), -1, np.int64)
    for i in range(len(query)):
        at = mix(query[i]) & mask
        while slots[at] >= 0:
            if keys[slots[at]] == query[i]:
                out[i] = slots[at]
                break
            at = (at + np.uint64(1)) & mask
    return out


@kernel
def _insert(slots: I64, keys: U64, count: int, query: U64, out: I64) -> int:
    """Rows of `query`, new keys numbered from `count`; returns the new count. slots and keys must have room."""
    mask = np.uint64(len(slots) - 1)
    for i in range(len(query)):
        at = mix(query[i]) & mask
        while slots[at] >= 0 and keys[slots[at]] != query[i]:
            at = (at + np.uint64(1)) & mask
        if slots[at] < 0:
            slots[at] = count
            keys[count] = query[i]
            count += 1
        out[i] = slots[at]
    return count


class RowIndex:
    """u64 key -> row number, rows numbered in order of arrival and never removed."""

    def __init__(self) -> None:
        self.count = 0
        self._keys = np.empty(_LEAST // 2, np.uint64)
        self._slots = np.full(_LEAST, -1, np.int64)

    @property
    def keys(self) -> U64:
        """u64[count]: the key of each row."""
        return self._keys[: self.count]

    def find(self, query: U64) -> I64:
        """i64[n]: rows, -1 where unknown."""
        return _find(self._slots, self._keys, query)

    def insert(self, query: U64) -> I64:
        """i64[n]: rows, unknown keys added (also when they repeat within `query`)."""
        self._reserve(self.count + len(query))
        out = np.empty(len(query), np.int64)
        self.count = _insert(self._slots, self._keys, self.count, query, out)
        return out

    def _reserve(self, rows: int) -> None:
        if rows <= len(self._keys):
            return
        capacity = 1 << int(rows * 2 - 1).bit_length()
        keys = self.keys
        self._keys, self._slots = np.empty(capacity // 2, np.uint64), np.full(capacity, -1, np.int64)
        _insert(self._slots, self._keys, 0, keys, np.empty(len(keys), np.int64))


class EventIds:
    """Event ids marked within the last horizon at least, twice it at most: two generations, the older dropped whole.
    `kept_since`: what was marked before is forgotten."""

    def __init__(self, horizon_us: int) -> None:
        self._horizon_us = horizon_us
        self._began = self.kept_since = int(np.iinfo(np.int64).min)
        self._new, self._old = RowIndex(), RowIndex()

    def fresh(self, ids: U64) -> npt.NDArray[np.bool_]:
        """bool[n]: not marked, and the first of its kind in `ids`."""
        first = np.zeros(len(ids), np.bool_)
        first[np.unique(ids, return_index=True)[1]] = True
        return first & (self._new.find(ids) < 0) & (self._old.find(ids) < 0)

    def mark(self, ids: U64, at: int) -> None:
        """Remember `ids`, seen at `at`."""
        if at - self._began >= self._horizon_us:
            follows = at - self._began < 2 * self._horizon_us
            self._old, self.kept_since = (self._new, self._began) if follows else (RowIndex(), at)
            self._new, self._began = RowIndex(), at
        self._new.insert(ids)
