"""The ledger in one process's memory: what the world and replays use, and the semantics every backend is held to."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
import numpy.typing as npt

from serve_app.ledger.columns import CommitPlan, CommitResult, CommitStatus, LedgerView, Recents, UserState
from serve_app.ledger.hashing import EventIds
from serve_app.ledger.plans import check_plan, require_distinct, select_entries, value_at
from serve_app.ledger.protocol import (
    CampaignRow,
    CatalogueChange,
    Consent,
    Deferral,
    LedgerSettings,
    OutboxItem,
    QueueDepths,
    StoredRecord,
    UserChanges,
    UserRecord,
)
from serve_app.ledger.shelves import CatalogueShelf, DeferralShelf, OutboxShelf
from serve_app.ledger.table import UserTable
from serve_app.ledger.times import CommitTimes

__all__ = ["MemoryLedger"]

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]


class MemoryLedger:
    """Nothing outlives the object. Calls are serialised by one lock."""

    durability = "memory"

    def __init__(self, settings: LedgerSettings | None = None) -> None:
        self.settings = settings or LedgerSettings()
        self._lock = threading.RLock()
        self._table = UserTable(self.settings)
        self._proofs: dict[int, tuple[Consent, Consent]] = {}
        self._ids: dict[int, str] = {}
        self._records: dict[tuple[int, int], StoredRecord] = {}
        self._pending: dict[int, tuple[int, int]] = {}
        self._acked: deque[tuple[int, tuple[int, int]]] = deque()
        self._written_at: dict[int, int] = {}
        self._keys: dict[bytes, tuple[bytes, int, int, bytes]] = {}
        self._next_record = 1
        self._times = CommitTimes()
        self._deferrals, self._outbox, self._catalogue = DeferralShelf(), OutboxShelf(), CatalogueShelf()
        self._events = EventIds(self.settings.event_horizon_us)

    def read(self, users: U64) -> LedgerView:
        """See Ledger."""
        with self._lock:
            return self._table.view(np.asarray(users, np.uint64))

    def commit(self, plan: CommitPlan) -> CommitResult:
        """See Ledger."""
        check_plan(plan)
        with self._lock:
            status, stored = self._judge_keys(plan)
            versions = self._table.versions(plan.users)
            status[(status == CommitStatus.committed) & (versions != plan.read_versions)] = CommitStatus.conflict
            rows = np.flatnonzero(status == CommitStatus.committed)
            if len(rows):
                entries, offsets = select_entries(plan, rows)
                versions[rows] = self._table.commit(plan.users[rows], plan.decided_at[rows], entries, offsets)
                self._times.add(int(plan.decided_at[rows].max()))
                self._shelve(plan, rows, versions)
                self._expire()
            return CommitResult(status, versions, stored)

    def _judge_keys(self, plan: CommitPlan) -> tuple[npt.NDArray[np.int8], list[bytes]]:
        status, stored = np.zeros(len(plan.users), np.int8), [b""] * len(plan.users)
        since = plan.decided_at - self.settings.key_horizon_us
        for row, key in enumerate(plan.keys):
            known = self._keys.get(key) if key else None
            if known is not None and known[1] >= since[row]:
                same = known[0] == plan.digests[row]
                status[row] = CommitStatus.duplicate if same else CommitStatus.key_reused
                stored[row] = known[3] if same else b""
        return status, stored

    def _shelve(self, plan: CommitPlan, rows: I64, versions: I64) -> None:
        """Records, keys, deferrals and outbox rows of the committed rows."""
        until, settles = plan.deferred_until, plan.settles
        if not (len(plan.records) or len(plan.keys) or len(plan.outbox) or until is not None or settles is not None):
            return
        for row in rows.tolist():
            user, request, at = int(plan.users[row]), int(plan.request_ids[row]), int(plan.decided_at[row])
            record = value_at(plan.records, row)
            if record and self.settings.keep_records:
                self._records[user, request] = StoredRecord(self._next_record, user, request, int(versions[row]), record)
                self._pending[self._next_record] = (user, request)
                self._written_at[self._next_record] = at
                self._next_record += 1
            if key := value_at(plan.keys, row):
                self._keys.pop(key, None)  # so that the dictionary stays in order of time
                self._keys[key] = (plan.digests[row], at, user, record)
            if payload := value_at(plan.outbox, row):
                self._outbox.put(user, request, payload)
            if settles is not None and settles[row]:
                self._deferrals.drop(user, int(settles[row]))
            if until is not None and until[row]:
                self._deferrals.put(Deferral(user, request, int(until[row]), record))

    def _expire(self) -> None:
        horizon = self._times.now - self.settings.key_horizon_us
        while self._keys and next(iter(self._keys.values()))[1] < horizon:
            del self._keys[next(iter(self._keys))]
        while self._acked and self._acked[0][0] < horizon:
            self._records.pop(self._acked.popleft()[1], None)

    def refund(self, user: int, request_id: int, slot: int) -> bool:
        """See Ledger."""
        with self._lock:
            return self._table.refund(user, request_id, slot)

    def put_user(self, user: int, changes: UserChanges) -> int:
        """See Ledger."""
        with self._lock:
            version = self._table.put(user, changes)
            ad, night = self._proofs.get(user, (Consent(0), Consent(0)))
            self._proofs[user] = (changes.consent_ad or ad, changes.consent_night or night)
            if changes.user_id is not None:
                self._ids[user] = changes.user_id
            return version

    def put_users(self, users: U64, state: UserState) -> I64:
        """See Ledger."""
        require_distinct(users)
        with self._lock:
            for user in users.tolist() if self._proofs else ():
                self._proofs.pop(user, None)
            return self._table.put_many(users, state)

    def get_user(self, user: int) -> UserRecord | None:
        """See Ledger."""
        with self._lock:
            record = self._table.record(user, self._proofs.get(user))
            return record and replace(record, user_id=self._ids.get(user, ""))

    def delete_user(self, user: int) -> bool:
        """See Ledger."""
        with self._lock:
            if not self._table.erase(user):
                return False
            self._proofs.pop(user, None)
            self._ids.pop(user, None)
            for pair in [pair for pair in self._records if pair[0] == user]:
                number = self._records.pop(pair).id
                self._pending.pop(number, None)
                self._written_at.pop(number, None)
            for key in [key for key, value in self._keys.items() if value[2] == user]:
                del self._keys[key]
            self._deferrals.forget(user)
            self._outbox.forget(user)
            return True

    def record_events(self, users: U64, items: U64, at: I64) -> None:
        """See Ledger."""
        with self._lock:
            self._table.record_events(users, items, at)

    def recents(self, users: U64) -> Recents:
        """See Ledger."""
        with self._lock:
            return self._table.recents(np.asarray(users, np.uint64))

    def dedupe_events(self, ids: U64, at: int, *, mark: bool = True) -> npt.NDArray[np.bool_]:
        """See Ledger."""
        with self._lock:
            fresh = self._events.fresh(ids)
            if mark:
                self._events.mark(ids[fresh], at)
            return fresh

    def append_catalogue_change(self, kind: str, payload: bytes) -> int:
        """See Ledger."""
        with self._lock:
            return self._catalogue.append(kind, payload)

    def catalogue_head(self) -> int:
        """See Ledger."""
        return self._catalogue.head

    def catalogue_changes(self, after_seq: int, limit: int = 10_000) -> list[CatalogueChange]:
        """See Ledger."""
        with self._lock:
            return self._catalogue.changes(after_seq, limit)

    def put_campaign(self, campaign_id: str, document: bytes) -> CampaignRow:
        """See Ledger."""
        with self._lock:
            return self._catalogue.put_campaign(campaign_id, document)

    def get_campaigns(self) -> list[CampaignRow]:
        """See Ledger."""
        with self._lock:
            return self._catalogue.campaigns()

    def find_decision(self, user: int, request_id: int, slot: int = 0) -> bytes | None:  # noqa: ARG002 (a record holds all slots)
        """See Ledger."""
        with self._lock:
            found = self._records.get((user, request_id))
            return found.record if found else None

    def pending_records(self, limit: int, after: int = -1) -> list[StoredRecord]:
        """See Ledger."""
        with self._lock:
            waiting = (self._records[pair] for number, pair in self._pending.items() if number > after)
            return list(islice(waiting, limit))

    def ack_records(self, ids: Sequence[int]) -> None:
        """See Ledger."""
        with self._lock:
            for number in ids:
                pair = self._pending.pop(number, None)
                if pair is not None:
                    self._acked.append((self._written_at.pop(number), pair))

    def due_deferrals(self, now: int, limit: int) -> list[Deferral]:
        """See Ledger."""
        with self._lock:
            return self._deferrals.due(now, limit)

    def drop_deferral(self, user: int, request_id: int) -> bool:
        """See Ledger."""
        with self._lock:
            return self._deferrals.drop(user, request_id)

    def claim_outbox(self, now: int, limit: int, lease_us: int) -> list[OutboxItem]:
        """See Ledger."""
        with self._lock:
            return self._outbox.claim(now, limit, lease_us)

    def ack_outbox(self, ids: Sequence[int]) -> int:
        """See Ledger."""
        with self._lock:
            return self._outbox.ack(ids)

    def postpone_outbox(self, ids: Sequence[int], until: Sequence[int], attempts: Sequence[int]) -> int:
        """See Ledger."""
        with self._lock:
            return self._outbox.postpone(ids, until, attempts)

    def buried_outbox(self, limit: int) -> list[OutboxItem]:
        """See Ledger."""
        with self._lock:
            return self._outbox.buried(limit)

    def queue_depths(self, now: int) -> QueueDepths:
        """See Ledger."""
        with self._lock:
            return QueueDepths(*self._deferrals.depths(now), *self._outbox.depths(now))

    def snapshot(self, as_of: int, chunk: int = 10_000) -> Iterator[LedgerView]:
        """See Ledger."""
        with self._lock:
            users = self._table.known_users()
        for start in range(0, len(users), chunk):
            with self._lock:
                views = list(self._table.snapshot(users[start : start + chunk], as_of, chunk))
            yield from views  # not under the lock: the next page may be asked for by another thread

    def set_history_horizon(self, horizon_us: int) -> None:
        """See Ledger."""
        with self._lock:
            self._table.horizon_us = max(self._table.horizon_us, horizon_us)

    def close(self) -> None:
        """See Ledger."""
