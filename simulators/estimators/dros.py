"""Doubly robust with optimistic shrinkage (Su, Dimakopoulou, Krishnamurthy, Dudik 2020, "Doubly robust off-policy evaluation
with shrinkage"): weights become ``lambda w / (w**2 + lambda)``, small ones hardly, large ones strongly. Biased."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from simulators.estimators.shrinkage import ShrunkDR

__all__ = ["DRos"]

F64 = npt.NDArray[np.float64]


class DRos(ShrunkDR):
    """Mean of q(x, pi) + lambda w / (w**2 + lambda) (r - q(x, a))."""

    name = "dros"

    def _tamed(self, weight: F64, parameter: float) -> F64:
        shrunk: F64 = parameter * weight / (weight * weight + parameter)
        return shrunk
