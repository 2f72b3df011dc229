"""Reward interaction IPS for lists (McInerney, Brost, Chandar, Mehrotra, Carterette 2020, "Counterfactual evaluation of
slate recommendations with sequential reward interactions"): a slot's reward is weighted by the slots down to it.

Right where a slot's reward depends on that slot and those above it, not on those below: people read from the top."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from simulators.estimators.lists import prefix_weights
from simulators.estimators.rows import Rows
from simulators.estimators.weighted import OwnWeights

__all__ = ["RIPS"]

F64 = npt.NDArray[np.float64]


class RIPS(OwnWeights):
    """Sum over slots of prefix weight * reward. Rows need the extra column `list`."""

    name = "rips"

    def _weights(self, rows: Rows) -> tuple[F64, F64]:
        weight, _, first = prefix_weights(rows)
        return weight, first
