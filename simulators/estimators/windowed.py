"""Windowed per-decision weights: a reward is weighted by the decisions of the user's last H hours.

Plain IPS keeps the logged history of each decision; the full product over a history has useless variance (it falls as
epsilon**k). A window between them is biased, by whatever is older than H. Shown at H and 2 H: if the two differ by more than
their intervals, the carry-over is longer than H and neither is to be believed; `Cells` is the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from serve_app.errors import InvalidInput
from serve_app.kernels import kernel
from simulators.estimators.estimator import Grouping, Units
from simulators.estimators.rows import Rows
from simulators.estimators.verdicts import Trust
from simulators.estimators.weighted import OwnWeights

__all__ = ["WindowedIPS"]

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

_HOUR_US = 3_600_000_000


@kernel
def _windowed(user: U64, at: I64, ratio: F64, horizon: int, out: F64) -> None:
    begin = 0
    for row in range(len(user)):
        if row and user[row] != user[row - 1]:
            begin = row
        while at[begin] <= at[row] - horizon:
            begin += 1
        for p in range(ratio.shape[1]):
            product = 1.0
            for earlier in range(begin, row + 1):
                product *= ratio[earlier, p]
            out[row, p] = product


class WindowedIPS(OwnWeights):
    """Rows need the extra column at i64[n] (microseconds), not decreasing within a user."""

    name = "windowed-ips"
    trust = Trust.biased

    def __init__(
        self, policies: Sequence[str], metrics: Sequence[str], *, hours: float, grouping: Grouping | None = None,
        replicates: int = 0,
    ) -> None:  # fmt: skip
        """hours: H. Construct a second one with 2 H."""
        if not hours > 0:
            raise InvalidInput(f"{hours}", field="hours", hint="a window is longer than 0")
        self.hours = float(hours)
        super().__init__(policies, metrics, grouping=grouping, replicates=replicates)

    @property
    def label(self) -> str:
        return f"{self.name} {self.hours:g} h" + (f" by {self.grouping.name}" if self.grouping else "")

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "hours": self.hours}

    def _like(self) -> Self:
        return type(self)(
            self.policies[1:], self.metrics, hours=self.hours, grouping=self.grouping, replicates=self.replicates
        )

    def _weights(self, rows: Rows) -> tuple[F64, F64]:
        at = np.ascontiguousarray(rows.need("at"), np.int64)
        if ((at[1:] < at[:-1]) & (rows.user[1:] == rows.user[:-1])).any():
            raise InvalidInput("decreases within a user", field="at", hint="sort by (user, order)")
        ratio = rows.target / rows.propensity[:, None]
        weight = np.empty((len(rows), 1 + ratio.shape[1]))
        weight[:, 0] = rows.scale
        product = np.empty_like(ratio)
        _windowed(rows.user, at, ratio, round(self.hours * _HOUR_US), product)
        weight[:, 1:] = product * rows.scale[:, None]
        return weight, np.ones(len(rows))

    def _units(self, rows: Rows) -> Units:
        units = super()._units(rows)
        kept = np.empty_like(rows.unsupported)
        at = np.ascontiguousarray(rows.need("at"), np.int64)
        _windowed(rows.user, at, 1.0 - rows.unsupported, round(self.hours * _HOUR_US), kept)
        return replace(units, unsupported=1.0 - kept)

    def notes(self, policy: str, metric: str) -> tuple[str, ...]:
        del policy, metric
        return (f"effects of decisions older than {self.hours:g} h are left as logged",)
