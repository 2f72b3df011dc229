"""Roll-out: what an outcome model says of the sends that a policy makes on a course of its own.

Weights ask about choices on the logged history; this asks about the history a policy makes for itself, and has nothing but
a model to answer with. How people tire is the least known of it: a log without cells over caps does not say, and the naive
curve lies either way. So the model's expectation is taken as of the logged history, and an *assumed* effect of more or fewer
sends in the last three days is put on top: each one more multiplies clicks, conversions and revenue by exp(-f), and opt-outs
by exp(f). Shown for several f; a conclusion that hangs on f is none. At best weak.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from serve_app.kernels import kernel
from simulators.estimators import DM, Suite, checked_rows
from simulators.replay.counts import Window
from simulators.replay.outcome_features import recent_sends
from simulators.replay.outcomes import Predicted
from simulators.replay.partition import Partition
from simulators.replay.realised import Realised
from simulators.replay.rewards import METRICS
from simulators.replay.spec import CONTROL, ReplaySpec

__all__ = ["ASSUMED", "ROLL_OUT", "RollOut", "RollOuts", "new_roll_out"]

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

ROLL_OUT = "roll-out"
ASSUMED = (0.0, 0.05, 0.1, 0.2)
"""Assumed effects f of one more send in the last three days."""
_ROLLED = ("clicks", "conversions", "revenue", "opt_outs")
_REACH_US = 3 * 86_400_000_000


class RollOut(DM):
    """Users' totals of expected rewards; `logged` is the model's word on the logged sends, so that its bias cancels in
    differences."""

    name = "roll-out"

    def notes(self, policy: str, metric: str) -> tuple[str, ...]:
        del policy
        return ("an outcome model on the policy's own course, not a measurement", f"assumed: {metric.partition(' if ')[2]}")


def new_roll_out(spec: ReplaySpec) -> Suite:
    """Empty. Metrics are named "clicks if tiring 0.05"."""
    names = (CONTROL, *(one.name for one in spec.targets))
    return Suite([RollOut(names, [f"{metric} if tiring {one:g}" for metric in _ROLLED for one in ASSUMED])])


class RollOuts:
    """Expected rewards of a partition's users, course by course. counts: bool[n], requests of whoever counts; None: all."""

    def __init__(self, partition: Partition, spec: ReplaySpec, counts: npt.NDArray[np.bool_] | None) -> None:
        self._partition, self._spec, asked = partition, spec, partition.asked
        self._predicted = Predicted(partition, spec.outcome) if spec.outcome else None
        self._recent = recent_sends(asked, partition.start)[:, 1].astype(np.float64)
        at = asked.batch.requests["decided_at"]
        self._inside = Window(spec.start, spec.end).holds(at) & (at + spec.attribution_us <= spec.log_end)
        if counts is not None:
            self._inside &= counts
        self._users = np.unique(asked.owner[self._inside])
        self._totals: list[F64] = []

    @staticmethod
    def wanted(spec: ReplaySpec) -> bool:
        """Does the replay ask for them, and is there a model?"""
        return spec.outcome is not None and "roll-out" in spec.estimators and not spec.halves

    def add(self, done: Realised, since: int) -> None:
        """The logged course first, then each target's. since: what was logged before it is part of the course."""
        if self._predicted is None:
            return
        asked = self._partition.asked
        rows, at = done.rows[done.send_decision], done.at[done.send_decision]
        earlier = self._earlier(asked.owner[rows], at, since)
        mine = self._inside[rows]
        places, owner = done.send_candidate[mine], asked.owner[rows[mine]]
        expected = self._predicted.of(places)
        more = earlier[mine] - self._recent[rows[mine]]
        total = np.empty((len(self._users), len(_ROLLED) * len(ASSUMED)))
        for m, metric in enumerate(_ROLLED):
            sign = 1.0 if metric == "opt_outs" else -1.0
            for k, effect in enumerate(ASSUMED):
                tired = expected[:, METRICS.index(metric)] * np.exp(sign * effect * more)
                summed = np.bincount(owner, weights=tired, minlength=len(asked.users))
                total[:, m * len(ASSUMED) + k] = summed[self._users]
        self._totals.append(total)

    def fill(self, suites: Mapping[str, Suite]) -> None:
        """Add the users' totals to the suite ROLL_OUT."""
        if not self._totals or not len(self._users):
            return
        n, (logged, *targets) = len(self._users), self._totals
        courses = np.stack([logged, *targets], axis=1)
        ones = np.ones((n, courses.shape[1]))
        users = self._partition.asked.users[self._users]
        suites[ROLL_OUT].update(checked_rows(users, ones[:, 0], ones, logged, q_logged=logged, q_target=courses))

    def _earlier(self, owner: I64, at: I64, since: int) -> F64:
        """Sends of the same user in the three days before each; what was logged before `since` among them."""
        asked, start = self._partition.asked, self._partition.start
        logged_at = asked.batch.requests["decided_at"]
        counts = np.bincount(asked.batch.owner[asked.logged_candidates["slot"] >= 0], minlength=len(asked))
        before = np.flatnonzero((logged_at < since) & asked.logged["granted"] & (counts > 0))
        real = start.entries["holdout"] == 0
        kept = np.repeat(np.arange(len(start.offsets) - 1), np.diff(start.offsets))[real]
        owners = np.concatenate([kept, np.repeat(asked.owner[before], counts[before]), owner])
        times = np.concatenate([start.entries["at"][real], np.repeat(logged_at[before], counts[before]), at])
        order = np.lexsort((np.arange(len(times)), times, owners))
        out = np.empty(len(times))
        _count_earlier(owners[order], times[order], _REACH_US, out)
        found = np.empty(len(times))
        found[order] = out
        return found[len(times) - len(owner) :]


@kernel
def _count_earlier(owner: I64, at: I64, reach: int, out: F64) -> None:
    begin = 0
    for i in range(len(owner)):
        if i and owner[i] != owner[i - 1]:
            begin = i
        while at[begin] <= at[i] - reach:
            begin += 1
        out[i] = i - begin
