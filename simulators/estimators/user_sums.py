"""Sums over users and their second moments: all that an estimate with a user-clustered interval needs of a log.

A *column* is summed over the rows of a user, giving that user's total x; kept are the exact sums over users of every x and
of the products x_i * x_j of the pairs that some variance will ask for. Users are the clusters: whatever depends within a
user (taste, fatigue, repeated exposure) is inside x, and users are independent.

A column is said as a product of two row factors, ``left[:, i] * right[:, j]`` (a weight and a reward, say), so that no
table of rows x columns is ever made. With groups, x is kept per group (a channel, a day): a user counts once in each.

Totals of users are doubles added in row order; sums over users are exact (`exact.py`), so ``a + b`` is associative and
commutative in bits, and any split of a log by user gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.errors import DamagedArtifact, InvalidInput
from serve_app.kernels import kernel
from simulators.estimators.bootstrap import user_counts
from simulators.estimators.exact import (
    LIMBS,
    add_exactly,
    as_floats,
    canonical,
    is_summable,
    nearly,
    nearly_each,
    settle,
    zeros,
)

__all__ = ["ALONE", "Layout", "Moments", "UserSums"]

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
U64 = npt.NDArray[np.uint64]

ALONE = -2


@dataclass(frozen=True)
class Layout:
    """Columns by name, each the product of two factors. `metric` of a column: -1 where all metrics share it; columns of
    two different metrics are never multiplied; one that is ALONE with none but itself."""

    names: tuple[str, ...]
    left: tuple[int, ...]
    right: tuple[int, ...]
    metric: tuple[int, ...]

    @staticmethod
    def of(columns: Sequence[tuple[str, int, int, int]]) -> Layout:
        """From (name, left factor, right factor, metric)."""
        names, left, right, metric = zip(*columns, strict=True)
        return Layout(tuple(names), tuple(left), tuple(right), tuple(metric))

    def pairs(self) -> I64:
        """i64[q, 2]: products kept, i <= j."""
        m = self.metric
        kept = [
            (i, j)
            for i in range(len(m))
            for j in range(i, len(m))
            if i == j or (ALONE not in (m[i], m[j]) and (m[i] == m[j] or -1 in (m[i], m[j])))
        ]
        return np.array(kept, np.int64).reshape(-1, 2)


@kernel
def _resample(column: int, value: float, boot: tuple[F64, F64, F64], replicates: I64) -> None:
    """Add a user's total to one column of every replicate. boot: the user's counts f64[B], room f64[B], and heads and tails
    of the sums f64[K + 1, 2, B]."""
    times, rest, near = boot
    if nearly_each(near[column, 0], near[column, 1], times, value, rest):
        for b in range(len(times)):
            add_exactly(replicates[b, column], rest[b])


@kernel
def _close_user(
    key: np.uint64, x: F64, seen: I64, touched: int, nonzero: I64, pair: I32, sums: I64, products: I64, heads: F64,
    squares: F64, present: I64, boot: tuple[F64, F64, F64], replicates: I64,
) -> bool:  # fmt: skip
    """One user's totals into the sums; x is zeroed again. pair i32[K, K]: number of a product, -1: not kept. nonzero i64[K]:
    room. False: a total is too large or not finite."""
    columns, fine = x.shape[1], True
    for t in range(touched):
        g = seen[t]
        present[g] += 1
        count = 0
        for i in range(columns):
            if x[g, i] != 0.0:
                fine = fine and is_summable(x[g, i] * x[g, i])
                nonzero[count] = i
                count += 1
        for a in range(count if fine else 0):
            i = nonzero[a]
            value = x[g, i]
            heads[g, i, 0], heads[g, i, 1], rest = nearly(heads[g, i, 0], heads[g, i, 1], value)
            if rest != 0.0:
                add_exactly(sums[g, i], rest)
            for b in range(a, count):
                q = pair[i, nonzero[b]]
                if q >= 0:
                    term = value * x[g, nonzero[b]]
                    squares[g, q, 0], squares[g, q, 1], rest = nearly(squares[g, q, 0], squares[g, q, 1], term)
                    if rest != 0.0:
                        add_exactly(products[g, q], rest)
        if fine and len(replicates):
            user_counts(key, boot[0])
            _resample(columns, 1.0, boot, replicates)
            for a in range(count):
                _resample(nonzero[a], x[g, nonzero[a]], boot, replicates)
        for a in range(count):
            x[g, nonzero[a]] = 0.0
    return fine


@kernel
def _fold(
    user: U64, code: I32, left: F64, right: F64, factors: tuple[I64, I64, I64], pair: I32, sums: I64, products: I64,
    present: I64, replicates: I64,
) -> int:  # fmt: skip
    """All users of a call; returns how many, or -1 - (row of the first user whose totals cannot be summed). factors: columns
    ordered by right factor, where each factor's begin, and their left factors: most rewards are 0 and end there."""
    columns_of, begins, li = factors
    groups, columns = sums.shape[0], sums.shape[1]
    x, seen, touched = np.zeros((groups, columns)), np.empty(groups, np.int64), 0
    heads, squares = np.zeros((groups, columns, 2)), np.zeros((groups, products.shape[1], 2))
    nonzero, count = np.empty(columns, np.int64), len(replicates)
    boot = np.empty(count), np.empty(count), np.zeros((columns + 1, 2, count))
    here = np.full(groups, -1, np.int64)  # number of the last user seen in each group
    users = 0
    for row in range(len(user)):
        g = np.int64(code[row]) if len(code) else np.int64(0)
        if g >= 0:
            if here[g] != users:
                here[g] = users
                seen[touched] = g
                touched += 1
            for j in range(len(begins) - 1):
                value = right[row, j]
                if value != 0.0:
                    for k in range(begins[j], begins[j + 1]):
                        x[g, columns_of[k]] += left[row, li[k]] * value
        if row + 1 == len(user) or user[row + 1] != user[row]:
            if not _close_user(
                user[row], x, seen, touched, nonzero, pair, sums, products, heads, squares, present, boot, replicates
            ):
                return -1 - row
            users += 1
            touched = 0
    for one in range(groups):
        settle(heads[one], sums[one])
        settle(squares[one], products[one])
    for b in range(count):
        for i in range(columns + 1):
            add_exactly(replicates[b, i], boot[2][i, 0, b])
            add_exactly(replicates[b, i], boot[2][i, 1, b])
    return users


