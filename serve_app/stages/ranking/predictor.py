"""Prediction through XGBoost's C API.

`Booster.inplace_predict` spends 80 microseconds a call on checks of what kind of object it was given, as long as a
request's trees take; `XGBoosterPredictFromDense` (documented and stable; c_api.h) is what it ends in. The bits are the same.
"""

from __future__ import annotations

import ctypes

import numpy as np
import numpy.typing as npt
import xgboost
from xgboost.core import _LIB, c_bst_ulong

from serve_app.errors import InvalidInput

__all__ = ["Predictor"]

F32 = npt.NDArray[np.float32]

_CONFIG = (
    b'{"type": %d, "training": false, "iteration_begin": 0, "iteration_end": 0, "missing": NaN, '
    b'"strict_shape": true, "cache_id": 0}'
)
_VALUE, _MARGIN = 0, 1


class Predictor:
    """A booster that predicts matrices quickly, with one thread. Safe to call from several threads: XGBoost keeps the result
    per thread until that thread's next call, and it is copied out before."""

    def __init__(self, booster: xgboost.Booster, *, margin: bool = False) -> None:
        booster.set_param({"nthread": 1})
        self._booster = booster  # keeps the handle alive
        self._config = _CONFIG % (_MARGIN if margin else _VALUE)
        self.features: int = booster.num_features()

    def __call__(self, matrix: F32) -> F32:
        """f32[n, F], NaN for missing -> f32[n, outputs]. A row's bits do not depend on n."""
        if matrix.dtype != np.float32 or matrix.ndim != 2 or matrix.shape[1] != self.features:
            raise InvalidInput(f"matrix is {matrix.dtype}{list(matrix.shape)}, the model reads {self.features} features")
        dense = np.ascontiguousarray(matrix)
        rows, columns = dense.shape
        if rows == 0:
            return np.empty((0, 1), np.float32)
        array = b'{"data": [%d, true], "shape": [%d, %d], "typestr": "<f4", "version": 3}' % (
            dense.ctypes.data,
            rows,
            columns,
        )
        shape, result = ctypes.POINTER(c_bst_ulong)(), ctypes.POINTER(ctypes.c_float)()
        dimensions = c_bst_ulong()
        failed = _LIB.XGBoosterPredictFromDense(
            self._booster.handle, array, self._config, None,
            ctypes.byref(shape), ctypes.byref(dimensions), ctypes.byref(result),
        )  # fmt: skip
        if failed:
            raise InvalidInput(f"XGBoost: {_LIB.XGBGetLastError().decode()}", field="features")
        outputs = 1
        for axis in range(1, dimensions.value):
            outputs *= shape[axis]
        copied: F32 = np.ctypeslib.as_array(result, (rows, outputs)).copy()
        return copied
