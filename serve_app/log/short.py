"""Columns of a log table that are said in short: one value for many rows, or values of some rows alone.

A request's candidates repeat its id, and most of what is written of candidates that were dropped is that nothing is known.
To spell such columns out takes longer than to decide them; the log's readers see them spelled out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Repeats", "Runs", "Some", "spelled_out"]

I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Repeats:
    """For how many rows each of some values stands: counts i64[k], `rows` in all; `head`: k and the counts as u32."""

    counts: I64
    rows: int
    head: bytes

    @classmethod
    def of(cls, counts: npt.ArrayLike) -> Repeats:
        """From counts."""
        own = np.asarray(counts, np.int64)
        return cls(own, int(own.sum()), np.array([len(own), *own.tolist()], "<u4").tobytes())


@lru_cache(maxsize=1024)
def _once(rows: int) -> Repeats:
    return Repeats.of([rows])


@dataclass(frozen=True, slots=True)
class Runs:
    """values[k], each for as many rows as `repeats` says, one after the other."""

    values: Array
    repeats: Repeats

    @classmethod
    def constant(cls, value: np.generic, rows: int) -> Runs:
        """One value in every row."""
        return cls(np.array([value]), _once(rows))

    def __len__(self) -> int:
        return self.repeats.rows

    def whole(self) -> Array:
        """As an array."""
        return np.repeat(self.values, self.repeats.counts)


@dataclass(frozen=True, slots=True)
class Some:
    """A list of one width in every row: values[k, width] are those of the rows where `known` (bool[rows]), in order; the
    others hold nothing but `other`."""

    known: Bools
    values: Array
    other: np.generic

    def __len__(self) -> int:
        return len(self.known)

    def take(self, rows: I64) -> Some:
        """The same of `rows` (rising)."""
        known = self.known[rows]
        places = np.cumsum(self.known) - 1
        return Some(known, self.values[places[rows[known]]], self.other)

    def whole(self) -> Array:
        """As an array."""
        out = np.full((len(self.known), *self.values.shape[1:]), self.other, self.values.dtype)
        out[self.known] = self.values
        return out


def spelled_out(values: Any) -> Any:
    """The column as an array where it is said in short; else itself."""
    return values.whole() if isinstance(values, Runs | Some) else values
