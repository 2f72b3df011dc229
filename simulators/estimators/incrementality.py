"""What messages cause, from a randomised holdout: intention to treat by user, CUPED, ratios, lift, net value.

Users enter at their first would-send (`trigger`), marked alike in both arms, so that both hold the same kind of people; what
they do in a fixed window after it is compared between arms whatever happened to them later. One row a user; sums are exact
and mergeable. Effects are differences of means with unpooled variances and normal quantiles.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from serve_app.errors import DamagedArtifact, InvalidInput
from simulators.estimators.intervals import Interval
from simulators.estimators.srm import SampleRatio, sample_ratio
from simulators.estimators.user_sums import Layout, Moments, UserSums

__all__ = ["Adjusted", "Effect", "Trial"]

F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
U64 = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Effect:
    """value with its interval, two-sided p of no effect, and the arms' users and means."""

    value: float
    interval: Interval
    p_value: float
    treated_users: int
    control_users: int
    treated_mean: float
    control_mean: float


@dataclass(frozen=True, slots=True)
class Adjusted:
    """An effect after CUPED; theta f64[C] by covariate; variance_removed: share of the plain variance it took away."""

    effect: Effect
    theta: F64
    variance_removed: float


class Trial:
    """Sums of a trial: arms by name (the first is the control), outcomes and covariates by name."""

    def __init__(self, arms: Sequence[str], outcomes: Sequence[str], covariates: Sequence[str] = ()) -> None:
        if len(arms) < 2 or not outcomes:
            raise InvalidInput("name two arms and one outcome at least", field="arms, outcomes")
        self.arms, self.outcomes, self.covariates = tuple(arms), tuple(outcomes), tuple(covariates)
        names = [*self.outcomes, *self.covariates]
        if len(set(names)) != len(names) or len(set(self.arms)) != len(self.arms):
            raise InvalidInput("is given twice", field="outcomes, covariates or arms")
        self._names = names
        self._sums = UserSums(Layout.of([(name, 0, i, -1) for i, name in enumerate(names)]), groups=len(self.arms))

    def update(self, user: U64, arm: npt.ArrayLike, outcome: npt.ArrayLike, covariate: npt.ArrayLike | None = None) -> None:
        """Add users: user u64[n], each once; arm i[n] index into `arms`; outcome f64[n, M]; covariate f64[n, C], known
        before the trigger. InvalidInput: a user twice, an unknown arm, a value that is not finite."""
        users, arms = np.ascontiguousarray(user, np.uint64), np.ascontiguousarray(arm, np.int32)
        n = len(users)
        given = ((outcome, self.outcomes), (() if covariate is None else covariate, self.covariates))
        values = [_table(one, n, len(names)) for one, names in given]
        table = np.ascontiguousarray(np.concatenate(values, axis=1))
        if arms.shape != (n,):
            raise InvalidInput(f"has shape {arms.shape}, expected ({n},)", field="arm")
        if n and (arms.min() < 0 or arms.max() >= len(self.arms)):
            raise InvalidInput(f"codes from {arms.min()} to {arms.max()} for {len(self.arms)} arms", field="arm")
        if len(np.unique(users)) != n:
            raise InvalidInput("a user stands here twice", field="user", hint="a user enters at the first would-send only")
        if not np.isfinite(table).all():
            raise InvalidInput("a value is missing or not finite", field="outcome, covariate")
        self._sums.fold(users, np.ones((n, 1)), table, arms)

    def __add__(self, other: Self) -> Self:
        if self._settings() != other._settings():
            raise InvalidInput("trials of different settings cannot be added", field="trial")
        out = type(self)(self.arms, self.outcomes, self.covariates)
        out._sums = self._sums + other._sums
        return out

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Flat arrays for a shard's file."""
        return {"settings": np.frombuffer(self._settings(), np.uint8), **self._sums.to_arrays()}

    def load(self, arrays: Mapping[str, npt.NDArray[Any]], prefix: str = "") -> Self:
        """A trial like this one with the sums of `to_arrays`."""
        if prefix + "settings" not in arrays or arrays[prefix + "settings"].tobytes() != self._settings():
            raise DamagedArtifact("was saved under other settings", field=prefix + "trial", hint="run that shard again")
        out = type(self)(self.arms, self.outcomes, self.covariates)
        out._sums.load(arrays, prefix)
        return out

    # --- answers ---

    def users(self) -> dict[str, int]:
        """Users by arm."""
        return {name: self._sums.moments(a).present for a, name in enumerate(self.arms)}

    def sample_ratio(self, shares: Sequence[float]) -> SampleRatio:
        """Are users split over the arms as designed? shares: of the arms, in their order."""
        return sample_ratio(list(self.users().values()), shares)

    def effect(self, arm: str, outcome: str, *, level: float = 0.95) -> Effect:
        """Mean of the arm minus mean of the control, per user."""
        return self.combined(arm, {outcome: 1.0}, level=level)

    def combined(self, arm: str, weights: Mapping[str, float], *, level: float = 0.95) -> Effect:
        """Effect on a weighted sum of outcomes. Net value per user: ``{"conversion": margin, "send": -cost, "opt_out":
        -cost_of_one}``; what a send costs falls on those who were sent, so sends are an outcome like any other."""
        gradient = np.zeros(len(self._names))
        for name, weight in weights.items():
            gradient[self._column(name)] = weight
        treated, control = self._arm(arm), self._arm(self.arms[0])
        return _difference(treated, control, gradient, gradient, level)

    def cuped(self, arm: str, outcome: str, covariates: Sequence[str] | None = None, *, level: float = 0.95) -> Adjusted:
        """Effect after subtracting what pre-trigger covariates predict (Deng, Xu, Kohavi, Walker 2013, "Improving the
        sensitivity of online controlled experiments by utilizing pre-experiment data"). theta is pooled over both arms."""
        names = self.covariates if covariates is None else tuple(covariates)
        if not names:
            raise InvalidInput("name one at least", field="covariates")
        y, x = self._column(outcome), np.array([self._column(name) for name in names])
        treated, control = self._arm(arm), self._arm(self.arms[0])
        spread = _scatter(treated) + _scatter(control)
        theta = np.linalg.lstsq(spread[np.ix_(x, x)], spread[x, y], rcond=None)[0]
        gradient = np.zeros(len(self._names))
        gradient[y], gradient[x] = 1.0, -theta
        plain = self.effect(arm, outcome, level=level)
        found = _difference(treated, control, gradient, gradient, level)
        removed = 1 - (found.interval.standard_error / plain.interval.standard_error) ** 2
        means = (plain.treated_mean, plain.control_mean)
        effect = Effect(found.value, found.interval, found.p_value, found.treated_users, found.control_users, *means)
        return Adjusted(effect, theta, float(removed))

    def ratio(self, arm: str, numerator: str, denominator: str, *, level: float = 0.95) -> Effect:
        """Difference of the ratios of totals (clicks per send), by the delta method over users."""
        treated, control = self._arm(arm), self._arm(self.arms[0])
        top, bottom = self._column(numerator), self._column(denominator)
        gradients = []
        for one in (treated, control):
            a, b = one.total[top] / one.users, one.total[bottom] / one.users
            if b == 0:
                raise InvalidInput("is 0 in an arm", field=denominator, hint="the ratio does not exist")
            gradient = np.zeros(len(self._names))
            gradient[top], gradient[bottom] = 1 / b, -a / b**2
            gradients.append(gradient)
        values = [one.total[top] / one.total[bottom] for one in (treated, control)]
        return _difference(treated, control, gradients[0], gradients[1], level, (float(values[0]), float(values[1])))

    def lift(self, arm: str, outcome: str, *, level: float = 0.95) -> Effect:
        """Relative effect, mean of the arm / mean of the control - 1, by the delta method."""
        treated, control = self._arm(arm), self._arm(self.arms[0])
        column = self._column(outcome)
        base = control.total[column] / control.users
        if base == 0:
            raise InvalidInput("is 0 in the control arm", field=outcome, hint="a relative effect does not exist")
        mean = treated.total[column] / treated.users
        up, down = np.zeros(len(self._names)), np.zeros(len(self._names))
        up[column], down[column] = 1 / base, mean / base**2
        return _difference(treated, control, up, down, level, (float(mean / base), 1.0))

    def _settings(self) -> bytes:
        return json.dumps([self.arms, self.outcomes, self.covariates]).encode()

    def _column(self, name: str) -> int:
        if name not in self._names:
            raise InvalidInput(f"{name!r} is not among {', '.join(self._names)}", field="outcome")
        return self._names.index(name)

    def _arm(self, name: str) -> Moments:
        if name not in self.arms:
            raise InvalidInput(f"{name!r} is not among {', '.join(self.arms)}", field="arm")
        found = self._sums.moments(self.arms.index(name))
        if found.present < 2:
            raise InvalidInput(f"{found.present} users", field=f"arm {name}", hint="an effect needs two in each arm")
        return Moments(found.total, found.product, found.present, found.present)


