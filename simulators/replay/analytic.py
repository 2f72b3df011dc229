"""The analytic track: how probable a policy makes what was logged, on the logged history. Weights come from here alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch, Columns
from serve_app.columns import REQUEST_COLUMNS
from serve_app.policy.compile import CompiledPolicy
from simulators.replay.course import Course, follow_log
from simulators.replay.opportunities import Opportunities
from simulators.replay.partition import Partition

__all__ = ["Probabilities", "by_cell", "first_sends", "logged_probability", "probabilities"]

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Probabilities:
    """Of one policy, per logged request, on the logged history. chosen f64[n]: of what was logged (its first send, or none);
    send f64[n]: of sending anything; unsupported f64[n]: mass on choices the log gave no probability."""

    chosen: F64
    send: F64
    unsupported: F64


class _Track:
    """Takes the waves of a course on logged histories."""

    def __init__(self, asked: Opportunities) -> None:
        n = len(asked)
        self._asked, self._first = asked, first_sends(asked)
        self.out = Probabilities(np.empty(n), np.empty(n), np.empty(n))

    def __call__(self, rows: I64, decided: Batch) -> None:
        asked, owner = self._asked, decided.owner
        p_none, p_choice = decided.requests["p_none"], decided.candidates["p_choice"]
        flat = np.arange(decided.candidates.rows) - decided.offsets[owner] + asked.batch.offsets[rows][owner]
        place = self._first[rows]
        none = place < 0
        within = decided.offsets[:-1] + place - asked.batch.offsets[rows]
        self.out.chosen[rows] = np.where(none, p_none, p_choice[np.where(none, 0, within)] if len(p_choice) else p_none)
        self.out.send[rows] = 1.0 - p_none
        lost = np.where(asked.logged_candidates["p_choice"][flat] == 0.0, p_choice, 0.0)
        mass = np.bincount(owner, weights=lost, minlength=len(rows))
        self.out.unsupported[rows] = mass + np.where(asked.logged["p_none"][rows] == 0.0, p_none, 0.0)


def first_sends(asked: Opportunities) -> I64:
    """i64[n]: place among the candidates of each request's first send; -1: none."""
    first = np.full(len(asked), -1, np.int64)
    sent = np.flatnonzero(asked.logged_candidates["slot"] == 0)
    first[asked.batch.owner[sent]] = sent
    first[~asked.logged["granted"]] = -1
    return first


def logged_probability(asked: Opportunities) -> F64:
    """f64[n]: what the log says it was done with."""
    first = first_sends(asked)
    p_choice = asked.logged_candidates["p_choice"]
    chosen = p_choice[np.maximum(first, 0)] if len(p_choice) else asked.logged["p_none"]
    return np.where(first >= 0, chosen, asked.logged["p_none"])


def probabilities(partition: Partition, policy: CompiledPolicy, behaviour: Sequence[CompiledPolicy]) -> Probabilities:
    """Of a target policy."""
    return _run(partition, partition.asked.under(policy, behaviour), [policy], behaviour)


def by_cell(partition: Partition, policy: CompiledPolicy, behaviour: Sequence[CompiledPolicy]) -> F64:
    """f64[n, cells]: of what was logged, had the user been in each of the policy's cells (one column where it has none)."""
    asked, cells = partition.asked.under(policy, behaviour), max(len(policy.trials.cell_p), 1)
    out = np.empty((len(asked), cells))
    forced = asked.assigned(policy)
    for cell in range(cells):
        variant = (forced["variant"] // cells * cells + cell).astype(np.int16)
        columns = Columns(len(asked), REQUEST_COLUMNS, dict(asked.batch.requests) | forced | {"variant": variant})
        out[:, cell] = _run(partition, asked.with_requests(columns), [policy], behaviour).chosen
    return out


def _run(
    partition: Partition, asked: Opportunities, policies: Sequence[CompiledPolicy], behaviour: Sequence[CompiledPolicy]
) -> Probabilities:
    track = _Track(asked)
    course = Course(asked, policies, partition.start, partition.failures())
    follow_log(asked, course, track, logged_under=behaviour)
    return track.out
