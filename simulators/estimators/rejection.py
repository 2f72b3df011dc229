"""Rejection replay: keep the logged rows that the target would have drawn too, and average what happened on them.

Li, Chu, Langford, Wang 2011 ("Unbiased offline evaluation of contextual-bandit-based news article recommendation
algorithms") for uniform logging; with known propensities a row is kept with probability ``w / bound`` (von Neumann's
rejection), so kept rows are a sample of the target's own. Needs no weights afterwards and allows an exact binomial interval;
it throws most rows away. The draw is a hash of (user, row within the user, policy).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from serve_app.errors import InvalidInput
from serve_app.kernels import kernel
from serve_app.noise import absorb, salt_of, unit_interval
from simulators.estimators.estimator import Column, Estimator, Grouping, Units
from simulators.estimators.intervals import Interval, clopper_pearson
from simulators.estimators.linear import Linear, monomial
from simulators.estimators.rows import Rows
from simulators.estimators.verdicts import Per

__all__ = ["RejectionReplay"]

F64 = npt.NDArray[np.float64]
U64 = npt.NDArray[np.uint64]

_SALT = salt_of("estimators.rejection")


@kernel
def _keep(user: U64, weight: F64, bound: float, out: F64) -> None:
    """out f64[n, 1 + P]: 1 where a row is kept under a policy (column 0, logged: always)."""
    place = np.uint64(0)
    for row in range(len(user)):
        place = np.uint64(place + np.uint64(1)) if row and user[row] == user[row - 1] else np.uint64(0)
        key = absorb(absorb(_SALT, user[row]), place)
        out[row, 0] = 1.0
        for p in range(1, weight.shape[1]):
            u = unit_interval(absorb(key, np.uint64(p)))
            out[row, p] = 1.0 if u * bound < weight[row, p] else 0.0


class RejectionReplay(Estimator):
    """Mean reward of kept rows. `bound`: the largest weight there can be, known before the data (uniform logging over k
    choices: k). Rows must be logged in full (log_rate 1)."""

    name = "rejection"
    by_choice = frozenset({Per.send})
    own_weights = True

    def __init__(
        self, policies: Sequence[str], metrics: Sequence[str], *, bound: float, grouping: Grouping | None = None,
        replicates: int = 0,
    ) -> None:  # fmt: skip
        if not bound >= 1:
            raise InvalidInput(f"{bound}", field="bound", hint="weights have mean 1, so their bound is at least 1")
        self.bound = float(bound)
        super().__init__(policies, metrics, grouping=grouping, replicates=replicates)

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "bound": self.bound}

    def _like(self) -> Self:
        return type(self)(
            self.policies[1:], self.metrics, bound=self.bound, grouping=self.grouping, replicates=self.replicates
        )

    def _columns(self) -> list[Column]:
        columns: list[Column] = [("decisions", 0, 0, -1)]
        for p in range(len(self.policies)):
            columns += [(f"kept.{p}", p, 0, -1), (f"sends.{p}", p, 1, -1)]
            columns.extend((f"reward.{p}.{m}", p, 2 + m, m) for m in range(len(self.metrics)))
        return columns

    def _units(self, rows: Rows) -> Units:
        if len(rows) and (rows.scale != 1.0).any():
            raise InvalidInput("rejection replay needs every row", field="log_rate", hint="use IPS on sampled logs")
        largest = float(rows.weight.max(initial=0.0))
        if largest > self.bound * (1 + 1e-9):
            raise InvalidInput(
                f"a weight of {largest:.6g} exceeds it", field="bound", hint="raise it before looking at results"
            )
        kept = np.empty_like(rows.weight)
        _keep(rows.user, rows.weight, self.bound, kept)
        right = np.concatenate([np.ones((len(rows), 1)), rows.send[:, None], rows.reward], axis=1)
        scaled = kept.copy()
        scaled[:, 1:] *= self.bound  # so that the mean weight is 1 and its distance means what it means elsewhere
        return Units(rows.user, kept, right, weight=scaled, live=rows.send, unsupported=rows.unsupported)

    def _linear(self, total: F64, users: float, policy: int, metric: int, per: Per) -> Linear:
        kept, decisions = self._place[f"kept.{policy}"], self._place["decisions"]
        reward = self._place[f"reward.{policy}.{metric}"]
        if per is Per.send:
            return monomial(total, {reward: 1, self._place[f"sends.{policy}"]: -1})
        if per is Per.decision:
            return monomial(total, {reward: 1, kept: -1})
        return monomial(total, {reward: 1, kept: -1, decisions: 1}, 1.0 / users)

    def exact_interval(self, policy: str, metric: str, level: float = 0.95) -> Interval:
        """Clopper-Pearson of the mean over decisions, for rewards of 0 or 1 with one row a user; InvalidInput otherwise."""
        moments = self.sums.moments()
        p, m = self.policies.index(policy), self.metrics.index(metric)
        reward, kept = self._place[f"reward.{p}.{m}"], self._place[f"kept.{p}"]
        total, trials = moments.total[reward], moments.total[kept]
        if moments.total[0] != moments.users or moments.product[reward, reward] != total or total != round(total):
            raise InvalidInput("needs rewards of 0 or 1 and one row a user", field=metric, hint="use the clustered interval")
        return clopper_pearson(round(total), round(trials), level)
