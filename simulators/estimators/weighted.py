"""Sums of ``weight * reward`` with weights an estimator makes itself: what RIPS, IIPS, MIPS and windowed IPS share."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
import numpy.typing as npt

from simulators.estimators.estimator import Column, Estimator, Units
from simulators.estimators.linear import Linear, monomial
from simulators.estimators.rows import Rows
from simulators.estimators.verdicts import Per

__all__ = ["OwnWeights"]

F64 = npt.NDArray[np.float64]


class OwnWeights(Estimator):
    """Per user: sum of w r / users. Per decision: over decisions (lists). Per send: self-normalised over sends (slots)."""

    own_weights = True
    mean_of_users = True
    by_choice = frozenset({Per.user})

    @abstractmethod
    def _weights(self, rows: Rows) -> tuple[F64, F64]:
        """(weight f64[n, 1 + P] with the scale in column 0, f64[n] 1 where a row begins a decision)."""

    def _columns(self) -> list[Column]:
        columns: list[Column] = [("decisions", 0, 0, -1)]
        for p in range(len(self.policies)):
            columns.append((f"sends.{p}", p, 1, -1))
            columns.extend((f"reward.{p}.{m}", p, 2 + m, m) for m in range(len(self.metrics)))
        return columns

    def _units(self, rows: Rows) -> Units:
        weight, first = self._weights(rows)
        right = np.concatenate([first[:, None], rows.send[:, None], rows.reward], axis=1)
        return Units(rows.user, weight, right, weight=weight, live=rows.send, unsupported=rows.unsupported)

    def _linear(self, total: F64, users: float, policy: int, metric: int, per: Per) -> Linear:
        powers, constant = self._over(per, users, self._place["decisions"], self._place[f"sends.{policy}"])
        return monomial(total, {self._place[f"reward.{policy}.{metric}"]: 1, **powers}, constant)
