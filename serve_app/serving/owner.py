"""The state owner: one process that holds the ledger and the promotion board for all replicas of a server.

Calls run in a pool of threads, so that no caller holds up the event loop; but what requests wait for (`live`, `look`,
`commit`) the loop takes up itself where the ledger lies in this process. Commits of many callers share one durable write.
Read-modify-write of a user's state happens here, under a lock per user, so that no change is lost.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.clock import now_us
from serve_app.errors import HindcastError, InvalidInput
from serve_app.ledger.columns import LedgerView, Recents, UserState
from serve_app.ledger.protocol import CatalogueChange, Consent, Ledger, PromptLedger, UserChanges, UserRecord
from serve_app.serving import faults
from serve_app.serving.board import Board, Kind, Orders, Report
from serve_app.serving.snapshot_pages import SnapshotPages
from serve_app.serving.stage_gauges import tell_calls
from serve_app.serving.threads import WorkThreads

__all__ = ["LiveAnswer", "Look", "Optings", "StateOwner"]

U64 = npt.NDArray[np.uint64]
_LOCKS = 256
_GAP = 10_000
_SLACK_US = 86_400_000_000
_FAULTS = {"read": faults.Point.ledger_read, "commit": faults.Point.ledger_commit}

_CALLABLE = frozenset(
    {
        "read", "commit", "refund", "put_user", "put_users", "get_user", "delete_user", "record_events", "recents",
        "dedupe_events", "append_catalogue_change", "catalogue_head", "catalogue_changes", "put_campaign", "get_campaigns",
        "find_decision", "pending_records", "ack_records", "due_deferrals", "drop_deferral", "claim_outbox", "ack_outbox",
        "postpone_outbox", "buried_outbox", "queue_depths", "set_history_horizon",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class LiveAnswer:
    """What a micro-batch needs of the live state: the newest catalogue sequence number, the changes it has not seen yet
    (all of them up to `head`), its users' recent items, and where they are (zone, region)."""

    head: int
    changes: list[CatalogueChange]
    recents: Recents
    state: UserState


@dataclass(frozen=True, slots=True)
class Look:
    """What a decision needs before it is made: the newest catalogue sequence number, the changes it has not seen yet (all of
    them up to `head`), and its users as the ledger has them."""

    head: int
    changes: list[CatalogueChange]
    view: LedgerView


@dataclass(frozen=True, slots=True)
class Optings:
    """Channels (bits) to add to and to take from a user's opt-outs."""

    out: int = 0
    back: int = 0


