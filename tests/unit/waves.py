"""Policies replayed wave after wave by the Decision stage: the oracle of `simulators.replay.stream`.

`follow_policy` is the realised track: what a policy would have done, its deferrals decided again when they end.
`along_log` goes over the logged histories, for whoever wants to know what policies make of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch
from serve_app.ledger.columns import Histories
from serve_app.policy.compile import CompiledPolicy
from serve_app.stages.decision.plan import history_entries
from serve_app.stages.stage import Context
from serve_app.vocabulary import Action, Reason
from simulators.replay.course import Course, in_waves
from simulators.replay.opportunities import Opportunities
from simulators.replay.realised import Realised
from tests.unit.waves_agenda import Agenda
from tests.unit.waves_asked import as_told

__all__ = ["RealisedTrack", "WaveCourse", "along_log", "follow_policy"]

I64 = npt.NDArray[np.int64]
I8 = npt.NDArray[np.int8]
Bools = npt.NDArray[np.bool_]
Consume = Callable[[I64, Batch], None]


class WaveCourse(Course):
    """One whose histories may be looked at, and begin in the middle of a log."""

    def histories_at(self, wave: Batch, rows: I64, known: I64 | None = None) -> Histories:
        """What requests of distinct users are decided on. known: of how many failed deliveries; -1: as logged."""
        at, read, failures = wave.requests["decided_at"], wave.requests["refunds_read"], self._failures
        if known is not None:
            told, end = known >= 0, failures.end.copy()
            end[rows[told]] = failures.begin[rows[told]] + known[told]
            at, read = np.where(told, np.iinfo(np.int64).max, at), np.where(told, np.int16(-1), read)
            failures = replace(failures, end=end)
        self._histories.refund(rows, at, read, failures)
        return self._histories.read(rows)

    def decide_on(self, histories: Histories, wave: Batch, policies: Sequence[CompiledPolicy]) -> Batch:
        """Decide requests on given histories under given policies."""
        parts = {"histories": histories, "item_hashes": self._items}
        return self._stage.run(wave, Context(policies=tuple(policies), parts=parts))

    def decide_knowing(self, wave: Batch, rows: I64, known: I64) -> Batch:
        """Decide such requests under the course's policies."""
        return self.decide_on(self.histories_at(wave, rows, known), wave, self._policies)

    def recall_before(self, asked: Opportunities, behaviour: Sequence[CompiledPolicy], until: int) -> None:
        """Take all that was logged before `until` into the histories. behaviour: the policies of `asked.revisions`."""
        before = np.flatnonzero(asked.batch.requests["decided_at"] < until)
        if len(before):
            logged = as_told(asked).take(before)
            entries, offsets = history_entries(logged, behaviour)
            rows, first = np.unique(asked.owner[before], return_index=True)
            by_user = offsets[np.append(first, len(before))]
            self._histories.add(rows, np.full(len(rows), until), entries, by_user)


def along_log(asked: Opportunities, course: WaveCourse, look: Callable[[I64, slice, Histories], None]) -> None:
    """Every wave of the log on the logged histories; the course's policies are those of `asked.revisions`.

    look(rows, places, histories): places among the opportunities, and in the order of `in_waves`; what the wave saw."""
    order, bounds = in_waves(asked.owner)
    logged, rows = as_told(asked).take(order), asked.owner[order]
    for begin, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        wave = logged.slice(begin, end)
        look(order[begin:end], slice(begin, end), course.histories_at(wave, rows[begin:end]))
        course.remember(wave, rows[begin:end])


def follow_policy(asked: Opportunities, course: WaveCourse, consume: Consume, *, since: int, known: I64) -> int:
    """What the course's policy 0 would have done from `since` on: logged requests at their times, deferrals it makes at
    their ends (see `Agenda`). known: as `follow_log` returns. Returns the number of re-decisions that carried their parent's
    scores: the log has none."""
    agenda = Agenda(asked, since, known)
    while len(users := agenda.busy()):
        turn = agenda.next_of(users)
        decided = course.decide_knowing(turn.batch, users, turn.failures_known)
        course.remember(decided, users)
        agenda.settle(turn, decided)
        consume(turn.rows, decided)
    return agenda.carried


class RealisedTrack:
    """Takes the waves of a course."""

    def __init__(self, asked: Opportunities, counts: Bools | None = None) -> None:
        """counts bool[n]: logged requests whose candidates' reasons are counted; None: all."""
        self._asked, self._counts = asked, counts
        self._decisions: list[tuple[I64, I64, I8, I8]] = []
        self._sends: list[tuple[I64, I64]] = []
        self._reasons = np.zeros(len(Reason), np.int64)
        self._count = 0

    def __call__(self, rows: I64, decided: Batch) -> None:
        """One wave."""
        requests, candidates = decided.requests, decided.candidates
        action = requests["action"]
        reason = np.where(action == Action.send, np.int8(Reason.chosen), requests["reason"])
        self._decisions.append((rows, requests["decided_at"], action, reason))
        sent = np.flatnonzero(candidates["slot"] >= 0)
        if len(sent):
            owner = np.searchsorted(decided.offsets, sent, "right") - 1
            order = np.lexsort((candidates["slot"][sent], owner))
            sent, owner = sent[order], owner[order]
            place = sent - decided.offsets[owner] + self._asked.batch.offsets[rows[owner]]
            self._sends.append((owner + self._count, place))
        reasons = candidates["reason"]
        if self._counts is not None:
            reasons = reasons[np.repeat(self._counts[rows], np.diff(decided.offsets))]
        self._reasons += np.bincount(reasons, minlength=len(Reason))
        self._count += len(rows)

    def result(self, carried: int = 0) -> Realised:
        """Everything, in order of user and time."""
        empty = np.empty(0, np.int64)
        rows, at, action, reason = (
            np.concatenate([one[k] for one in self._decisions]) if self._decisions else empty.astype(dtype)
            for k, dtype in enumerate((np.int64, np.int64, np.int8, np.int8))
        )
        decision, candidate = (np.concatenate([one[k] for one in self._sends]) if self._sends else empty for k in range(2))
        order = np.lexsort((at, self._asked.owner[rows]))
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        decision = back[decision]
        by_decision = np.argsort(decision, kind="stable")
        return Realised(
            rows[order], at[order], action[order], reason[order], decision[by_decision], candidate[by_decision],
            self._reasons, carried,
        )  # fmt: skip
