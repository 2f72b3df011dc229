"""As-of sums: what was known of an entity just before a time, for millions of (entity, time) pairs at once.

A timeline keeps each entity's events in the order they became known (`ingested_at`, so late events cannot leak back) with
running integer totals. A windowed sum is two binary searches and a subtraction; totals are integers, hence exact, and an
event added later changes no bit of what was known before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serve_app.batch import lengths_to_offsets
from serve_app.kernels import kernel

__all__ = ["DAY_US", "NEVER", "Timeline"]

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]

DAY_US = 86_400_000_000
NEVER = np.iinfo(np.int64).min


@kernel
def _positions(offsets: I64, at: I64, entities: I32, before: I64, out: I64) -> None:
    """out[i]: index of the first event of entities[i] with at >= before[i] (the end of its segment when there is none)."""
    for i in range(len(entities)):
        low, high = offsets[entities[i]], offsets[entities[i] + 1]
        while low < high:
            middle = (low + high) // 2
            if at[middle] < before[i]:
                low = middle + 1
            else:
                high = middle
        out[i] = low


@dataclass(frozen=True, slots=True)
class Timeline:
    """offsets i64[n + 1] over events; at i64[m] ascending within an entity; totals: measure -> i64[m + 1] running sums."""

    offsets: I64
    at: I64
    totals: Mapping[str, I64]

    @classmethod
    def build(cls, entities: I32, at: I64, measures: Mapping[str, npt.ArrayLike], count: int) -> Timeline:
        """entities i32[m] rows below `count`, at i64[m] when each event became known, measures: integers or bools [m]."""
        order = np.lexsort((at, entities))
        totals = {}
        for name, values in measures.items():
            running = np.zeros(len(at) + 1, np.int64)
            np.cumsum(np.asarray(values)[order], out=running[1:], dtype=np.int64)
            totals[name] = running
        return cls(lengths_to_offsets(np.bincount(entities, minlength=count)), at[order], totals)

    def _before(self, entities: I32, before: I64) -> I64:
        out = np.empty(len(entities), np.int64)
        _positions(self.offsets, self.at, np.ascontiguousarray(entities), np.ascontiguousarray(before), out)
        return out

    def sums(self, entities: I32, before: I64, windows_us: Mapping[str, int | None]) -> dict[str, dict[str, I64]]:
        """Per window name and measure, i64[q]: the sum over events known in ``[before - window, before)``.

        entities i32[q], before i64[q] microseconds UTC; a window of None reaches back to the start.
        """
        end = self._before(entities, before)
        out: dict[str, dict[str, I64]] = {}
        for label, window in windows_us.items():
            start = self.offsets[entities] if window is None else self._before(entities, before - window)
            out[label] = {name: running[end] - running[start] for name, running in self.totals.items()}
        return out

    def last(self, entities: I32, before: I64) -> I64:
        """i64[q]: when the latest event before `before` became known; NEVER where there is none."""
        end = self._before(entities, before)
        known = end > self.offsets[entities]
        return np.where(known, self.at[np.maximum(end - 1, 0)] if len(self.at) else NEVER, NEVER)

    def first(self, entities: I32, before: I64) -> I64:
        """i64[q]: when the first event became known, if before `before`; NEVER where there is none."""
        begin = self.offsets[entities]
        known = self._before(entities, before) > begin
        return np.where(known, self.at[np.minimum(begin, max(len(self.at) - 1, 0))] if len(self.at) else NEVER, NEVER)