class StateOwner:
    """See the module. Methods are coroutines on the owner's event loop."""

    def __init__(
        self,
        ledger: Ledger,
        board: Board,
        *,
        threads: int = 4,
        stuck_s: float = 30.0,
        clock: Callable[[], int] = now_us,
        window_us: Callable[[str], int] | None = None,
    ) -> None:
        """stuck_s: no call of the ledger takes as long. window_us: how far back a policy revision looks; histories are kept
        as long from before it is in force."""
        self._ledger = ledger
        self._prompt = ledger if isinstance(ledger, PromptLedger) else None
        self._window_us = window_us
        self.board = board
        self._pool = WorkThreads(threads, "ledger", stuck_s=stuck_s)
        self._locks = [threading.Lock() for _ in range(_LOCKS)]
        self._clock = clock
        self._pages = SnapshotPages(ledger)

    async def call(self, method: str, *arguments: Any, **keywords: Any) -> Any:
        """One method of the ledger, by name; or `look`."""
        if method == "look":
            return await self.look(*arguments)
        if method == "commit" and self._prompt is not None and not faults.planted():
            return await self._prompt.commit_soon(*arguments)
        if method in ("snapshot_open", "snapshot_next"):
            return await self._run(getattr(self._pages, method.removeprefix("snapshot_")), *arguments)
        if method not in _CALLABLE:
            raise InvalidInput(f"the ledger has no method {method!r}", field="method")
        function = getattr(self._ledger, method)
        if method in _FAULTS:
            function = faults.before(_FAULTS[method], function)
        return await self._run(function, *arguments, **keywords)

    async def live(self, users: U64, after_seq: int) -> LiveAnswer:
        """See LiveAnswer. The head is read after the call began: a change that was answered before is in."""
        if self._prompt is not None and not faults.planted():
            head = self._ledger.catalogue_head()
            recents = self._prompt.recents_at_once(users) if head <= after_seq else None
            view = self._prompt.read_at_once(users) if recents is not None else None
            if recents is not None and view is not None:
                return LiveAnswer(max(head, after_seq), [], recents, view.state)
        return await self._run(self._live, users, after_seq)

    async def look(self, users: U64, after_seq: int) -> Look:
        """See Look. What waits for nothing is looked up here, as a thread would cost more than the look."""
        if self._prompt is not None and not faults.planted():
            head = self._ledger.catalogue_head()
            view = self._prompt.read_at_once(users) if head <= after_seq else None
            if view is not None:
                return Look(max(head, after_seq), [], view)
        return await self._run(self._look, users, after_seq)

    async def change_user(self, user: int, changes: UserChanges, optings: Optings | None = None) -> UserRecord:
        """Apply `changes` and opt-outs to one user and give the state as stored after it."""
        return await self._run(self._change_user, user, changes, optings)

    async def poll(self, report: Report, after_epoch: int) -> Orders:
        """A replica's report against the board's orders."""
        return await self.board.poll(report, after_epoch)

    async def prepare(self, kind: Kind, version: str) -> None:
        """First phase of a promotion."""
        await self.board.prepare(kind, version)
        if kind == "policy":
            await self._run(self._keep_for, version)

    async def commit_version(self, kind: Kind, version: str) -> None:
        """Second phase of a promotion."""
        await self.board.commit(kind, version)

    async def replicas(self) -> Sequence[Report]:
        """Reports of the living replicas."""
        return self.board.replicas()

    async def tell_calls(self) -> None:
        """Say how many calls there are, until cancelled."""
        await tell_calls("ledger", [self._pool], self._queued)

    def _queued(self) -> int:
        return self._prompt.queued if self._prompt is not None else 0

    def check_health(self) -> None:
        """HindcastError where a thread is stuck in the ledger, or its own has ended."""
        self._pool.check()
        if not getattr(self._ledger, "alive", True):
            raise HindcastError("the ledger's thread has ended")

    def close(self) -> None:
        """Finish what is under way and let the ledger go."""
        self._pool.shutdown(wait=True)
        self._ledger.close()

    async def _run(self, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, lambda: function(*arguments, **keywords))

    def keep_histories(self) -> None:
        """Keep histories as long as the policies in force look back."""
        for revision in self.board.orders.wanted["policy"]:
            self._keep_for(revision)

    def _keep_for(self, revision: str) -> None:
        if self._window_us is not None:
            # A day more: clocks that disagree, and calendar days of other zones.
            self._ledger.set_history_horizon(self._window_us(revision) + _SLACK_US)

    def _live(self, users: U64, after_seq: int) -> LiveAnswer:
        head, changes = self._changes(after_seq)
        return LiveAnswer(head, changes, self._ledger.recents(users), self._ledger.read(users).state)

    def _look(self, users: U64, after_seq: int) -> Look:
        head, changes = self._changes(after_seq)
        return Look(head, changes, faults.before(_FAULTS["read"], self._ledger.read)(users))

    def _changes(self, after_seq: int) -> tuple[int, list[CatalogueChange]]:
        """The newest sequence number, and the changes after `after_seq` up to it."""
        faults.strike(faults.Point.availability)
        head = self._ledger.catalogue_head()
        changes: list[CatalogueChange] = []
        while after_seq < head:
            page = self._ledger.catalogue_changes(after_seq, _GAP)
            if not page:
                break
            changes += page
            after_seq = page[-1].seq
        return max(head, after_seq), changes

    def _change_user(self, user: int, changes: UserChanges, optings: Optings | None) -> UserRecord:
        with self._locks[user % _LOCKS]:
            if optings is not None:
                known = self._ledger.get_user(user)
                opted_out = ((known.opted_out if known else 0) | optings.out) & ~optings.back
                changes = UserChanges(**{**_fields(changes), "opted_out": opted_out})
            version = self._ledger.put_user(user, changes)
            stored = self._ledger.get_user(user)
        never = Consent(0)
        return stored or UserRecord(user, version, never, never, 0, 0, 0, "", "")  # erased right after


def _fields(changes: UserChanges) -> dict[str, Any]:
    return {name: getattr(changes, name) for name in changes.__dataclass_fields__}