@dataclass(frozen=True, slots=True)
class Moments:
    """Sums of one group as doubles: total f64[K]; product f64[K, K] (NaN where not kept); users in all, present here."""

    total: F64
    product: F64
    users: int
    present: int

    def variance(self, gradient: F64) -> float:
        """User-clustered variance of a smooth function of the totals, by its gradient (linearisation; the delta method).

        ``n / (n - 1) * (sum of (g.x)**2 - (g.S)**2 / n)`` over the n users; users without rows here count as zeros.
        """
        if self.users < 2:
            return np.nan
        own = np.flatnonzero(gradient)
        squares, mean = 0.0, 0.0
        for i in own.tolist():
            mean += gradient[i] * self.total[i]
            for j in own.tolist():
                squares += gradient[i] * gradient[j] * self.product[i, j]
        n = self.users
        return max(0.0, n / (n - 1) * (squares - mean * mean / n))


class UserSums:
    """Mergeable sums of one layout over `groups` groups, with `replicates` bootstrap sums (ungrouped layouts only)."""

    def __init__(self, layout: Layout, *, groups: int = 1, replicates: int = 0) -> None:
        if replicates and groups != 1:
            raise InvalidInput("bootstrap sums are kept for ungrouped estimates only", field="replicates")
        self.layout = layout
        self._pairs = layout.pairs()
        columns = len(layout.names)
        by_right = np.argsort(layout.right, kind="stable")
        begins = np.searchsorted(np.array(layout.right)[by_right], np.arange(max(layout.right) + 2))
        self._factors = (by_right.astype(np.int64), begins.astype(np.int64), np.array(layout.left, np.int64)[by_right])
        self._pair = np.full((columns, columns), -1, np.int32)
        self._pair[self._pairs[:, 0], self._pairs[:, 1]] = np.arange(len(self._pairs))
        self._sums = zeros(groups * columns).reshape(groups, columns, LIMBS)
        self._products = zeros(groups * len(self._pairs)).reshape(groups, len(self._pairs), LIMBS)
        self._present = np.zeros(groups, np.int64)
        self._replicates = zeros(replicates * (columns + 1)).reshape(replicates, columns + 1, LIMBS)  # last: users
        self.users = 0
        self._moments: dict[int, Moments] = {}

    def fold(self, user: U64, left: F64, right: F64, code: I32 | None = None) -> None:
        """Add rows: user u64[n] (rows of a user adjacent), left f64[n, L], right f64[n, R], code i32[n] group or -1."""
        codes = np.empty(0, np.int32) if code is None else code
        if len(codes) and int(codes.max()) >= len(self._present):
            raise InvalidInput(f"code {int(codes.max())} of {len(self._present)} groups", field="groups")
        if right.shape[1] < len(self._factors[1]) - 1 or left.shape[1] <= max(self.layout.left):
            raise InvalidInput(f"{left.shape[1]} and {right.shape[1]} columns are too few", field="left, right")
        users = _fold(
            user, codes, np.ascontiguousarray(left), np.ascontiguousarray(right), self._factors, self._pair, self._sums,
            self._products, self._present, self._replicates,
        )  # fmt: skip
        self._moments.clear()
        if users < 0:
            raise InvalidInput(
                f"the totals of user {int(user[-1 - users]):#018x} are not finite or above 1e24", field="reward",
                hint="these sums are spoilt: start anew without that user",
            )  # fmt: skip
        for sums in (self._sums, self._products, self._replicates):
            canonical(sums.reshape(-1, LIMBS))
        self.users += users

    def moments(self, group: int = 0) -> Moments:
        """The sums of one group as doubles, each correctly rounded."""
        if group in self._moments:
            return self._moments[group]
        columns = len(self.layout.names)
        product = np.full((columns, columns), np.nan)
        values = as_floats(self._products[group])
        product[self._pairs[:, 0], self._pairs[:, 1]] = values
        product[self._pairs[:, 1], self._pairs[:, 0]] = values
        found = Moments(as_floats(self._sums[group]), product, self.users, int(self._present[group]))
        return self._moments.setdefault(group, found)

    def replicate_totals(self) -> F64:
        """f64[B, K + 1]: the totals of each bootstrap replicate; last its number of users."""
        flat = as_floats(self._replicates.reshape(-1, LIMBS))
        return flat.reshape(self._replicates.shape[:2])

    def __add__(self, other: UserSums) -> UserSums:
        if self.layout != other.layout or self._sums.shape != other._sums.shape:
            raise InvalidInput("sums of different layouts cannot be added", field="sums", hint="use one configuration")
        if self._replicates.shape != other._replicates.shape:
            raise InvalidInput("sums with different numbers of replicates cannot be added", field="replicates")
        out = UserSums(self.layout, groups=len(self._present), replicates=len(self._replicates))
        for name in ("_sums", "_products", "_replicates"):
            total = getattr(self, name) + getattr(other, name)
            canonical(total.reshape(-1, LIMBS))
            setattr(out, name, total)
        out._present = self._present + other._present
        out.users = self.users + other.users
        return out

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Flat arrays for a shard's file."""
        return {
            "sums": self._sums, "products": self._products, "present": self._present, "replicates": self._replicates,
            "users": np.array([self.users], np.int64),
        }  # fmt: skip

    def load(self, arrays: Mapping[str, npt.NDArray[Any]], prefix: str = "") -> None:
        """Take the sums of `to_arrays` into this (empty) one. DamagedArtifact where shapes do not fit."""
        for name in ("sums", "products", "present", "replicates"):
            found = arrays.get(prefix + name)
            mine = getattr(self, "_" + name)
            if found is None or found.shape != mine.shape or found.dtype != np.int64:
                raise DamagedArtifact("does not fit the configuration", field=prefix + name, hint="run that shard again")
            setattr(self, "_" + name, np.array(found))
        self.users = int(arrays[prefix + "users"][0])
        self._moments.clear()
