"""Does a score find the users a message changes? Qini and AUUC, with a user bootstrap.

Users are ranked by a score fitted on *other* users and cut into bins of equal numbers (1,000). With Y and N the outcome and
the number of users of an arm among the first share phi of all users:

- Qini curve (Radcliffe 2007, "Using control groups to target on predicted lift"):
  ``q(phi) = (Y_t(phi) - Y_c(phi) * N_t(phi) / N_c(phi)) / N_t(1)``; its coefficient is the area between the curve and the
  straight line to q(1): 0 for a random score.
- AUUC (Gutierrez and Gerardy 2017, "Causal inference and uplift modelling: a review of the literature"):
  ``u(phi) = (Y_t(phi) / N_t(phi) - Y_c(phi) / N_c(phi)) * phi``, its area; half the average effect for a random score, so
  the excess over that half is given as well.

Outcomes are summed in steps of 2**-20, as integers, so merging is exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from serve_app.errors import DamagedArtifact, InvalidInput
from serve_app.kernels import kernel
from simulators.estimators.bootstrap import percentile_interval, poisson_count
from simulators.estimators.intervals import Interval

__all__ = ["Qini", "QiniResult", "score_edges"]

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Bool = npt.NDArray[np.bool_]

BINS = 1000
_STEPS = 2.0**20
_LARGEST = 2.0**20  # of one user's outcome: 2**22 users of that size still fit


@dataclass(frozen=True, slots=True)
class QiniResult:
    """Curve points share f64[k] and qini f64[k] (at filled bins); coefficient, AUUC and its excess over a random score's,
    each with a percentile interval over the bootstrap."""

    share: F64
    qini: F64
    coefficient: float
    coefficient_interval: Interval
    auuc: float
    auuc_interval: Interval
    auuc_excess: float
    auuc_excess_interval: Interval
    users: int


def score_edges(scores: F64, bins: int = BINS) -> F64:
    """f64[bins - 1]: decreasing cuts that put equal numbers of `scores` (a sample of all users') into each bin."""
    if not np.isfinite(scores).all() or len(scores) < 2:
        raise InvalidInput("needs two finite scores", field="scores")
    return np.asarray(np.quantile(scores, 1 - np.arange(1, bins) / bins))


@kernel
def _count(user: U64, place: I64, arm: I64, steps: I64, sums: I64) -> None:
    """sums i64[1 + B, bins, 2, 2]: users and outcome by replicate (0: the sample), bin and arm."""
    for i in range(len(user)):
        for b in range(sums.shape[0]):
            times = 1 if b == 0 else poisson_count(user[i], b - 1)
            sums[b, place[i], arm[i], 0] += times
            sums[b, place[i], arm[i], 1] += times * steps[i]


class Qini:
    """Mergeable sums by bin. edges: from `score_edges`, the same on every shard; replicates: of the bootstrap."""

    def __init__(self, edges: F64, *, replicates: int = 200) -> None:
        self.edges = np.ascontiguousarray(edges, np.float64)
        if (np.diff(self.edges) > 0).any() or replicates < 0:
            raise InvalidInput("must not increase", field="edges", hint="use score_edges")
        self.replicates = replicates
        self._sums = np.zeros((1 + replicates, len(self.edges) + 1, 2, 2), np.int64)

    def update(self, user: U64, score: F64, treated: Bool, outcome: F64) -> None:
        """Add users, each once: score f64[n], treated bool[n], outcome f64[n]."""
        values = np.asarray(outcome, np.float64)
        if not (np.isfinite(score).all() and (np.abs(values) < _LARGEST).all()):
            raise InvalidInput("a score or outcome is not finite, or an outcome is above 2**20", field="score, outcome")
        place = np.searchsorted(-self.edges, -np.asarray(score, np.float64), side="left").astype(np.int64)
        steps = np.round(values * _STEPS).astype(np.int64)
        _count(np.ascontiguousarray(user, np.uint64), place, np.asarray(treated).astype(np.int64), steps, self._sums)

    def __add__(self, other: Self) -> Self:
        if not np.array_equal(self.edges, other.edges) or self.replicates != other.replicates:
            raise InvalidInput("of different bins or replicates cannot be added", field="qini")
        out = type(self)(self.edges, replicates=self.replicates)
        out._sums = self._sums + other._sums
        return out

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Flat arrays for a shard's file."""
        return {"edges": self.edges, "sums": self._sums}

    def load(self, arrays: Mapping[str, npt.NDArray[Any]], prefix: str = "") -> Self:
        """One like this with the sums of `to_arrays`."""
        sums = arrays.get(prefix + "sums")
        if sums is None or sums.shape != self._sums.shape or not np.array_equal(arrays[prefix + "edges"], self.edges):
            raise DamagedArtifact("was saved under other settings", field=prefix + "qini", hint="run that shard again")
        out = type(self)(self.edges, replicates=self.replicates)
        out._sums = np.array(sums)
        return out

    def result(self, level: float = 0.95) -> QiniResult:
        """Curve, areas and intervals. InvalidInput where an arm is empty."""
        share, curve, own = _areas(self._sums[0])
        if not np.isfinite(own).all():
            raise InvalidInput("has no users", field="an arm")
        every = np.array([_areas(one)[2] for one in self._sums[1:]]).reshape(-1, 3)
        kind = "user Poisson bootstrap"
        ends = [Interval(*percentile_interval(every[:, i], level), level, kind) for i in range(3)]
        return QiniResult(share, curve, own[0], ends[0], own[1], ends[1], own[2], ends[2], int(self._sums[0, :, :, 0].sum()))


def _areas(sums: I64) -> tuple[F64, F64, F64]:
    """share f64[k + 1], Qini curve f64[k + 1], (coefficient, AUUC, its excess); trapezoids between filled bins. Before both
    arms have a user, nothing is known and the curves stand at 0."""
    filled = sums[:, :, 0].sum(axis=1) > 0
    below = np.concatenate([np.zeros((1, 2, 2)), np.cumsum(sums[filled].astype(np.float64), axis=0)])
    control, treated = below[:, 0], below[:, 1]
    total = float(below[-1, :, 0].sum())
    if control[-1, 0] == 0 or treated[-1, 0] == 0:
        return np.zeros(1), np.zeros(1), np.full(3, np.nan)
    share = below[:, :, 0].sum(axis=1) / total
    known = (control[:, 0] > 0) & (treated[:, 0] > 0)
    n_c, n_t = np.where(known, control[:, 0], 1.0), np.where(known, treated[:, 0], 1.0)
    y_c, y_t = control[:, 1] / _STEPS, treated[:, 1] / _STEPS
    curve = np.where(known, y_t - y_c * n_t / n_c, 0.0) / treated[-1, 0]
    uplift = np.where(known, y_t / n_t - y_c / n_c, 0.0) * share
    areas = [float((np.diff(share) * (line[1:] + line[:-1]) / 2).sum()) for line in (curve, uplift)]
    return share, curve, np.array([areas[0] - curve[-1] / 2, areas[1], areas[1] - uplift[-1] / 2])
