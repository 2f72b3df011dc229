"""Columns of a replay put side by side for estimators, each in one pass: strided copies by numpy cost several times that."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from serve_app.kernels import kernel

__all__ = ["beside", "codes_of", "picked"]

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]


@kernel
def _pick(values: F64, rows: I64, columns: I64, out: F64) -> None:
    for i in range(len(rows)):
        for k in range(len(columns)):
            out[i, k] = values[rows[i], columns[k]]


def picked(values: F64, rows: I64, columns: Sequence[int], more: int = 0) -> F64:
    """f64[k, columns + more]: some rows and columns of a matrix; the last `more` columns are left to fill in."""
    out = np.empty((len(rows), len(columns) + more))
    _pick(values, rows, np.array(columns, np.int64), out)
    return out


def beside(columns: Sequence[F64 | float]) -> F64:
    """f64[k, columns] of several columns; a number stands for a column of it."""
    rows = next(len(one) for one in columns if isinstance(one, np.ndarray))
    out = np.empty((rows, len(columns)))
    for place, one in enumerate(columns):
        out[:, place] = one
    return out


@kernel
def _codes_of(codes: npt.NDArray[np.generic], table: I32, places: I64, out: I32) -> None:
    for row in range(len(places)):
        out[row] = table[codes[places[row]]] if places[row] >= 0 else -1


def codes_of(codes: npt.NDArray[np.generic], table: I32, places: I64) -> I32:
    """i32[n]: table[codes[place]] of each place; -1 where the place is -1."""
    out = np.empty(len(places), np.int32)
    _codes_of(codes, table, places, out)
    return out