def _table(values: npt.ArrayLike, rows: int, width: int) -> F64:
    """f64[rows, width], or InvalidInput."""
    out = np.asarray(values, np.float64)
    if out.size != rows * width:
        raise InvalidInput(f"has shape {out.shape}, expected ({rows}, {width})", field="outcome, covariate")
    return out.reshape(rows, width)


def _scatter(arm: Moments) -> F64:
    """Within-arm sums of squares and products about the mean."""
    return arm.product - np.multiply.outer(arm.total, arm.total) / arm.users


@lru_cache(maxsize=256)
def _normal(level: float) -> float:
    from scipy import stats  # a second to import; what adds up needs none of it

    return float(stats.norm.ppf((1 + level) / 2))


def _difference(
    treated: Moments, control: Moments, up: F64, down: F64, level: float, values: tuple[float, float] | None = None
) -> Effect:
    """Treated minus control of a function of the means with gradients `up` and `down`; linear functions need no values."""
    from scipy import stats

    means = []
    variance = 0.0
    for arm, gradient in ((treated, up), (control, down)):
        variance += arm.variance(gradient) / arm.users**2
        means.append(float((gradient * arm.total).sum() / arm.users))
    first, second = values or (means[0], means[1])
    value, error = first - second, float(np.sqrt(variance))
    reach = _normal(level) * error
    p = float(2 * stats.norm.sf(abs(value) / error)) if error > 0 else float(value == 0)
    interval = Interval(value - reach, value + reach, level, "unpooled, normal", error)
    return Effect(value, interval, p, treated.users, control.users, first, second)
