"""Intervals: each says what it rests on. All need only mergeable sums.

`clustered`            user-clustered linearisation; many users, no heavy tail. The default.
`clopper_pearson`      exact for independent 0 / 1 outcomes: one row a user, rejection replay.
`empirical_bernstein`  finite-sample for independent user totals in a declared range; wide.
`confidence_sequence`  holds at all times at once, asymptotically: for reports repeated while users are added.
`spent_level`          the level of the k-th report on a growing log of the same users, so that all hold together.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from serve_app.errors import InvalidInput

__all__ = ["Interval", "clopper_pearson", "clustered", "confidence_sequence", "empirical_bernstein", "spent_level"]


@dataclass(frozen=True, slots=True)
class Interval:
    """[low, high], the level it aims at, the kind of its construction, and its standard error where it has one."""

    low: float
    high: float
    level: float
    kind: str
    standard_error: float = np.nan

    def covers(self, value: float) -> bool:
        """Is the value inside, ends included?"""
        return bool(self.low <= value <= self.high)

    @property
    def half_width(self) -> float:
        """Half of its length."""
        return (self.high - self.low) / 2


@lru_cache(maxsize=4096)
def _student(level: float, degrees: int) -> float:
    from scipy import stats  # a second to import; what adds up needs none of it

    return float(stats.t.ppf((1 + level) / 2, degrees))


def clustered(value: float, variance: float, users: int, level: float = 0.95) -> Interval:
    """value -+ t(users - 1) * sqrt(variance), from `Moments.variance`; unbounded with fewer than two users."""
    if users < 2 or not np.isfinite(variance):
        return Interval(-np.inf, np.inf, level, "user-clustered")
    error = float(np.sqrt(variance))
    reach = _student(level, users - 1) * error
    return Interval(value - reach, value + reach, level, "user-clustered", error)


def clopper_pearson(successes: int, trials: int, level: float = 0.95) -> Interval:
    """Exact binomial interval (Clopper and Pearson 1934)."""
    if not 0 <= successes <= trials:
        raise InvalidInput(f"{successes} of {trials}", field="successes", hint="they cannot exceed the trials")
    from scipy import stats

    tail = (1 - level) / 2
    low = float(stats.beta.ppf(tail, successes, trials - successes + 1)) if successes > 0 else 0.0
    high = float(stats.beta.ppf(1 - tail, successes + 1, trials - successes)) if successes < trials else 1.0
    return Interval(low, high, level, "Clopper-Pearson")


def empirical_bernstein(mean: float, variance: float, users: int, low: float, high: float, level: float = 0.95) -> Interval:
    """Maurer and Pontil 2009, "Empirical Bernstein bounds and sample-variance penalization", theorem 4, both sides.

    mean and (unbiased) variance of independent user totals that lie in the *declared* range [low, high]: a bound known
    before the data, such as rows a user x largest reward / smallest propensity.
    """
    if users < 2 or not high > low:
        raise InvalidInput("needs two users and a range", field="range")
    log_term = np.log(4 / (1 - level))
    reach = float(np.sqrt(2 * variance * log_term / users) + 7 * (high - low) * log_term / (3 * (users - 1)))
    return Interval(max(low, mean - reach), min(high, mean + reach), level, "empirical Bernstein")


def confidence_sequence(
    value: float, variance: float, users: int, level: float = 0.95, tightest_at: int = 10_000
) -> Interval:
    """Asymptotic confidence sequence with a normal mixture (Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas 2024, "Time-uniform
    central limit theory and asymptotic confidence sequences", theorem 2.2 and its tuning of rho).

    variance is that of the estimate (variance of a user / users). Covers at every number of users at once, so one may look
    after each day and stop when one likes, provided that what is added are new users. tightest_at: users at which it is
    tightest; set before the first look.
    """
    if users < 2:
        return Interval(-np.inf, np.inf, level, "anytime")
    alpha = 1 - level
    rho2 = (-2 * np.log(alpha) + np.log(-2 * np.log(alpha) + 1)) / tightest_at
    spread = users * rho2 + 1
    reach = float(np.sqrt(users * variance) * np.sqrt(2 * spread / (users**2 * rho2) * np.log(np.sqrt(spread) / alpha)))
    return Interval(value - reach, value + reach, level, "anytime", float(np.sqrt(variance)))


def spent_level(look: int, level: float = 0.95) -> float:
    """Level of the `look`-th report (from 1) such that all reports ever made hold together with probability `level`:
    alpha * 6 / (pi * look)**2 is spent on it (union bound). Needs nothing of how the log grows."""
    if look < 1:
        raise InvalidInput(f"{look}", field="look", hint="looks are counted from 1")
    return 1 - (1 - level) * 6 / (np.pi * look) ** 2
