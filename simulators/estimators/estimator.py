"""The estimator contract: update with rows, add, save and load, and answer as a linearised function of user sums.

An estimator says its columns (products of row factors) and, from their totals, each value with its gradient. Intervals,
paired differences, groups, bootstrap and merging then come from `UserSums`, alike for all of them.

The policy axis starts with ``logged``, what happened (weight 1): differences against it are paired like any other.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt

from serve_app.errors import DamagedArtifact, InvalidInput
from simulators.estimators.bootstrap import percentile_interval
from simulators.estimators.diagnostics import Diagnostics
from simulators.estimators.intervals import Interval, clustered, confidence_sequence, empirical_bernstein
from simulators.estimators.linear import Linear
from simulators.estimators.rows import Rows
from simulators.estimators.user_sums import Layout, Moments, UserSums
from simulators.estimators.verdicts import Per, Trust

__all__ = ["LOGGED", "Column", "Estimator", "Grouping", "Units"]

F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
U64 = npt.NDArray[np.uint64]

LOGGED = "logged"
Column = tuple[str, int, int, int]  # name, left factor, right factor, metric (-1: shared)


@dataclass(frozen=True, slots=True)
class Grouping:
    """A breakdown; codes stand in `Rows.groups[name]` and index `labels`.

    of: `user` (a segment: "per user" means per user in it), `time` (a day: per user of the whole log), or `choice` (channel,
    category, campaign of what was logged: the target's own share of such choices is not known, so only ratios that do
    without it are offered, and the mean weight need not be 1)."""

    name: str
    labels: tuple[str, ...]
    of: Literal["user", "time", "choice"]


@dataclass(frozen=True, slots=True)
class Units:
    """What is summed over a user: rows as they are, or something made of them (user-epochs, lists). user u64[n]; left
    f64[n, L]; right f64[n, R]; code i32[n] or None. weight, live, unsupported: as `Diagnostics.update` takes them, where the
    estimator's weights are its own."""

    user: U64
    left: F64
    right: F64
    code: I32 | None = None
    weight: F64 | None = None
    live: F64 | None = None
    unsupported: F64 | None = None


