"""Doubly robust (Dudik, Langford, Li 2011; Dudik, Erhan, Langford, Li 2014, "Doubly robust policy evaluation and
optimization"): the outcome model's value, corrected by the weighted residuals, ``q(x, pi) + w (r - q(x, a))``.

Unbiased with right propensities whatever the model; a good model lowers the variance. The model must be fitted on other
users than those it predicts (`outcome_model`), or the residuals look too small.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from simulators.estimators.dm import ValuePerRow
from simulators.estimators.rows import Rows

__all__ = ["DR", "corrected"]

F64 = npt.NDArray[np.float64]


def corrected(rows: Rows, weight: F64) -> F64:
    """f64[n, P, M]: q(x, pi) + weight * (r - q(x, a)); weight f64[n, P]."""
    q, q_target = rows.need_model()
    residual = rows.reward - q
    out = np.empty_like(q_target)
    for p in range(weight.shape[1]):
        for m in range(residual.shape[1]):
            out[:, p, m] = q_target[:, p, m] + weight[:, p] * residual[:, m]
    return out


class DR(ValuePerRow):
    """Mean of q(x, pi) + w (r - q(x, a))."""

    name = "dr"

    def _values(self, rows: Rows) -> F64:
        return corrected(rows, rows.target / rows.propensity[:, None])
