"""Inverse propensity scoring (Horvitz and Thompson 1952): the mean of ``w * reward``, ``w = pi / p``.

Unbiased where the propensities are right and the target never does what the log could not. High variance where weights are
large; SNIPS trades a little bias for much of it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from simulators.estimators.estimator import Column, Estimator, Units
from simulators.estimators.linear import Linear, monomial
from simulators.estimators.rows import Rows
from simulators.estimators.verdicts import Per

__all__ = ["IPS"]

F64 = npt.NDArray[np.float64]


class IPS(Estimator):
    """Per user: sum of w r / users. Per send: sum of w r / sum of the target's known send probabilities."""

    name = "ips"
    mean_of_users = True
    by_choice = frozenset({Per.user})

    def _columns(self) -> list[Column]:
        targets = len(self.policies) - 1
        by_choice = self.grouping is not None and self.grouping.of == "choice"  # offered per user alone
        columns: list[Column] = [] if by_choice else [("decisions", 0, 0, -1)]
        for p in range(targets + 1):
            if not by_choice:
                columns.append((f"sends.{p}", 0, 1 + p, -1))
            columns.extend((f"reward.{p}.{m}", p, 2 + targets + m, m) for m in range(len(self.metrics)))
        return columns

    def _units(self, rows: Rows) -> Units:
        return Units(rows.user, rows.weight, rows.plain)

    def _linear(self, total: F64, users: float, policy: int, metric: int, per: Per) -> Linear:
        reward = self._place[f"reward.{policy}.{metric}"]
        if per is Per.user:
            return monomial(total, {reward: 1}, 1.0 / users)
        powers, constant = self._over(per, users, self._place["decisions"], self._place[f"sends.{policy}"])
        return monomial(total, {reward: 1, **powers}, constant)
