"""Columns by address: what the walks index instead of arrays. See `serve_app.kernels.pointer_to`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.kernels import pointer_to

__all__ = ["addresses", "f8", "i1", "i2", "i4", "i8", "plain", "u1", "u2", "u8"]

I64 = npt.NDArray[np.int64]

i1, i2, i4, i8 = (pointer_to(one) for one in ("i1", "i2", "i4", "i8"))
u1, u2, u8, f8 = (pointer_to(one) for one in ("u1", "u2", "u8", "f8"))


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
