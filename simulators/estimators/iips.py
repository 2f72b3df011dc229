"""Independent IPS for lists (Li et al. 2018, "Offline evaluation of ranking policies with click models", item-position
model): a slot's reward is weighted by the marginal probability of its item in that slot, ``pi_k(a) / p_k(a)``.

Right where a slot's reward depends on its own item alone. Marginals of a list drawn without replacement have no closed form:
they are simulated by drawing each list many times with fresh noise, and that error is added to the interval: the relative
variance of a ratio of two independent shares of S draws is ``(1 - pi) / (pi S) + (1 - p) / (p S)``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from serve_app.errors import InvalidInput
from simulators.estimators.estimator import Column, Grouping, Units
from simulators.estimators.intervals import Interval, clustered
from simulators.estimators.linear import monomial
from simulators.estimators.lists import first_slots
from simulators.estimators.rows import Rows
from simulators.estimators.verdicts import Per
from simulators.estimators.weighted import OwnWeights

__all__ = ["IIPS", "simulated_marginals"]

F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]


def simulated_marginals(draw: Callable[[int], I32], shown: I64, slot: I32, draws: int) -> F64:
    """f64[n]: share of `draws` lists in which the logged item stands in its logged slot.

    draw(i) gives the i-th drawing's slot of every candidate (i32[m], -1: not chosen): the selector with the request's noise
    replaced by that of number i. shown i64[n]: candidate row of each logged slot; slot i32[n]. At least one half draw, so
    that a probability is never 0.
    """
    if draws < 1:
        raise InvalidInput(f"{draws}", field="draws", hint="draw each list at least once")
    hits = np.zeros(len(shown))
    for i in range(draws):
        hits += draw(i)[shown] == slot
    return np.asarray(np.maximum(hits, 0.5) / draws)


class IIPS(OwnWeights):
    """Rows need the extra columns list, marginal_propensity f64[n] and marginal_target f64[n, P], from `draws` drawings."""

    name = "iips"

    def __init__(
        self, policies: Sequence[str], metrics: Sequence[str], *, draws: int, grouping: Grouping | None = None,
        replicates: int = 0,
    ) -> None:  # fmt: skip
        if draws < 1:
            raise InvalidInput(f"{draws}", field="draws", hint="how often each list was drawn")
        self.draws = int(draws)
        super().__init__(policies, metrics, grouping=grouping, replicates=replicates)

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "draws": self.draws}

    def _like(self) -> Self:
        return type(self)(
            self.policies[1:], self.metrics, draws=self.draws, grouping=self.grouping, replicates=self.replicates
        )

    def _columns(self) -> list[Column]:
        columns, metrics = super()._columns(), len(self.metrics)
        for p in range(1, len(self.policies)):
            columns.extend((f"drawing.{p}.{m}", 0, 2 + metrics + (p - 1) * metrics + m, m) for m in range(metrics))
        return columns

    def _marginals(self, rows: Rows) -> tuple[F64, F64]:
        p = np.asarray(rows.need("marginal_propensity"), np.float64)
        pi = np.asarray(rows.need("marginal_target"), np.float64).reshape(len(rows), -1)
        if pi.shape != rows.target.shape or not ((p > 0) & (p <= 1)).all() or not ((pi > 0) & (pi <= 1)).all():
            raise InvalidInput("must lie in (0, 1], of the targets' shape", field="marginal_propensity, marginal_target")
        return p, pi

    def _weights(self, rows: Rows) -> tuple[F64, F64]:
        p, pi = self._marginals(rows)
        weight = np.empty((len(rows), 1 + pi.shape[1]))
        weight[:, 0], weight[:, 1:] = rows.scale, pi / p[:, None] * rows.scale[:, None]
        return weight, first_slots(rows)[1]

    def _units(self, rows: Rows) -> Units:
        plain = super()._units(rows)
        p, pi = self._marginals(rows)
        relative = ((1 - p) / p)[:, None] + (1 - pi) / pi
        drawing = (plain.left[:, 1:, None] * rows.reward[:, None, :]) ** 2 * relative[:, :, None] / self.draws
        unscaled = (drawing / rows.scale[:, None, None]).reshape(len(rows), -1)  # column 0 of the weights is the scale
        right = np.concatenate([plain.right, unscaled], axis=1)
        return Units(plain.user, plain.left, right, None, plain.weight, plain.live, plain.unsupported)

    def interval(
        self,
        policy: str,
        metric: str,
        per: Per = Per.user,
        *,
        versus: str | None = None,
        group: int = 0,
        level: float = 0.95,
    ) -> tuple[float, Interval]:
        value, plain = super().interval(policy, metric, per, versus=versus, group=group, level=level)
        moments, users = self._moments(group)
        m = self.metrics.index(metric)
        added = 0.0
        for name in {policy, versus} - {None, self.policies[0]}:
            p = self.policies.index(str(name))
            powers, constant = self._over(per, users, self._place["decisions"], self._place[f"sends.{p}"])
            divisor = monomial(moments.total, powers, constant).value
            added += moments.total[self._place[f"drawing.{p}.{m}"]] * divisor**2
        return value, clustered(value, plain.standard_error**2 + added, moments.users, level)

    def notes(self, policy: str, metric: str) -> tuple[str, ...]:
        del policy, metric
        return (f"marginals from {self.draws} drawings a list; their error is in the interval",)
