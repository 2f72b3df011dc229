"""Columns of a log table that are said in short: one value for many rows, or values of some rows alone.

A request's candidates repeat its id, and most of what is written of candidates that were dropped is that nothing is known.
To spell such columns out takes longer than to decide them; the log's readers see them spelled out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Runs", "Some", "spelled_out"]

I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Runs:
    """values[k], each for counts[k] rows (i64), one after the other; `rows` is their sum."""

    values: Array
    counts: I64
    rows: int

    @classmethod
    def constant(cls, value: np.generic, rows: int) -> Runs:
        """One value in every row."""
        return cls(np.array([value]), np.array([rows], np.int64), rows)

    def __len__(self) -> int:
        return self.rows

    def whole(self) -> Array:
        """As an array."""
        return np.repeat(self.values, self.counts)


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
