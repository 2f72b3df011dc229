"""A policy's course over one partition: wave after wave, each user's next request, histories in memory.

A wave holds the k-th request of every user that has one, so that the serving core decides it as one batch. The longest user
sets the number of waves; their sizes fall quickly, and the total work is the number of requests.

`follow_log` is the parity run: exactly what was logged, each request under the policy its `policy` column names.
`follow_policy` is the realised track: what another policy would have done, its deferrals decided again when they end.
`along_log` goes over the logged histories, for whoever wants to know what policies make of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch, lengths_to_offsets
from serve_app.ledger.protocol import Histories, LedgerSettings
from serve_app.policy.compile import CompiledPolicy
from serve_app.stages.decision import Decision
from serve_app.stages.decision.plan import history_entries
from serve_app.stages.stage import Context
from simulators.replay.agenda import Agenda
from simulators.replay.histories import Failures, UserHistories
from simulators.replay.opportunities import Opportunities

__all__ = ["Course", "along_log", "follow_log", "follow_policy", "in_waves"]

I64 = npt.NDArray[np.int64]
Consume = Callable[[I64, Batch], None]
"""consume(rows, decided): a wave's places among the opportunities, and the batch as the Decision stage left it."""


class Course:
    """Policies over a partition's users, whose histories it keeps."""

    def __init__(
        self, asked: Opportunities, policies: Sequence[CompiledPolicy], start: Histories | None, failures: Failures
    ) -> None:
        self._policies, self._failures, self._items = tuple(policies), failures, asked.item_hashes
        keep = max(LedgerSettings().history_horizon_us, *(one.longest_window_us for one in policies))
        self._histories = UserHistories(asked.users, start, keep)
        self._stage = Decision()

    def histories_at(self, wave: Batch, rows: I64, known: I64 | None = None) -> Histories:
        """The histories that requests of distinct users, `rows` of the partition, are decided on. known: see
        `UserHistories.refund`."""
        requests, unknown = wave.requests, np.full(len(rows), -1, np.int64)
        self._histories.refund(
            rows, requests["decided_at"], requests["refunds_read"], unknown if known is None else known, self._failures
        )
        return self._histories.read(rows)

    def decide(self, wave: Batch, rows: I64, known: I64 | None = None) -> Batch:
        """Decide such requests on their histories as they stand."""
        return self.decide_on(self.histories_at(wave, rows, known), wave, self._policies)

    def decide_on(self, histories: Histories, wave: Batch, policies: Sequence[CompiledPolicy]) -> Batch:
        """Decide requests on given histories under given policies."""
        parts = {"histories": histories, "item_hashes": self._items}
        return self._stage.run(wave, Context(policies=tuple(policies), parts=parts))

    def failures_applied(self, rows: I64) -> I64:
        """How many of each user's failed deliveries the last decision knew of."""
        return self._failures.applied(rows)

    def remember(self, decided: Batch, rows: I64) -> None:
        """Take the sends and ghosts of a wave, as the course's policies decided it or the log has it, into the histories."""
        self._histories.add(rows, decided.requests["decided_at"], *history_entries(decided, self._policies))

    def recall_before(self, asked: Opportunities, behaviour: Sequence[CompiledPolicy], until: int) -> None:
        """Take all that was logged before `until` into the histories. behaviour: the policies of `asked.revisions`."""
        before = np.flatnonzero(asked.batch.requests["decided_at"] < until)
        if len(before):
            logged = asked.as_logged().take(before)
            entries, offsets = history_entries(logged, behaviour)
            rows, first = np.unique(asked.owner[before], return_index=True)
            by_user = offsets[np.append(first, len(before))]
            self._histories.add(rows, np.full(len(rows), until), entries, by_user)


def in_waves(users: I64) -> tuple[I64, I64]:
    """(order, bounds): rows sorted by how many earlier rows their user has, and where each wave begins and ends in it.
    `users` come sorted."""
    starts = np.flatnonzero(np.concatenate([[True], users[1:] != users[:-1]])) if len(users) else np.empty(0, np.int64)
    counts = np.diff(np.append(starts, len(users)))
    rank = np.arange(len(users)) - np.repeat(starts, counts)
    order = np.argsort(rank, kind="stable")
    return order, lengths_to_offsets(np.bincount(rank, minlength=0))


def follow_log(asked: Opportunities, course: Course, consume: Consume) -> I64:
    """Decide every logged request. Returns i64[n]: how many of its user's failed deliveries each decision knew of."""
    order, bounds = in_waves(asked.owner)
    waves, rows = asked.batch.take(order), asked.owner[order]
    known = np.empty(len(asked), np.int64)
    for begin, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        decided = course.decide(waves.slice(begin, end), rows[begin:end])
        course.remember(decided, rows[begin:end])
        known[order[begin:end]] = course.failures_applied(rows[begin:end])
        consume(order[begin:end], decided)
    return known


def along_log(asked: Opportunities, course: Course, look: Callable[[I64, slice, Histories], None]) -> None:
    """Every wave of the log on the logged histories; the course's policies are those of `asked.revisions`.

    look(rows, places, histories): places among the opportunities, and in the order of `in_waves`; what the wave saw."""
    order, bounds = in_waves(asked.owner)
    logged, rows = asked.as_logged().take(order), asked.owner[order]
    for begin, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        wave = logged.slice(begin, end)
        look(order[begin:end], slice(begin, end), course.histories_at(wave, rows[begin:end]))
        course.remember(wave, rows[begin:end])


def follow_policy(asked: Opportunities, course: Course, consume: Consume, *, since: int, known: I64) -> int:
    """What the course's policy 0 would have done from `since` on: logged requests at their times, deferrals it makes at
    their ends (see `Agenda`). known: as `follow_log` returns. Returns the number of re-decisions that carried their parent's
    scores: the log has none."""
    agenda = Agenda(asked, since, known)
    while len(users := agenda.busy()):
        turn = agenda.next_of(users)
        decided = course.decide(turn.batch, users, turn.failures_known)
        course.remember(decided, users)
        agenda.settle(turn, decided)
        consume(turn.rows, decided)
    return agenda.carried
