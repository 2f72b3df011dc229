"""The gather: table rows into matrix columns, with a status for every value read."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from serve_app.kernels import kernel
from serve_app.vocabulary import FeatureStatus

__all__ = ["gather", "settle"]

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]

_PRESENT, _STALE = np.uint8(FeatureStatus.present), np.uint8(FeatureStatus.stale)
_MISSING, _DEFAULTED = np.uint8(FeatureStatus.missing), np.uint8(FeatureStatus.defaulted)


@kernel
def gather(
    values: F32,
    as_of: I64,
    rows: I32,
    from_columns: I32,
    columns: I32,
    now: I64,
    max_age_us: I64,
    defaults: F32,
    out: F32,
    status: U8,
) -> None:
    """``out[c, columns[k]] = values[rows[c], from_columns[k]]`` for all c, k, or the column's default where nothing is known
    (NaN, or a row outside the table). now i64[m]; as_of i64[rows, 1] or i64[rows, k]; max_age_us i64[F], defaults f32[F]."""
    single = as_of.shape[1] == 1
    for c in range(len(rows)):
        row = rows[c]
        inside = 0 <= row < values.shape[0]
        for k in range(len(columns)):
            column, source = columns[k], from_columns[k]
            value = values[row, source] if inside else np.float32(np.nan)
            if np.isnan(value):
                value = defaults[column]
                status[c, column] = _MISSING if np.isnan(value) else _DEFAULTED
            else:
                age = now[c] - as_of[row, 0 if single else source]
                status[c, column] = _STALE if age > max_age_us[column] else _PRESENT
            out[c, column] = value


@kernel
def settle(columns: I32, defaults: F32, out: F32, status: U8) -> None:
    """Statuses of computed columns, which `out` holds already: NaN is unknown, anything else present."""
    for c in range(out.shape[0]):
        for k in range(len(columns)):
            column = columns[k]
            if np.isnan(out[c, column]):
                out[c, column] = defaults[column]
                status[c, column] = _MISSING if np.isnan(defaults[column]) else _DEFAULTED
            else:
                status[c, column] = _PRESENT
