"""Columns between processes: one run of bytes, each column where the one before it ends, at a multiple of eight; and beside
it the large ones, which need not be copied to be sent (`serve_app.serving.line_frames`).

Pickling forty small arrays one by one takes ten times as long as their bytes do. A column's dtype is not sent: its
`ColumnSpec` says it.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from serve_app.columns import ColumnSpec

__all__ = ["LARGE", "Packed", "pack", "unpack"]

Array = npt.NDArray[Any]
Packed = tuple[tuple[str, ...], tuple[tuple[int, ...], ...], bytearray, dict[str, pickle.PickleBuffer]]
"""Names, shapes (of a ragged column's values), the bytes (values, of a ragged column its offsets before them), and the bytes
of the columns that lie apart."""

LARGE = 4096
"""Bytes from which on an array is sent by itself."""
_ALIGNED = 8
_PADS = tuple(bytes(n) for n in range(_ALIGNED))
_OFFSETS = np.dtype(np.int64)


def pack(columns: Mapping[str, tuple[Array, Array | None]], *, apart: bool = False) -> Packed:
    """columns: values, and offsets i64[n + 1] where the column is ragged. apart: large flat columns are not copied; pickles
    of protocol 5 can hold them so."""
    parts: list[Any] = []
    large: dict[str, pickle.PickleBuffer] = {}
    for name, (values, offsets) in columns.items():
        if apart and offsets is None and values.nbytes >= LARGE and values.flags.c_contiguous and values.flags.writeable:
            # Not of `values.data`: CPython 3.11 crashes where it collects a cycle that holds a buffer of a memoryview.
            large[name] = pickle.PickleBuffer(cast(Any, values))  # numpy declares its buffers from Python 3.12 on
            continue
        for one in (values,) if offsets is None else (offsets, values):
            parts.append(one if one.flags.c_contiguous else one.tobytes())
            if over := one.nbytes % _ALIGNED:
                parts.append(_PADS[_ALIGNED - over])
    return tuple(columns), tuple([values.shape for values, _ in columns.values()]), bytearray().join(parts), large


def unpack(packed: Sequence[Any], rows: int, specs: Mapping[str, ColumnSpec]) -> dict[str, tuple[Array, Array | None]]:
    """What `pack` was given, as writable views of the bytes. packed: see Packed."""
    names, shapes, held, large = packed
    out: dict[str, tuple[Array, Array | None]] = {}
    at = 0
    for name, shape in zip(names, shapes, strict=True):
        spec, offsets = specs[name], None
        if name in large:
            out[name] = np.ndarray(shape, spec.dtype, large[name]), None
            continue
        if spec.ragged:
            offsets = np.ndarray((rows + 1,), _OFFSETS, held, at)
            at += offsets.nbytes
        values = np.ndarray(shape, spec.dtype, held, at)
        out[name] = values, offsets
        at += -(-values.nbytes // _ALIGNED) * _ALIGNED
    return out
