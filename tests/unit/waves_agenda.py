"""Who is asked what next, when a policy makes deferrals of its own.

A logged request is asked at its logged time. A deferral is asked again at its end: where the log deferred the same request
to the same moment, at the moment the log's re-decision happened and with its scores; where it deferred to another moment, at
the policy's own moment with the logged re-decision's scores; where it did not defer, with the parent's scores (*carried*).
Logged re-decisions of deferrals the policy does not make are never asked, but for those of deferrals made before it began.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch, Columns
from serve_app.columns import REQUEST_COLUMNS
from serve_app.stages.decision.deferrals import children_of
from serve_app.vocabulary import Action, Origin
from simulators.replay.opportunities import Opportunities
from tests.unit.waves_asked import children

__all__ = ["Agenda", "Turn"]

I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_NEVER = np.iinfo(np.int64).max
# An open deferral: the partition's user, when it is asked again, the logged row whose scores it takes, the request that
# deferred, how often it was deferred, and whether the scores are its parent's.
_OPEN = np.dtype(
    [("user", "i8"), ("due", "i8"), ("row", "i8"), ("parent", "u8"), ("attempt", "i2"), ("carried", "?")], align=True
)


@dataclass(frozen=True, slots=True)
class Turn:
    """One request of each of some users. rows: logged rows whose context and scores they take. again: the place among the
    open deferrals, -1 for a logged request. failures_known: by the logged decision, -1: not a logged one."""

    batch: Batch
    rows: I64
    again: I64
    users: I64
    failures_known: I64


class Agenda:
    """See the module. Users are rows of the partition."""

    def __init__(self, asked: Opportunities, since: int, known: I64) -> None:
        """known i64[n]: how many of its user's failed deliveries each logged decision knew of."""
        self._asked, self._known = asked, known
        self._at: I64 = asked.batch.requests["decided_at"]
        self._child = children(asked)
        inherited = self._child[(self._at < since) & (self._child >= 0)]
        root = asked.batch.requests["origin"] != Origin.deferral
        root[inherited] = True
        self._roots = np.flatnonzero(root & (self._at >= since))
        owner, users = asked.owner[self._roots], np.arange(len(asked.users))
        self._next = np.searchsorted(owner, users, "left")
        self._end = np.searchsorted(owner, users, "right")
        self._open = np.empty(0, _OPEN)
        self.carried = 0

    def busy(self) -> I64:
        """Users with something left to be asked, ascending."""
        waiting = np.zeros(len(self._next), np.bool_)
        waiting[self._open["user"]] = True
        return np.flatnonzero(waiting | (self._next < self._end))

    def next_of(self, users: I64) -> Turn:
        """The earliest request of each of `users`; at a tie the deferral's."""
        root = np.full(len(users), -1, np.int64)
        left = self._next[users] < self._end[users]
        root[left] = self._roots[self._next[users[left]]]
        again = self._earliest(users)
        due = np.where(again >= 0, self._open["due"][again] if len(self._open) else _NEVER, _NEVER)
        logged = left & (np.where(left, self._at[root], _NEVER) < due)
        again = np.where(logged, -1, again)
        rows = np.where(logged, root, self._open["row"][again] if len(self._open) else root)
        known = np.where(again < 0, self._known[rows], -1)
        return Turn(self._batch(rows, again), rows, again, users, known)

    def settle(self, turn: Turn, decided: Batch) -> None:
        """Move on: what was asked is done, deferrals made are open."""
        self._next[turn.users[turn.again < 0]] += 1
        keep = np.ones(len(self._open), np.bool_)
        keep[turn.again[turn.again >= 0]] = False
        made = np.flatnonzero(decided.requests["action"] == Action.defer)
        self._open = np.concatenate([self._open[keep], self._opened(turn, decided, made)])

    def _opened(self, turn: Turn, decided: Batch, made: I64) -> npt.NDArray[np.void]:
        rows, until = turn.rows[made], decided.requests["until"][made]
        child = self._child[rows]
        has = child >= 0
        opened = np.empty(len(made), _OPEN)
        opened["user"], opened["parent"] = turn.users[made], decided.requests["request_id"][made]
        opened["row"] = np.where(has, child, rows)
        opened["due"] = np.where(has & (until == self._asked.logged["until"][rows]), self._at[opened["row"]], until)
        opened["attempt"], opened["carried"] = decided.requests["attempt"][made] + 1, ~has
        self.carried += int((~has).sum())
        return opened

    def _earliest(self, users: I64) -> I64:
        """Place of each user's earliest open deferral; -1: none."""
        found = np.full(len(self._next), -1, np.int64)
        order = np.lexsort((self._open["parent"], self._open["due"], self._open["user"]))[::-1]
        found[self._open["user"][order]] = order
        return found[users]

    def _batch(self, rows: I64, again: I64) -> Batch:
        batch = self._asked.batch.take(rows)
        later = np.flatnonzero(again >= 0)
        if not len(later):
            return batch
        one, own = self._open[again[later]], dict(batch.requests)
        names = ("decided_at", "attempt", "origin", "parent_request_id", "request_id", "refunds_read")
        changed = {name: own[name].copy() for name in names}
        changed["decided_at"][later], changed["attempt"][later] = one["due"], one["attempt"]
        changed["refunds_read"][later] = -1
        changed["origin"][later], changed["parent_request_id"][later] = Origin.deferral, one["parent"]
        carried = later[one["carried"]]
        changed["request_id"][carried] = children_of(own["user"][carried], changed["parent_request_id"][carried])
        requests = Columns(len(batch), REQUEST_COLUMNS, own | changed)
        return Batch(requests, batch.candidates, batch.offsets, batch.meta)
