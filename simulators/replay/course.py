"""A policy's course over one partition: wave after wave, each user's next request, histories in memory.

A wave holds the k-th request of every user that has one, so that the serving core decides it as one batch. The longest user
sets the number of waves; their sizes fall quickly, and the total work is the number of requests.

`follow_log` decides exactly what was logged, each request under the policy its `policy` column names: with its own grants in
the histories it is the parity run, with the logged grants it gives a policy's probabilities on the logged histories.
`follow_policy` is the realised track: what another policy would have done, its deferrals decided again when they end.
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

__all__ = ["Course", "follow_log", "follow_policy", "in_waves"]

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

    def decide(self, wave: Batch, rows: I64, known: I64 | None = None) -> Batch:
        """Decide requests of distinct users, `rows` of the partition, on their histories as they stand. known: see
        `UserHistories.refund`."""
        requests, unknown = wave.requests, np.full(len(rows), -1, np.int64)
        self._histories.refund(
            rows, requests["decided_at"], requests["refunds_read"], unknown if known is None else known, self._failures
        )
        parts = {"histories": self._histories.read(rows), "item_hashes": self._items}
        return self._stage.run(wave, Context(policies=self._policies, parts=parts))

    def failures_applied(self, rows: I64) -> I64:
        """How many of each user's failed deliveries the last decision knew of."""
        return self._failures.applied(rows)

    def remember(self, decided: Batch, rows: I64) -> None:
        """Take the sends and ghosts of a decided (or logged) wave into the histories."""
        self._histories.add(rows, decided.requests["decided_at"], *history_entries(decided, self._policies))

    def recall(self, logged: Batch, rows: I64, behaviour: Sequence[CompiledPolicy]) -> None:
        """Take a logged wave into the histories. behaviour: the policies that its `policy` column names."""
        self._histories.add(rows, logged.requests["decided_at"], *history_entries(logged, behaviour))

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


def follow_log(
    asked: Opportunities, course: Course, consume: Consume, *, logged_under: Sequence[CompiledPolicy] | None = None
) -> None:
    """Decide every logged request; notes in `asked.failures_known` how many failed deliveries each decision knew of.
    logged_under: the policies of `asked.revisions`; given, histories take the logged grants instead of the decided ones."""
    order, bounds = in_waves(asked.owner)
    waves, rows = asked.batch.take(order), asked.owner[order]
    logged = None if logged_under is None else asked.as_logged().take(order)
    for begin, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        decided = course.decide(waves.slice(begin, end), rows[begin:end])
        if logged is None or logged_under is None:
            course.remember(decided, rows[begin:end])
        else:
            course.recall(logged.slice(begin, end), rows[begin:end], logged_under)
        asked.failures_known[order[begin:end]] = course.failures_applied(rows[begin:end])
        consume(order[begin:end], decided)


def follow_policy(asked: Opportunities, course: Course, consume: Consume, *, since: int) -> int:
    """What the course's policy 0 would have done from `since` on: logged requests at their times, deferrals it makes at
    their ends (see `Agenda`). Returns the number of re-decisions that carried their parent's scores: the log has none."""
    agenda = Agenda(asked, since)
    while len(users := agenda.busy()):
        turn = agenda.next_of(users)
        decided = course.decide(turn.batch, users, turn.failures_known)
        course.remember(decided, users)
        agenda.settle(turn, decided)
        consume(turn.rows, decided)
    return agenda.carried
