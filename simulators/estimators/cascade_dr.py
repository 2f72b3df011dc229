"""Cascade doubly robust for lists (Kiyohara, Saito, Matsuhiro, Narita, Shimizu, Yamamoto 2022, "Doubly robust off-policy
evaluation for ranking policies under the cascade behavior model"): RIPS with an outcome model as control variate,
``w_(1..k) (r_k - Q_k(a_k)) + w_(1..k-1) E_pi Q_k``.

`q_logged` is the model's reward of the slot *and all below it*, given its item and the items above; `q_target` its mean over
the target's choices for that slot. Right where RIPS is, whatever the model."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from simulators.estimators.estimator import Column, Estimator, Units
from simulators.estimators.linear import Linear, monomial
from simulators.estimators.lists import prefix_weights
from simulators.estimators.rows import Rows
from simulators.estimators.verdicts import Per

__all__ = ["CascadeDR"]

F64 = npt.NDArray[np.float64]


class CascadeDR(Estimator):
    """Mean over users (or lists) of the corrected slot values. Per send: per slot. Rows need the extra column `list`."""

    name = "cascade-dr"
    own_weights = True
    mean_of_users = True

    def _columns(self) -> list[Column]:
        policies, metrics = len(self.policies), len(self.metrics)
        columns: list[Column] = [("decisions", 0, 0, -1), ("slots", 0, 1, -1)]
        columns += [(f"value.{p}.{m}", 0, 2 + p * metrics + m, m) for p in range(policies) for m in range(metrics)]
        return columns

    def _units(self, rows: Rows) -> Units:
        q, q_target = rows.need_model()
        weight, before, first = prefix_weights(rows)
        residual = rows.reward - q
        values = [
            weight[:, p, None] * residual + before[:, p, None] * q_target[:, p - 1, :] for p in range(1, len(self.policies))
        ]
        values.insert(0, rows.reward * rows.scale[:, None])
        right = np.concatenate([(first * rows.scale)[:, None], rows.scale[:, None], *values], axis=1)
        return Units(rows.user, np.ones((len(rows), 1)), right, None, weight, rows.send, rows.unsupported)

    def _linear(self, total: F64, users: float, policy: int, metric: int, per: Per) -> Linear:
        powers, constant = self._over(per, users, self._place["decisions"], self._place["slots"])
        return monomial(total, {self._place[f"value.{policy}.{metric}"]: 1, **powers}, constant)