class Estimator(ABC):
    """Base of all estimators. Subclasses say `_columns`, `_units`, `_linear`; numbers of policies include `logged` as 0."""

    name: ClassVar[str]
    trust: ClassVar[Trust] = Trust.unbiased
    own_weights: ClassVar[bool] = False
    mean_of_users: ClassVar[bool] = False  # per user, the value is a mean of independent user totals
    by_choice: ClassVar[frozenset[Per]] = frozenset()  # what it can say of groups of choices

    def __init__(
        self, policies: Sequence[str], metrics: Sequence[str], *, grouping: Grouping | None = None, replicates: int = 0
    ) -> None:
        """policies: targets (without `logged`); metrics: names of the rewards' columns; replicates: of the bootstrap."""
        if not policies or not metrics or LOGGED in policies:
            raise InvalidInput(
                "name at least one policy and one metric; `logged` is always there", field="policies, metrics"
            )
        self.policies = (LOGGED, *policies)
        self.metrics = tuple(metrics)
        if grouping is not None and grouping.of == "choice" and not self.by_choice:
            raise InvalidInput("cannot be split by what was chosen", field=f"{self.name} by {grouping.name}",
                               hint="use ips or snips for that breakdown")  # fmt: skip
        self.grouping = grouping
        self.replicates = replicates
        self._layout = Layout.of(self._columns())
        self._place = {name: i for i, name in enumerate(self._layout.names)}
        self.sums = UserSums(self._layout, groups=len(grouping.labels) if grouping else 1, replicates=replicates)
        own = self.own_weights or grouping is not None
        self.diagnostics = Diagnostics(policies, groups=len(grouping.labels) if grouping else 1) if own else None

    @abstractmethod
    def _columns(self) -> list[Column]:
        """The layout."""

    @abstractmethod
    def _units(self, rows: Rows) -> Units:
        """Factors of the rows' columns."""

    @abstractmethod
    def _linear(self, total: F64, users: float, policy: int, metric: int, per: Per) -> Linear:
        """Value and gradient at the totals."""

    @property
    def label(self) -> str:
        """Name within a suite: the estimator's, and its grouping's."""
        return self.name if self.grouping is None else f"{self.name} by {self.grouping.name}"

    def flags(self, policy: str, metric: str) -> tuple[str, ...]:
        """Reasons of its own for a standing of at best weak."""
        del policy, metric
        return ()

    def notes(self, policy: str, metric: str) -> tuple[str, ...]:
        """What a reader of the number should know."""
        del policy, metric
        return ()

    def settings(self) -> dict[str, Any]:
        """What must agree before sums can be added; subclasses add their own."""
        grouping = self.grouping
        return {
            "estimator": self.name, "policies": list(self.policies), "metrics": list(self.metrics),
            "grouping": [grouping.name, list(grouping.labels), grouping.of] if grouping else None,
            "replicates": self.replicates,
        }  # fmt: skip

    def _like(self) -> Self:
        """An empty one of the same settings; subclasses with settings of their own override it."""
        return type(self)(self.policies[1:], self.metrics, grouping=self.grouping, replicates=self.replicates)

    # --- sums ---

    def update(self, rows: Rows) -> None:
        """Add rows. All rows of a user must be in one call. InvalidInput: shapes differ, a needed column is absent."""
        if rows.target.shape[1] != len(self.policies) - 1 or rows.reward.shape[1] != len(self.metrics):
            raise InvalidInput(
                f"rows of {rows.target.shape[1]} policies and {rows.reward.shape[1]} metrics, expected "
                f"{len(self.policies) - 1} and {len(self.metrics)}", field="target, reward",
            )  # fmt: skip
        if not len(rows):
            if self.diagnostics is not None:
                self.diagnostics.exclude(rows.excluded)
            return
        units = self._units(rows)
        code = units.code
        if self.grouping is not None and code is None:
            if self.grouping.name not in rows.groups:
                raise InvalidInput("rows carry no codes of it", field=f"groups[{self.grouping.name}]")
            code = rows.groups[self.grouping.name]
        self.sums.fold(units.user, units.left, units.right, code)
        if self.diagnostics is not None:
            weight, live, lost, factors = units.weight, units.live, units.unsupported, None
            if weight is None or live is None or lost is None:
                weight, live, lost, factors = rows.weight, rows.send, rows.unsupported, rows.trust_factors
            self.diagnostics.update(units.user, weight, live, lost, rows.excluded, code, factors)

    def earners(self, policy: str, metric: str, group: int = 0) -> float | None:
        """Kish's effective number of users who earned a metric under a policy; None where values rest on a model."""
        place = self._place.get(f"reward.{self.policies.index(policy)}.{self.metrics.index(metric)}")
        if place is None:
            return None
        moments, _ = self._moments(group)
        square = moments.product[place, place]
        return float(moments.total[place] ** 2 / square) if square > 0 else 0.0

    def offers(self, per: Per) -> bool:
        """Can it answer per user, decision, send under its grouping?"""
        return self.grouping is None or self.grouping.of != "choice" or per in self.by_choice

    def __add__(self, other: Self) -> Self:
        if self.settings() != other.settings():
            raise InvalidInput("estimators of different settings cannot be added", field=self.name)
        out = self._like()
        out.sums = self.sums + other.sums
        if self.diagnostics is not None and other.diagnostics is not None:
            out.diagnostics = self.diagnostics + other.diagnostics
        return out

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Flat arrays, with the settings as JSON bytes."""
        settings = np.frombuffer(json.dumps(self.settings(), sort_keys=True).encode(), np.uint8)
        own = {} if self.diagnostics is None else {f"weights.{k}": v for k, v in self.diagnostics.to_arrays().items()}
        return {"settings": settings, **self.sums.to_arrays(), **own}

    def load(self, arrays: Mapping[str, npt.NDArray[Any]], prefix: str = "") -> Self:
        """An estimator like this one with the sums of `to_arrays`. DamagedArtifact where they are of other settings."""
        mine = json.dumps(self.settings(), sort_keys=True).encode()
        if prefix + "settings" not in arrays or arrays[prefix + "settings"].tobytes() != mine:
            raise DamagedArtifact("was saved under other settings", field=prefix + self.name, hint="run that shard again")
        out = self._like()
        out.sums.load(arrays, prefix)
        if out.diagnostics is not None:
            out.diagnostics.load(arrays, f"{prefix}weights.")
        return out

    # --- answers ---

    def point(self, policy: str, metric: str, per: Per = Per.user, group: int = 0) -> Linear:
        """Value and gradient, whatever its verdict: for tests and studies. NaN where there is nothing to divide by."""
        moments, users = self._moments(group)
        return self._at(moments.total, users, policy, metric, per)

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
        """(value, user-clustered interval), where `versus` is named of the paired difference. `offers(per)` must hold."""
        moments, users = self._moments(group)
        linear = self._at(moments.total, users, policy, metric, per)
        if versus is not None:
            linear = linear - self._at(moments.total, users, versus, metric, per)
        return linear.value, clustered(linear.value, moments.variance(linear.gradient), moments.users, level)

    def anytime(
        self,
        policy: str,
        metric: str,
        per: Per = Per.user,
        *,
        versus: str | None = None,
        level: float = 0.95,
        tightest_at: int = 10_000,
    ) -> Interval:
        """Confidence sequence, for reports repeated while users are added; see `intervals.confidence_sequence`."""
        value, plain = self.interval(policy, metric, per, versus=versus, level=level)
        moments, _ = self._moments(0)
        return confidence_sequence(value, plain.standard_error**2, moments.users, level, tightest_at)

    def bernstein(self, policy: str, metric: str, low: float, high: float, *, level: float = 0.95) -> Interval:
        """Finite-sample interval per user, where a user's total is known to lie in [low, high]: only for estimators that are
        means over users (no self-normalised one is)."""
        moments, users = self._moments(0)
        linear = self._at(moments.total, users, policy, metric, Per.user)
        if not self.mean_of_users:
            raise InvalidInput("is not a mean over users", field=self.label, hint="use ips or dr")
        variance = moments.variance(linear.gradient) * moments.users
        return empirical_bernstein(linear.value, variance, moments.users, low, high, level)

    def bootstrap(
        self, policy: str, metric: str, per: Per = Per.user, *, versus: str | None = None, level: float = 0.95
    ) -> Interval:
        """Percentile interval over the user Poisson bootstrap's replicates."""
        if not self.replicates:
            raise InvalidInput("no replicates were kept", field="replicates", hint="construct it with replicates=200")
        totals = self.sums.replicate_totals()
        values = np.empty(len(totals))
        for b, row in enumerate(totals):
            values[b] = self._at(row[:-1], row[-1], policy, metric, per).value
            if versus is not None:
                values[b] -= self._at(row[:-1], row[-1], versus, metric, per).value
        low, high = percentile_interval(values, level)
        return Interval(low, high, level, "user Poisson bootstrap", float(np.std(values, ddof=1)))

    def _moments(self, group: int) -> tuple[Moments, float]:
        moments = self.sums.moments(group)
        if self.grouping is not None and self.grouping.of == "user":
            moments = Moments(moments.total, moments.product, moments.present, moments.present)
        return moments, float(moments.users)

    def _at(self, total: F64, users: float, policy: str, metric: str, per: Per) -> Linear:
        for name, known, field in ((policy, self.policies, "policy"), (metric, self.metrics, "metric")):
            if name not in known:
                raise InvalidInput(f"{name!r} is not among {', '.join(known)}", field=field)
        if not users > 0:
            return Linear(np.nan, np.zeros(len(total)))
        return self._linear(total, users, self.policies.index(policy), self.metrics.index(metric), per)

    def _over(self, per: Per, users: float, decisions: int, sends: int) -> tuple[dict[int, int], float]:
        """Divisor of a total: (powers, constant) for `monomial`."""
        if per is Per.user:
            return {}, 1.0 / users
        return {(decisions if per is Per.decision else sends): -1}, 1.0
