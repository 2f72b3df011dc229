"""Marginalised IPS over a declared attribute (Saito and Joachims 2022, "Off-policy evaluation for large action spaces via
embeddings"): weights are ratios of the attribute's probabilities, ``pi(e | x) / p(e | x)``, not of the choice's own.

Right where a choice acts on the reward through its declared attribute alone; otherwise biased by what it does besides. Far
smaller weights where choices are many and their attributes few."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from serve_app.errors import InvalidInput
from serve_app.kernels import kernel
from simulators.estimators.rows import Rows
from simulators.estimators.verdicts import Trust
from simulators.estimators.weighted import OwnWeights

__all__ = ["MIPS", "attribute_probability"]

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]


@kernel
def _marginal(offsets: I64, attribute: U64, chosen: I64, probability: F64, out: F64) -> None:
    for r in range(len(chosen)):
        total = 0.0
        for c in range(offsets[r], offsets[r + 1]):
            if chosen[r] >= 0 and attribute[c] == attribute[chosen[r]]:
                total += probability[c]
        out[r] = total


def attribute_probability(offsets: I64, attribute: U64, chosen: I64, probability: F64, p_none: F64) -> F64:
    """f64[n]: probability that a choice with the logged choice's attribute is made.

    Candidates by request (offsets i64[n + 1]) with attribute u64[m] and probability f64[m]; chosen i64[n] is a candidate
    row, -1: none, whose probability is p_none f64[n]."""
    out = np.empty(len(chosen))
    _marginal(offsets, attribute, chosen, probability, out)
    return np.where(chosen < 0, p_none, out)


class MIPS(OwnWeights):
    """Rows need the extra columns attribute_propensity f64[n] and attribute_target f64[n, P]."""

    name = "mips"
    trust = Trust.biased

    def _weights(self, rows: Rows) -> tuple[F64, F64]:
        p = np.asarray(rows.need("attribute_propensity"), np.float64)
        pi = np.asarray(rows.need("attribute_target"), np.float64).reshape(len(rows), -1)
        if pi.shape != rows.target.shape or not ((p > 0) & (p <= 1 + 1e-9)).all():
            raise InvalidInput("must lie in (0, 1], of the targets' shape", field="attribute_propensity, attribute_target")
        weight = np.empty((len(rows), 1 + pi.shape[1]))
        weight[:, 0], weight[:, 1:] = rows.scale, pi / p[:, None] * rows.scale[:, None]
        return weight, np.ones(len(rows))

    def notes(self, policy: str, metric: str) -> tuple[str, ...]:
        del policy, metric
        return ("assumes that choices act through the declared attribute alone",)
