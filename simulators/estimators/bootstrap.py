"""User Poisson bootstrap: each replicate counts a user 0, 1, 2, ... times, by a hash of (user, replicate).

Counts are independent Poisson(1) draws (Hanley and MacGibbon 2006; Chamandy et al. 2012, "Estimating uncertainty for massive
data streams"), and a pure function of the user, so that shards agree on them without talking. Rows of a user go together:
the resampling unit is the user.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from serve_app.kernels import kernel
from serve_app.noise import absorb, salt_of, unit_interval

__all__ = ["percentile_interval", "poisson_count", "poisson_counts"]

F64 = npt.NDArray[np.float64]
U64 = npt.NDArray[np.uint64]

_SALT = salt_of("estimators.bootstrap")
_EXP_MINUS_1 = 0.36787944117144233


@kernel
def poisson_count(user: np.uint64, replicate: int) -> int:
    """Scalar, inside kernels: how often a replicate counts a user."""
    u = unit_interval(absorb(absorb(_SALT, user), np.uint64(replicate)))
    count, term = 0, _EXP_MINUS_1
    while u >= term and count < 16:
        u -= term
        count += 1
        term /= count
    return count


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
