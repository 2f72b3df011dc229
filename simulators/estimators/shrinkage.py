"""Doubly robust with tamed weights, over a fixed grid of how much: the shared part of Switch-DR and DRos.

The grid is fixed beforehand; all its values come from one pass. Which one to read is chosen by SLOPE (Su, Srinath,
Krishnamurthy 2020, "Adaptive estimator selection for off-policy evaluation"): from least bias on, as far as the values stay
within each other's intervals. After a choice made on the same data no coverage is claimed, and a choice at either end of
the grid is flagged: the grid should have reached further.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from serve_app.errors import InvalidInput
from simulators.estimators.dm import ValuePerRow
from simulators.estimators.dr import corrected
from simulators.estimators.estimator import Column, Grouping, Units
from simulators.estimators.intervals import Interval, clustered
from simulators.estimators.linear import Linear, monomial
from simulators.estimators.rows import Rows
from simulators.estimators.verdicts import Per, Trust

__all__ = ["GRID", "GridChoice", "ShrunkDR"]

F64 = npt.NDArray[np.float64]

GRID = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 1000.0)
_SLOPE = np.sqrt(6.0) - 1.0


@dataclass(frozen=True, slots=True)
class GridChoice:
    """The chosen parameter, its place in the grid, and whether it is an end of a grid of several."""

    parameter: float
    place: int
    at_boundary: bool


class ShrunkDR(ValuePerRow):
    """Base of Switch-DR and DRos; grid: increasing parameters, the largest has the least bias and the most variance."""

    trust = Trust.biased
    mean_of_users = False  # the choice of the parameter saw all users

    def __init__(
        self, policies: Sequence[str], metrics: Sequence[str], *, grid: Sequence[float] = GRID,
        grouping: Grouping | None = None, replicates: int = 0,
    ) -> None:  # fmt: skip
        self.grid = tuple(float(one) for one in grid)
        if not self.grid or min(self.grid) <= 0 or list(self.grid) != sorted(set(self.grid)):
            raise InvalidInput(f"{list(grid)}", field="grid", hint="give increasing positive values")
        super().__init__(policies, metrics, grouping=grouping, replicates=replicates)

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "grid": list(self.grid)}

    def _like(self) -> Self:
        return type(self)(
            self.policies[1:], self.metrics, grid=self.grid, grouping=self.grouping, replicates=self.replicates
        )

    @abstractmethod
    def _tamed(self, weight: F64, parameter: float) -> F64:
        """f64[n, P]: the weights that replace `weight`."""

    def _columns(self) -> list[Column]:
        policies, metrics, grid = len(self.policies), len(self.metrics), len(self.grid)
        columns: list[Column] = [("decisions", 0, 0, -1)]
        for p in range(policies):
            columns.append((f"sends.{p}", 0, 1 + p, -1))
            for m in range(metrics):
                for k in range(grid):
                    first = 1 + policies
                    place = first + m if p == 0 else first + metrics + (k * (policies - 1) + p - 1) * metrics + m
                    columns.append((f"value.{p}.{m}.{k}", 0, place, m * grid + k))
        return columns

    def _units(self, rows: Rows) -> Units:
        targets, weight = len(self.policies) - 1, rows.target / rows.propensity[:, None]
        values = [corrected(rows, self._tamed(weight, one)).reshape(len(rows), -1) for one in self.grid]
        right = np.concatenate([rows.plain[:, : 2 + targets], rows.reward, *values], axis=1)
        return Units(rows.user, rows.scale[:, None], right)

    def _linear_at(self, total: F64, users: float, policy: int, metric: int, per: Per, place: int) -> Linear:
        powers, constant = self._over(per, users, self._place["decisions"], self._place[f"sends.{policy}"])
        return monomial(total, {self._place[f"value.{policy}.{metric}.{place}"]: 1, **powers}, constant)

    def _linear(self, total: F64, users: float, policy: int, metric: int, per: Per) -> Linear:
        place = len(self.grid) - 1 if policy == 0 else self._choose(policy, metric).place
        return self._linear_at(total, users, policy, metric, per, place)

    def at(self, policy: str, metric: str, per: Per, parameter: float, *, level: float = 0.95) -> tuple[float, Interval]:
        """(value, interval) at one parameter of the grid, fixed beforehand. The interval is around its biased mean."""
        moments, users = self._moments(0)
        place, p, m = self.grid.index(parameter), self.policies.index(policy), self.metrics.index(metric)
        linear = self._linear_at(moments.total, users, p, m, per, place)
        return linear.value, clustered(linear.value, moments.variance(linear.gradient), moments.users, level)

    def choice(self, policy: str, metric: str) -> GridChoice:
        """SLOPE's choice, made on all groups together, per user."""
        return self._choose(self.policies.index(policy), self.metrics.index(metric))

    def flags(self, policy: str, metric: str) -> tuple[str, ...]:
        chosen = self.choice(policy, metric)
        return (f"parameter {chosen.parameter:g} lies at the grid's end",) if chosen.at_boundary else ()

    def notes(self, policy: str, metric: str) -> tuple[str, ...]:
        return (f"parameter {self.choice(policy, metric).parameter:g}, chosen on the same data: no coverage is claimed",)

    def _choose(self, policy: int, metric: int) -> GridChoice:
        moments, users = self._moments(0)
        if len(self.grid) == 1 or not users:
            return GridChoice(self.grid[-1], len(self.grid) - 1, False)
        ordered = range(len(self.grid) - 1, -1, -1)
        values, reach = [], []
        for place in ordered:
            linear = self._linear_at(moments.total, users, policy, metric, Per.user, place)
            values.append(linear.value)
            reach.append(1.96 * np.sqrt(moments.variance(linear.gradient)))
        best = 0
        for i in range(1, len(values)):
            if any(abs(values[i] - values[j]) > reach[i] + _SLOPE * reach[j] for j in range(i)):
                break
            best = i
        place = len(self.grid) - 1 - best
        return GridChoice(self.grid[place], place, best in (0, len(self.grid) - 1))
