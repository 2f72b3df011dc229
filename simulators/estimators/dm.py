"""Direct method: the outcome model's mean reward over the target's choices, ``mean of q(x, pi)``.

As good as the model. The interval speaks of the sample of users alone, not of the model's error (on Open Bandit data it
misses the truth in 4 of 6 cases), so its standing is at best weak.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from simulators.estimators.estimator import Column, Estimator, Units
from simulators.estimators.linear import Linear, monomial
from simulators.estimators.rows import Rows
from simulators.estimators.verdicts import Per, Trust

__all__ = ["DM", "ValuePerRow"]

F64 = npt.NDArray[np.float64]


class ValuePerRow(Estimator):
    """Estimators that give each row a value of its own under each policy, and average: DM, DR, Switch-DR, DRos."""

    mean_of_users = True

    def _columns(self) -> list[Column]:
        policies, metrics = len(self.policies), len(self.metrics)
        columns: list[Column] = [("decisions", 0, 0, -1)]
        for p in range(policies):
            columns.append((f"sends.{p}", 0, 1 + p, -1))
            first = 1 + policies + p * metrics
            columns.extend((f"value.{p}.{m}", 0, first + m, m) for m in range(metrics))
        return columns

    def _values(self, rows: Rows) -> F64:
        """f64[n, P, M]: each row's value under each target."""
        raise NotImplementedError

    def _units(self, rows: Rows) -> Units:
        targets = len(self.policies) - 1
        sends = rows.plain[:, : 2 + targets]
        right = np.concatenate([sends, rows.reward, self._values(rows).reshape(len(rows), -1)], axis=1)
        return Units(rows.user, rows.scale[:, None], right)

    def _linear(self, total: F64, users: float, policy: int, metric: int, per: Per) -> Linear:
        powers, constant = self._over(per, users, self._place["decisions"], self._place[f"sends.{policy}"])
        return monomial(total, {self._place[f"value.{policy}.{metric}"]: 1, **powers}, constant)


class DM(ValuePerRow):
    """Mean of the outcome model over the target's choices."""

    name = "dm"
    trust = Trust.model

    def notes(self, policy: str, metric: str) -> tuple[str, ...]:
        del policy, metric
        return ("the interval leaves out the outcome model's own error",)

    def _values(self, rows: Rows) -> F64:
        return rows.need_model()[1]
