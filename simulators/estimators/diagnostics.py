"""How far weights can be trusted: effective sample sizes, unsupported mass, the largest user, the mean weight against 1.

Effective sample size is Kish's, ``(sum w)**2 / sum w**2`` (Kish 1965, "Survey sampling"), over rows whose reward is not
structurally zero, and over users by the same formula on each user's total weight. All but the two maxima are user sums.

How much a target changes at all is the total variation between it and the log's policy, the mean of ``max(0, 1 - w)`` over
what was logged. A log without chance in it supports every policy that changes little, and nothing of the change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.kernels import kernel
from simulators.estimators.linear import monomial
from simulators.estimators.rows import FAULTS, trust_factors
from simulators.estimators.user_sums import ALONE, Layout, UserSums

__all__ = ["Diagnostics", "PolicyDiagnostics"]

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
U64 = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class PolicyDiagnostics:
    """Of one target policy. rows (weighted by 1 / log_rate) and users read; live_weight: total weight of rows that may earn;
    ess_rows, ess_users over those; unsupported: share of the target's mass; changed: share of the mass that the target puts
    elsewhere than the log; unsupported_change: of that, the share that could not be logged; largest_user: share of the live
    weight; largest_weight of any row; mean_weight over all rows, its distance from the supported mass in standard errors;
    excluded: rows left out by fault."""

    rows: float
    users: int
    live_weight: float
    ess_rows: float
    ess_users: float
    unsupported: float
    changed: float
    unsupported_change: float
    largest_user: float
    largest_weight: float
    mean_weight: float
    mean_weight_standard_error: float
    mean_weight_distance: float
    excluded: Mapping[str, int]

    @property
    def ess(self) -> float:
        """The smaller of both effective sample sizes."""
        return min(self.ess_rows, self.ess_users)

    @property
    def excluded_share(self) -> float:
        """Share of rows left out."""
        out = sum(self.excluded.values())
        return out / (out + self.rows) if out else 0.0


_STEPS = 2.0**24
"""Changes are added as whole numbers of 1 / _STEPS, so that their order does not matter."""


@kernel
def _largest(user: U64, code: I32, weight: F64, live: F64, by_user: F64, by_row: F64, changed: I64) -> None:
    """Raise maxima f64[G, P], add to i64[G, P]; a user's total restarts in each group at the user's first row in it."""
    total = np.zeros(by_user.shape)
    last = np.full(len(by_user), -1, np.int64)
    number = 0
    for row in range(len(user)):
        number += 1 if row and user[row] != user[row - 1] else 0
        g = np.int64(code[row]) if len(code) else np.int64(0)
        if g < 0:
            continue
        if last[g] != number:
            last[g] = number
            total[g] = 0.0
        for p in range(by_user.shape[1]):
            w = weight[row, p + 1]
            by_row[g, p] = max(by_row[g, p], w)
            changed[g, p] += np.int64(max(weight[row, 0] - w, 0.0) * _STEPS + 0.5)
            total[g, p] += w * live[row]
            by_user[g, p] = max(by_user[g, p], total[g, p])


class Diagnostics:
    """Mergeable diagnostics of the weights of P target policies."""

    def __init__(self, policies: Sequence[str], *, groups: int = 1) -> None:
        """policies: names of the targets (without `logged`)."""
        self.policies = tuple(policies)
        count = len(self.policies)
        columns = [("rows", 0, 0, -1)]
        for p in range(count):
            columns += [
                (f"weight.{p}", p + 1, 0, p),
                (f"live.{p}", p + 1, 1, ALONE),
                (f"square.{p}", p + 1, 2 + p, ALONE),
                (f"unsupported.{p}", 0, 2 + count + p, p),
            ]
        self._sums = UserSums(Layout.of(columns), groups=groups)
        self._by_user, self._by_row = np.zeros((groups, count)), np.zeros((groups, count))
        self._changed = np.zeros((groups, count), np.int64)
        self._excluded = np.zeros(len(FAULTS), np.int64)

    def update(
        self, user: U64, weight: F64, live: F64, unsupported: F64, excluded: I64 | None = None, code: I32 | None = None,
        factors: F64 | None = None,
    ) -> None:  # fmt: skip
        """Rows or other units (a user-epoch, a list): weight f64[n, 1 + P] (column 0: scale), live f64[n] 0 / 1,
        unsupported f64[n, P], code i32[n] group or -1. factors: `trust_factors` of these, where they are at hand."""
        right = trust_factors(weight, live, unsupported) if factors is None else factors
        self._sums.fold(user, weight, right, code)
        codes = np.empty(0, np.int32) if code is None else code
        _largest(user, codes, weight, live, self._by_user, self._by_row, self._changed)
        if excluded is not None:
            self.exclude(excluded)

    def exclude(self, faults: I64) -> None:
        """Count rows that were left out: i64[len(FAULTS)]."""
        self._excluded = self._excluded + faults

    def of(self, policy: int, group: int = 0) -> PolicyDiagnostics:
        """Of target number `policy` (0-based, without `logged`)."""
        moments = self._sums.moments(group)
        total, first = moments.total, 1 + 4 * policy
        rows, live, square = total[0], total[first + 1], total[first + 2]
        user_square = moments.product[first + 1, first + 1]
        level = monomial(total, {first: 1, 0: -1}) + monomial(total, {first + 3: 1, 0: -1})
        error = float(np.sqrt(moments.variance(level.gradient))) if rows > 0 else np.nan
        gap = level.value - 1.0
        certain = abs(gap) <= 1e-9
        changed, lost = float(self._changed[group, policy]) / _STEPS, float(total[first + 3])
        return PolicyDiagnostics(
            rows=float(rows),
            users=moments.present,
            live_weight=float(live),
            ess_rows=float(live * live / square) if square > 0 else 0.0,
            ess_users=float(live * live / user_square) if user_square > 0 else 0.0,
            unsupported=float(lost / rows) if rows > 0 else 0.0,
            changed=float(changed / rows) if rows > 0 else 0.0,
            unsupported_change=min(lost / changed, 1.0) if changed > 0 else float(lost > 0),
            largest_user=float(self._by_user[group, policy] / live) if live > 0 else 0.0,
            largest_weight=float(self._by_row[group, policy]),
            mean_weight=float(total[first] / rows) if rows > 0 else np.nan,
            mean_weight_standard_error=error,
            mean_weight_distance=0.0 if certain else float(gap / error) if error > 0 else np.inf,
            excluded={name: int(n) for name, n in zip(FAULTS, self._excluded, strict=True) if n},
        )

    def __add__(self, other: Diagnostics) -> Diagnostics:
        out = Diagnostics(self.policies, groups=len(self._by_user))
        out._sums = self._sums + other._sums
        out._by_user = np.maximum(self._by_user, other._by_user)
        out._by_row = np.maximum(self._by_row, other._by_row)
        out._changed = self._changed + other._changed
        out._excluded = self._excluded + other._excluded
        return out

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Flat arrays for a shard's file."""
        own = {"by_user": self._by_user, "by_row": self._by_row, "changed": self._changed, "excluded": self._excluded}
        return {**self._sums.to_arrays(), **own}

    def load(self, arrays: Mapping[str, npt.NDArray[Any]], prefix: str = "") -> None:
        """Take the sums of `to_arrays` into this (empty) one."""
        self._sums.load(arrays, prefix)
        self._by_user, self._by_row = np.array(arrays[prefix + "by_user"]), np.array(arrays[prefix + "by_row"])
        self._changed, self._excluded = np.array(arrays[prefix + "changed"]), np.array(arrays[prefix + "excluded"])
