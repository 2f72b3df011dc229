"""The parity run: a log decided again by the serving core itself, wave after wave, histories in memory.

A wave holds the k-th request of every user that has one, so that the Decision stage decides it as one batch. The longest
user sets the number of waves; their sizes fall quickly, and the total work is the number of requests. Targets, and logs
that were compared before, take the shorter way of `simulators.replay.stream`, of which every bit is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch, lengths_to_offsets
from serve_app.ledger.columns import Histories
from serve_app.ledger.protocol import LedgerSettings
from serve_app.policy.compile import CompiledPolicy
from serve_app.stages.decision import Decision
from serve_app.stages.decision.plan import history_entries
from serve_app.stages.stage import Context
from simulators.replay.histories import Failures, UserHistories
from simulators.replay.opportunities import Opportunities

__all__ = ["Course", "follow_log", "in_waves"]

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

    def decide(self, wave: Batch, rows: I64) -> Batch:
        """Decide requests of distinct users, `rows` of the partition, on their histories as they stand."""
        requests = wave.requests
        self._histories.refund(rows, requests["decided_at"], requests["refunds_read"], self._failures)
        parts = {"histories": self._histories.read(rows), "item_hashes": self._items}
        return self._stage.run(wave, Context(policies=self._policies, parts=parts))

    def failures_applied(self, rows: I64) -> I64:
        """How many of each user's failed deliveries the last decision knew of."""
        return self._failures.applied(rows)

    def remember(self, decided: Batch, rows: I64) -> None:
        """Take the sends and ghosts of a wave, as the course's policies decided it, into the histories."""
        self._histories.add(rows, decided.requests["decided_at"], *history_entries(decided, self._policies))


def in_waves(users: I64) -> tuple[I64, I64]:
    """(order, bounds): rows sorted by how many earlier rows their user has, and where each wave begins and ends in it.
    `users` come sorted."""
    starts = np.flatnonzero(np.concatenate([[True], users[1:] != users[:-1]])) if len(users) else np.empty(0, np.int64)
    counts = np.diff(np.append(starts, len(users)))
    rank = np.arange(len(users)) - np.repeat(starts, counts)
    order = np.argsort(rank, kind="stable")
    return order, lengths_to_offsets(np.bincount(rank, minlength=0))


def follow_log(asked: Opportunities, course: Course, consume: Consume) -> I64:
    """Decide every logged request under the policy its `policy` column names. Returns i64[n]: how many of its user's failed
    deliveries each decision knew of."""
    order, bounds = in_waves(asked.owner)
    waves, rows = asked.batch.take(order), asked.owner[order]
    known = np.empty(len(asked), np.int64)
    for begin, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        decided = course.decide(waves.slice(begin, end), rows[begin:end])
        course.remember(decided, rows[begin:end])
        known[order[begin:end]] = course.failures_applied(rows[begin:end])
        consume(order[begin:end], decided)
    return known
