"""Columns by address: what the walks index instead of arrays. See `serve_app.kernel_columns`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.kernel_columns import table_to
from serve_app.kernels import pointer_to

__all__ = [
    "addresses",
    "f4_2",
    "f8",
    "f8_2",
    "f8_3",
    "i1",
    "i2",
    "i4",
    "i8",
    "i8_2",
    "i8_3",
    "plain",
    "shapes",
    "u1",
    "u2",
    "u8",
    "u8_2",
]

I64 = npt.NDArray[np.int64]

i1, i2, i4, i8 = (pointer_to(one) for one in ("i1", "i2", "i4", "i8"))
u1, u2, u8, f8 = (pointer_to(one) for one in ("u1", "u2", "u8", "f8"))
i8_2, i8_3, f8_2, f8_3 = (table_to(dtype, axes) for dtype in ("i8", "f8") for axes in (2, 3))
f4_2, u8_2 = table_to("f4", 2), table_to("u8", 2)


def plain(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Contiguous; copied only where it is not."""
    return np.ascontiguousarray(values)


def addresses(columns: tuple[Any, ...]) -> I64:
    """i64[k]: where each of the contiguous arrays begins; numbers as they are. The arrays must outlive its use."""
    return np.array([_word(one) for one in columns], np.int64)


def _word(one: Any) -> int:
    if not isinstance(one, np.ndarray):
        return int(one)
    if not one.flags.c_contiguous:
        raise ValueError("a column must be contiguous")
    return int(one.ctypes.data)


def shapes(tables: tuple[npt.NDArray[Any], ...]) -> I64:
    """i64[4 k]: address and size along three axes of each of the contiguous tables."""
    rows = [(_word(one), *one.shape, *((1,) * (3 - one.ndim))) for one in tables]
    return np.array(rows, np.int64).reshape(-1)
