"""User Poisson bootstrap: each replicate counts a user 0, 1, 2, ... times, by a hash of (user, replicate).

Counts are independent Poisson(1) draws (Hanley and MacGibbon 2006; Chamandy et al. 2012, "Estimating uncertainty for massive
data streams"), and a pure function of the user, so that shards agree on them without talking. Rows of a user go together:
the resampling unit is the user.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from serve_app.kernels import kernel
from serve_app.noise import absorb, salt_of, unit_interval

__all__ = ["percentile_interval", "poisson_count", "poisson_counts", "user_counts"]

F64 = npt.NDArray[np.float64]
U64 = npt.NDArray[np.uint64]

_SALT = salt_of("estimators.bootstrap")
_UP_TO = np.cumsum([1 / (math.e * math.factorial(k)) for k in range(12)])  # f64[12]: chance of at most k


@kernel
def poisson_count(user: np.uint64, replicate: int) -> int:
    """Scalar, inside kernels: how often a replicate counts a user."""
    u, count = unit_interval(absorb(absorb(_SALT, user), np.uint64(replicate))), 0
    for k in range(len(_UP_TO)):
        count += 1 if u >= _UP_TO[k] else 0
    return count


@kernel
def user_counts(user: np.uint64, out: F64) -> None:
    """f64[B]: `poisson_count` of one user in every replicate."""
    key = absorb(_SALT, user)
    for b in range(len(out)):
        u, count = unit_interval(absorb(key, np.uint64(b))), 0.0
        for k in range(len(_UP_TO)):
            count += 1.0 if u >= _UP_TO[k] else 0.0
        out[b] = count


@kernel
def poisson_counts(users: U64, replicate: int, out: F64) -> None:
    """f64[n] of one replicate."""
    for i in range(len(users)):
        out[i] = poisson_count(users[i], replicate)


def percentile_interval(values: F64, level: float) -> tuple[float, float]:
    """(low, high) of the finite values of a statistic over replicates; (nan, nan) where fewer than 20 are."""
    finite = values[np.isfinite(values)]
    if len(finite) < 20:
        return np.nan, np.nan
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
