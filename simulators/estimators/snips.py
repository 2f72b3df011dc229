"""Self-normalised IPS (Swaminathan and Joachims 2015, "The self-normalized estimator for counterfactual learning").

Rewards that only a send can earn are normalised over sends: ``sum(w r) / sum(w send)`` estimates the reward of a send under
the target, and the target's mean probability of a send is known without error, so the value of a decision is the product of
both. (Normalising over all decisions would let the many silent ones, whose reward is 0 for certain, carry the noise.)
Where any row may earn the reward, `send` is 1 everywhere and this is the usual form. Consistent, with a bias of order 1 / n.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from simulators.estimators.estimator import Column, Estimator, Units
from simulators.estimators.linear import Linear, monomial
from simulators.estimators.rows import Rows
from simulators.estimators.verdicts import Per

__all__ = ["SNIPS"]

F64 = npt.NDArray[np.float64]


class SNIPS(Estimator):
    """Per send: sum of w r / sum of w over sends. Per user and decision: times the known mean send probability."""

    name = "snips"
    by_choice = frozenset({Per.send})

    def _columns(self) -> list[Column]:
        targets = len(self.policies) - 1
        columns: list[Column] = [("decisions", 0, 0, -1)]
        for p in range(targets + 1):
            columns.append((f"sends.{p}", 0, 1 + p, -1))
            columns.append((f"weight.{p}", p, 1, -1))
            columns.extend((f"reward.{p}.{m}", p, 2 + targets + m, m) for m in range(len(self.metrics)))
        return columns

    def _units(self, rows: Rows) -> Units:
        return Units(rows.user, rows.weight, rows.plain)

    def _linear(self, total: F64, users: float, policy: int, metric: int, per: Per) -> Linear:
        sends = self._place[f"sends.{policy}"]
        powers = {self._place[f"reward.{policy}.{metric}"]: 1, self._place[f"weight.{policy}"]: -1}
        if per is Per.send:
            return monomial(total, powers)
        divisor, constant = self._over(per, users, self._place["decisions"], sends)
        return monomial(total, {**powers, sends: 1, **divisor}, constant)
