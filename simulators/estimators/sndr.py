"""Self-normalised doubly robust: the outcome model's value plus the self-normalised weighted residual.

Thomas and Brunskill 2016 ("Data-efficient off-policy policy evaluation for reinforcement learning", weighted doubly robust)
for one step; residuals are normalised as SNIPS normalises rewards, over the rows that may earn them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from simulators.estimators.estimator import Column, Estimator, Units
from simulators.estimators.linear import Linear, monomial
from simulators.estimators.rows import Rows
from simulators.estimators.verdicts import Per

__all__ = ["SNDR"]

F64 = npt.NDArray[np.float64]


class SNDR(Estimator):
    """Mean of q(x, pi) + (sum of w (r - q) / sum of w over sends) * mean send probability."""

    name = "sndr"

    def _columns(self) -> list[Column]:
        policies, metrics = len(self.policies), len(self.metrics)
        columns: list[Column] = [("decisions", 0, 0, -1)]
        for p in range(policies):
            columns.append((f"sends.{p}", 0, 1 + p, -1))
            columns.append((f"weight.{p}", p, 1, -1))
            for m in range(metrics):
                residual, model = 1 + policies + m, 1 + policies + metrics * (1 + p) + m
                columns += [(f"model.{p}.{m}", 0, model, m), (f"residual.{p}.{m}", p, residual, m)]
        return columns

    def _units(self, rows: Rows) -> Units:
        q, q_target = rows.need_model()
        residual = (rows.reward - q) * rows.send[:, None]
        sends = rows.plain[:, : 1 + len(self.policies)]
        right = np.concatenate([sends, residual, q * rows.send[:, None], q_target.reshape(len(rows), -1)], axis=1)
        return Units(rows.user, rows.weight, right)

    def _linear(self, total: F64, users: float, policy: int, metric: int, per: Per) -> Linear:
        sends, weight = self._place[f"sends.{policy}"], self._place[f"weight.{policy}"]
        powers, constant = self._over(per, users, self._place["decisions"], sends)
        model = monomial(total, {self._place[f"model.{policy}.{metric}"]: 1, **powers}, constant)
        residual = {self._place[f"residual.{policy}.{metric}"]: 1, weight: -1}
        if per is Per.send:
            return model + monomial(total, residual)
        return model + monomial(total, {**residual, sends: 1, **powers}, constant)
