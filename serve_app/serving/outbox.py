"""The outbox desk: takes granted messages from the ledger, looks once more whether they may go, books what became of them.

Whoever sends (the webhook worker, or a sender that pulls) claims rows under a lease and tells the outcome. What is told is
done in an order in which a crash anywhere leads to the same steps again, and never to a message sent after its refund: the
event goes into the journal, the ledger remembers the send as settled, a failed send's use is refunded, and only then the row
goes. A message is handed over at least once; its decision id tells a repetition.

A row that failed rests ever longer. After the last attempt it is dead: kept, counted, shown. Its use stays counted, because
an attempt without an answer may have arrived; whoever knows better tells the outcome.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from serve_app.clock import now_us
from serve_app.errors import DamagedArtifact, NotReady
from serve_app.ids import parse_decision_id
from serve_app.ledger.protocol import OUTBOX_BURIED, OutboxItem
from serve_app.serving.editions import EditionNow, OwnerCall
from serve_app.serving.journalling import JournalHost
from serve_app.serving.library import Edition
from serve_app.serving.meters import count
from serve_app.serving.outbox_check import last_look
from serve_app.serving.outbox_messages import Message, Outcome, dead_document, event_rows
from serve_app.serving.outbox_rows import QueuedSend, Receipt, backoff_us, failed_id, queued_sends, settled_id
from serve_app.serving.stages import in_pool
from serve_app.vocabulary import Reason

__all__ = ["DeskSettings", "OutboxDesk"]

_LOG = logging.getLogger("hindcast.serving")
_TIDY_LEASE_US = 10_000_000


@dataclass(frozen=True, slots=True)
class DeskSettings:
    """max_attempts: claims of a row before it is dead; backoff_s, backoff_most_s: rest after a failure (doubling);
    max_age_h: a message older than this, counted from its grant, is stale."""

    max_attempts: int = 8
    backoff_s: float = 5.0
    backoff_most_s: float = 3600.0
    max_age_h: float = 24.0


@dataclass(slots=True)
class _Sorted:
    """Claimed sends by what the last look said."""

    ready: list[QueuedSend] = field(default_factory=list)
    withdrawn: list[Outcome] = field(default_factory=list)
    held: dict[Receipt, int] = field(default_factory=dict)


class OutboxDesk:
    """See the module. `call` reaches the ledger; array work and the journal go to `pool`."""

    def __init__(
        self,
        call: OwnerCall,
        edition: EditionNow,
        journal: JournalHost,
        pool: Executor,
        settings: DeskSettings,
        *,
        clock: Callable[[], int] = now_us,
    ) -> None:
        self._call, self._edition, self._journal, self._pool = call, edition, journal, pool
        self._settings, self._clock = settings, clock

    async def claim(self, limit: int, lease_us: int) -> list[Message]:
        """Messages to hand over within the lease, from at most `limit` rows. Those that may not go any more are withdrawn,
        those that must wait are held, on the way."""
        async with self._edition() as edition:
            ready = await self._ready(limit, lease_us, edition)
            return list(await asyncio.gather(*(self._message(send, edition) for send in ready)))

    async def tidy(self, limit: int) -> int:
        """Withdraw what may not go any more of the oldest rows, where nobody claims them; the others stay as they are.
        Returns how many sends are still to be claimed."""
        async with self._edition() as edition:
            ready = await self._ready(limit, _TIDY_LEASE_US, edition)
            receipts, now = list(dict.fromkeys(one.receipt for one in ready)), self._clock()
            if receipts:
                rows, attempts = [one.row for one in receipts], [one.attempts - 1 for one in receipts]
                await self._call("postpone_outbox", rows, [now] * len(rows), attempts)
            return len(ready)

    async def _ready(self, limit: int, lease_us: int, edition: Edition) -> list[QueuedSend]:
        """Sends to hand over within the lease; what may not go is withdrawn, what must wait is held."""
        now = self._clock()
        items: list[OutboxItem] = await self._call("claim_outbox", now, limit, lease_us)
        sends = await self._open(await self._readable(items))
        if not sends:
            return []
        view = await self._call("read", np.array([one.user for one in sends], np.uint64))
        verdicts = await in_pool(self._pool, lambda: last_look(sends, view, edition, now))
        found = _Sorted()
        for send, verdict in zip(sends, verdicts, strict=True):
            if verdict.hold_until:
                found.held[send.receipt] = min(verdict.hold_until, found.held.get(send.receipt, OUTBOX_BURIED))
            elif verdict.reason is not Reason.none:
                found.withdrawn.append(Outcome.of(send, "withdrawn", verdict.reason.name))
            else:
                found.ready.append(send)
        await self.settle(found.withdrawn)
        await self._hold(found)
        return found.ready

    async def settle(self, outcomes: Sequence[Outcome]) -> int:
        """Book final outcomes; returns how many were new. Rows whose sends are all settled go. NotReady where the journal
        missed its budget: nothing is booked then, tell it again."""
        if not outcomes:
            return 0
        ids = np.array([settled_id(one.decision_id) for one in outcomes], np.uint64)
        fresh = await self._call("dedupe_events", ids, self._clock(), mark=False)
        new = [one for one, first in zip(outcomes, fresh, strict=True) if first]
        if new:
            now = self._clock()
            rows = {"events": event_rows(new, now)}
            if not await in_pool(self._pool, lambda: self._journal.write(rows)):
                raise NotReady("the outcome could not be made durable in time", field="log", hint="send it again")
            failed = [one.decision_id for one in new if one.kind != "delivered"]
            marks = [settled_id(one.decision_id) for one in new] + [failed_id(one) for one in failed]
            await self._call("dedupe_events", np.array(marks, np.uint64), now, mark=True)
            await self._refund(failed)
            for one in new:
                count("hindcast_outbox", outcome=one.kind)
        await self._clear({one.receipt: one.decision_id for one in outcomes})
        return len(new)

    async def retry(self, receipts: Sequence[Receipt], after_us: int = 0) -> None:
        """Let rows rest, at least `after_us`, or bury those that had their last attempt."""
        own, now = self._settings, self._clock()
        until = []
        for one in receipts:
            dead = one.attempts >= own.max_attempts
            rest = max(backoff_us(one.row, one.attempts, own.backoff_s, own.backoff_most_s), after_us)
            until.append(OUTBOX_BURIED if dead else now + rest)
            count("hindcast_outbox", outcome="dead" if dead else "retried")
            if dead:
                _LOG.error("outbox row %d is dead after %d attempts", one.row, one.attempts)
        rows, attempts = [one.row for one in receipts], [one.attempts for one in receipts]
        if rows:
            await self._call("postpone_outbox", rows, until, attempts)

    async def dead(self, limit: int) -> list[dict[str, Any]]:
        """Dead rows, as a sender would have got them, without the message's words."""
        items: list[OutboxItem] = await self._call("buried_outbox", limit)
        out = []
        for item in items:
            try:
                out += [dead_document(send) for send in queued_sends(item, self._settings.max_age_h)]
            except DamagedArtifact:
                out.append({"receipt": str(Receipt(item.id, (0,), item.attempts)), "attempts": item.attempts})
        return out

    async def revive(self, receipts: Sequence[Receipt]) -> int:
        """Make rows claimable again, as if they had never failed; returns how many there were."""
        rows, now = [one.row for one in receipts], self._clock()
        revived: int = await self._call("postpone_outbox", rows, [now] * len(rows), [0] * len(rows))
        return revived

    async def _readable(self, items: Sequence[OutboxItem]) -> list[QueuedSend]:
        """The sends of rows that are worth an attempt; the others are buried."""
        sends: list[QueuedSend] = []
        buried: list[OutboxItem] = []
        for item in items:
            try:
                if item.attempts > self._settings.max_attempts:  # workers died with it, again and again
                    raise DamagedArtifact(f"outbox row {item.id} was claimed {item.attempts} times without an outcome")
                sends += queued_sends(item, self._settings.max_age_h)
            except DamagedArtifact as error:
                _LOG.error("%s; it is dead", error)
                buried.append(item)
        if buried:
            count("hindcast_outbox", len(buried), outcome="dead")
            rows, attempts = [one.id for one in buried], [one.attempts for one in buried]
            await self._call("postpone_outbox", rows, [OUTBOX_BURIED] * len(rows), attempts)
        return sends

    async def _open(self, sends: Sequence[QueuedSend]) -> list[QueuedSend]:
        """Sends that are not settled yet. Only a row claimed before can hold others; it goes if it holds nothing else."""
        before = [one for one in sends if one.receipt.attempts > 1]
        if not before:
            return list(sends)
        ids = np.array([settled_id(one.decision_id) for one in before], np.uint64)
        fresh = await self._call("dedupe_events", ids, self._clock(), mark=False)
        settled = {one.decision_id: one.receipt for one, first in zip(before, fresh, strict=True) if not first}
        if settled:  # whoever settled them died before the row went, perhaps before the refund
            marks = np.array([failed_id(one) for one in settled], np.uint64)
            fresh = await self._call("dedupe_events", marks, self._clock(), mark=False)
            await self._refund([one for one, first in zip(settled, fresh, strict=True) if not first])
            await self._clear({receipt: decision_id for decision_id, receipt in settled.items()})
        return [one for one in sends if one.decision_id not in settled]

    async def _refund(self, decision_ids: Sequence[str]) -> None:
        """Give the uses back; a use is given back once, however often it is asked for."""
        for one in decision_ids:
            await self._call("refund", *parse_decision_id(one))

    async def _clear(self, rows: dict[Receipt, str]) -> None:
        """Remove the rows all of whose sends are settled. rows: receipt -> any decision id of the row."""
        if not rows:
            return
        pairs = [(receipt, settled_id(one)) for receipt, decision in rows.items() for one in _decisions(receipt, decision)]
        fresh = await self._call("dedupe_events", np.array([one for _, one in pairs], np.uint64), self._clock(), mark=False)
        waiting = {receipt for (receipt, _), first in zip(pairs, fresh, strict=True) if first}
        if done := [receipt.row for receipt in rows if receipt not in waiting]:
            await self._call("ack_outbox", done)

    async def _hold(self, found: _Sorted) -> None:
        """Put rows off that hold nothing to be handed over now. The claim was no attempt."""
        busy = {one.receipt for one in found.ready}
        held = [(one, until) for one, until in found.held.items() if one not in busy]
        if held:
            count("hindcast_outbox", len(held), outcome="held")
            rows, until = [one.row for one, _ in held], [end for _, end in held]
            await self._call("postpone_outbox", rows, until, [one.attempts - 1 for one, _ in held])

    async def _message(self, send: QueuedSend, edition: Edition) -> Message:
        known = await self._call("get_user", send.user)
        user_id = known.user_id if known is not None else ""
        if not user_id:
            row = edition.release.catalogue.user_rows(np.array([send.user], np.uint64))[0]
            user_id = edition.release.catalogue.users["user_id"][int(row)].as_py() if row >= 0 else ""
        names = edition.campaigns
        document = edition.documents[names.ids[int(names.rows_of(np.array([send.campaign], np.uint64))[0])]]
        item = None
        if send.item is not None:
            item = edition.view.ids_of(edition.view.rows_of(np.array([send.item], np.uint64)))[0]
        return Message(send, user_id or None, document.campaign_id, document.title, document.text, item)


def _decisions(receipt: Receipt, decision_id: str) -> list[str]:
    """Decision ids of all sends of a row, of which `decision_id` is one."""
    return [f"{decision_id[:-4]}{slot:04x}" for slot in receipt.slots]
