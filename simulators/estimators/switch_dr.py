"""Switch-DR (Wang, Agarwal, Dudik 2017, "Optimal and adaptive off-policy evaluation in contextual bandits"): doubly robust
where the weight is at most lambda, the outcome model alone where it is larger. Biased where the model is wrong there."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from simulators.estimators.shrinkage import ShrunkDR

__all__ = ["SwitchDR"]

F64 = npt.NDArray[np.float64]


class SwitchDR(ShrunkDR):
    """Mean of q(x, pi) + w (r - q(x, a)) [w <= lambda]."""

    name = "switch-dr"

    def _tamed(self, weight: F64, parameter: float) -> F64:
        return np.where(weight <= parameter, weight, 0.0)
