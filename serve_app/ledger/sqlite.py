"""The embedded ledger: one process owns a SQLite file, one thread of it writes, all users are in its memory.

A write is appended to a journal in the file and answered when the transaction is durable; many callers share one
transaction (`group_commit`). User rows and indices follow behind (`sqlite_checkpoint`), and a start replays what they lack.
So versions are compared in memory, by the same code as the memory ledger, and a crash loses nothing that was answered.
Memory: about 130 bytes a user plus 56 a history entry and 16 a recent.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from serve_app.errors import InvalidInput, LedgerUnavailable
from serve_app.ledger import sqlite_shelves as shelves
from serve_app.ledger.block import checksum, encode_block
from serve_app.ledger.columns import CommitPlan, CommitResult, CommitStatus, LedgerView, Recents, UserState
from serve_app.ledger.group_commit import GroupCommit
from serve_app.ledger.hashing import EventIds
from serve_app.ledger.plans import check_plan, require_distinct, select_entries, value_at
from serve_app.ledger.protocol import (
    CampaignRow,
    CatalogueChange,
    Deferral,
    LedgerSettings,
    OutboxItem,
    QueueDepths,
    StoredRecord,
    UserChanges,
    UserRecord,
)
from serve_app.ledger.records import Records
from serve_app.ledger.sqlite_audit import audit_file
from serve_app.ledger.sqlite_checkpoint import PUT_USER, Checkpoint
from serve_app.ledger.sqlite_file import BUSY_MS, Durability, OwnerLock, connect, load_users, user_rows
from serve_app.ledger.sqlite_index import DecisionIndex, JournalReader
from serve_app.ledger.sqlite_replay import BlockKind, erase_from_blocks, replay
from serve_app.ledger.table import UserTable
from serve_app.ledger.times import CommitTimes

__all__ = ["SqliteLedger"]

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
R = TypeVar("R")
_ROW_BITS = 20
_TRUNCATE_AGAIN_S = 5.0


class SqliteLedger:
    """See Ledger. `path` is created when missing; NotReady when another process owns it, DamagedArtifact when it is corrupt.

    read_only: look at a ledger without owning it, as of now (it does not follow later writes).
    """

    def __init__(
        self,
        path: Path | str,
        settings: LedgerSettings | None = None,
        *,
        durability: Durability = "disk",
        read_only: bool = False,
        timeout_s: float = 10.0,
        checkpoint_rows: int = 250_000,
        checkpoint_s: float = 60.0,
    ) -> None:
        self.settings = settings or LedgerSettings()
        self.durability = durability
        self._path, self._read_only = Path(path), read_only
        self._checkpoint_rows, self._checkpoint_s = checkpoint_rows, checkpoint_s
        # When erased rows are to leave the write-ahead log; a process that was killed may have left some.
        self._truncate_at: float | None = time.monotonic()
        self._lock = threading.RLock()
        if not read_only:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        self._owner = None if read_only else OwnerLock(self._path)
        try:
            self._group = GroupCommit(self, self._lock, timeout_s)
        except BaseException:
            if self._owner:
                self._owner.release()
            raise

    @property
    def alive(self) -> bool:
        """Whether the writing thread works; a ledger whose thread has ended must be opened anew."""
        return self._group.alive

    # --- what the writing thread calls -----------------------------------------------------------------------------

    def open_connection(self) -> sqlite3.Connection:
        """Connect, load all users, replay the journal behind the checkpoint."""
        connection = connect(self._path, self.durability, read_only=self._read_only)
        try:
            connection.execute("BEGIN")
            meta = dict(connection.execute("SELECT name, value FROM meta"))
            self._table = UserTable(self.settings)
            self._table.horizon_us = max(self._table.horizon_us, meta.get("history_horizon_us", 0))
            self._names_kept = shelves.load_names(connection, self._table)
            self._index, self._journal = DecisionIndex(), JournalReader()
            self._events = EventIds(self.settings.event_horizon_us)
            self._checkpoint = Checkpoint(self._table, self._index, self._checkpoint_rows, self._checkpoint_s)
            self._checkpoint.start_at(meta.get("checkpoint", 0))
            contained = load_users(connection, self._table, self._path)
            progress = replay(connection, self._table, self._index, self._events, self._checkpoint, contained)
            self._seq = max(progress.seq, int(contained.max(initial=0)), meta.get("seq", 0))
            self._times = CommitTimes(progress.times)
            self._catalogue_head = shelves.catalogue_head(connection)
            connection.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            connection.close()
            raise shelves.damaged(self._path, error) from error
        except BaseException:
            connection.close()
            raise
        return connection

    def between(self, connection: sqlite3.Connection, *, idle: bool) -> bool:
        """One step of the write-behind."""
        if self._read_only:
            return False
        if self._truncate_at is not None and time.monotonic() >= self._truncate_at:
            self._truncate(connection)
        if not self._checkpoint.waits(idle=idle):
            return False
        horizons = self._times.now - self.settings.key_horizon_us, self._events.kept_since
        if self.durability != "disk":
            return self._checkpoint.step(connection, self._seq, horizons, idle=idle)
        # What a power failure could take of this, the journal replays; the next commit's sync covers it.
        connection.execute("PRAGMA synchronous = NORMAL")
        more = self._checkpoint.step(connection, self._seq, horizons, idle=idle)
        connection.execute("PRAGMA synchronous = FULL")
        return more

    def _truncate(self, connection: sqlite3.Connection) -> None:
        """Erased rows must not linger in the write-ahead log. Where somebody reads the file just now, commits do not wait
        until they have done: it is tried again."""
        connection.execute("PRAGMA busy_timeout = 0")
        busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        connection.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
        self._truncate_at = time.monotonic() + _TRUNCATE_AGAIN_S if busy else None

    def closing(self, connection: sqlite3.Connection) -> None:
        """Bring the tables up to date, so that the next start is quick."""
        while self.between(connection, idle=True):
            pass

    # --- users -----------------------------------------------------------------------------------------------------

    def read(self, users: U64) -> LedgerView:
        """See Ledger."""
        with self._reading():
            return self._table.view(np.asarray(users, np.uint64))

    def read_at_once(self, users: U64) -> LedgerView | None:
        """See PromptLedger."""
        return self._at_once(lambda: self._table.view(users))

    def recents_at_once(self, users: U64) -> Recents | None:
        """See PromptLedger."""
        return self._at_once(lambda: self._table.recents(users))

    @property
    def queued(self) -> int:
        """See PromptLedger."""
        return self._group.queued

    def _at_once(self, look: Callable[[], R]) -> R | None:
        if not self._group.healthy or not self._lock.acquire(blocking=False):
            return None
        try:
            return look()
        finally:
            self._lock.release()

    def commit(self, plan: CommitPlan) -> CommitResult:
        """See Ledger."""
        self._check(plan)
        return self._write(lambda: self._commit(plan))

    async def commit_soon(self, plan: CommitPlan) -> CommitResult:
        """See PromptLedger."""
        self._check(plan)
        future = self._group.begin(lambda: self._commit(plan))
        try:
            async with asyncio.timeout(self._group.timeout_s):
                return await asyncio.wrap_future(future)  # cancelled with it, where it has not begun
        except TimeoutError:
            raise self._group.overdue(future) from None

    def _check(self, plan: CommitPlan) -> None:
        check_plan(plan)
        if len(plan.users) >> _ROW_BITS:
            raise InvalidInput(f"{len(plan.users)} rows in one plan", field="users", hint="commit in smaller plans")

    def _commit(self, plan: CommitPlan) -> CommitResult:
        status, stored = self._judge_keys(plan)
        versions = self._table.versions(plan.users)
        status[(status == CommitStatus.committed) & (versions != plan.read_versions)] = CommitStatus.conflict
        rows = np.flatnonzero(status == CommitStatus.committed)
        if len(rows):
            users = plan.users[rows]
            entries, offsets = select_entries(plan, rows)
            with self._lock:
                versions[rows] = self._table.commit(users, plan.decided_at[rows], entries, offsets)
            self._checkpoint.touch(self._table.index.find(users))
            self._append_commit(plan, rows, versions[rows], entries, offsets)
            shelves.settle_and_defer(self._group.connection, plan, rows.tolist())
        return CommitResult(status, versions, stored)

    def _append_commit(
        self, plan: CommitPlan, rows: I64, versions: I64, entries: npt.NDArray[np.void], offsets: I64
    ) -> None:
        """The block of committed rows, and its places in the index."""
        picked, users, requests, decided_at = rows.tolist(), plan.users[rows], plan.request_ids[rows], plan.decided_at[rows]
        records = Records.of(plan.records if self.settings.keep_records else [])
        records = records.take(rows) if len(records) else records
        keys = [plan.keys[row] for row in picked] if len(plan.keys) else []
        digests = [plan.digests[row] for row in picked] if len(plan.keys) else keys
        body: dict[str, npt.NDArray[Any] | Sequence[bytes]] = {
            "users": users,
            "versions": versions,
            "decided_at": decided_at,
        }
        body |= {"requests": requests, "counts": offsets[1:] - offsets[:-1], "entries": entries, "records": records}
        body |= {"idem": keys, "digests": digests}
        at = int(decided_at.max())
        seq = self._append(BlockKind.commits, at, encode_block(body), records.present)
        self._index.add(users, requests, decided_at, seq, keys, digests)
        self._times.add(at)

    def _judge_keys(self, plan: CommitPlan) -> tuple[npt.NDArray[np.int8], list[bytes]]:
        status, stored = np.zeros(len(plan.users), np.int8), [b""] * len(plan.users)
        since = (plan.decided_at - self.settings.key_horizon_us).tolist()
        connection = self._group.connection
        for row, key in enumerate(plan.keys):
            place = self._index.find_key(connection, int(plan.users[row]), key, since[row]) if key else None
            if place is not None:
                same = place.digest == plan.digests[row]
                status[row] = CommitStatus.duplicate if same else CommitStatus.key_reused
                stored[row] = self._record_at(place.seq, place.row) if same else b""
        return status, stored

    def _record_at(self, seq: int, row: int) -> bytes:
        return value_at(self._journal.block(self._group.connection, seq)["records"], row)

    def refund(self, user: int, request_id: int, slot: int) -> bool:
        """See Ledger."""

        def write() -> bool:
            with self._lock:
                done = self._table.refund(user, request_id, slot)
            if done:
                self._write_through(np.asarray([user], np.uint64))
            return done

        return self._write(write)

    def put_user(self, user: int, changes: UserChanges) -> int:
        """See Ledger."""

        def write() -> int:
            with self._lock:
                version = self._table.put(user, changes)
            self._write_through(np.asarray([user], np.uint64))
            shelves.put_consents(self._group.connection, user, changes)
            return version

        return self._write(write)

    def put_users(self, users: U64, state: UserState) -> I64:
        """See Ledger."""
        require_distinct(users)

        def write() -> I64:
            with self._lock:
                versions = self._table.put_many(users, state)
            self._write_through(users)
            shelves.drop_consents(self._group.connection, users)
            return versions

        return self._write(write)

    def get_user(self, user: int) -> UserRecord | None:
        """See Ledger."""

        def look(connection: sqlite3.Connection) -> UserRecord | None:
            record = self._table.record(user, shelves.consents(connection, user))
            return record and replace(record, user_id=shelves.user_id(connection, user))

        return self._sql(look)

    def delete_user(self, user: int) -> bool:
        """See Ledger."""

        def write() -> bool:
            with self._lock:
                known = self._table.erase(user)
            if not known:
                return False
            connection = self._group.connection
            self._write_through(np.asarray([user], np.uint64))
            erase_from_blocks(connection, self._index.forget(connection, user), user, _ROW_BITS)
            self._journal.forget()
            shelves.forget(connection, user)
            self._truncate_at = time.monotonic()
            return True

        return self._write(write)

    # --- events ----------------------------------------------------------------------------------------------------

    def record_events(self, users: U64, items: U64, at: I64) -> None:
        """See Ledger."""

        def write() -> None:
            with self._lock:
                rows = self._table.record_events(users, items, at)
            body = encode_block({"users": users, "items": items, "at": at})
            self._append(BlockKind.viewed, int(at.max(initial=0)), body, 0)
            self._checkpoint.touch(rows)

        if len(users):
            self._write(write)

    def recents(self, users: U64) -> Recents:
        """See Ledger."""
        with self._reading():
            return self._table.recents(np.asarray(users, np.uint64))

    def dedupe_events(self, ids: U64, at: int, *, mark: bool = True) -> npt.NDArray[np.bool_]:
        """See Ledger."""
        if not mark:
            with self._reading():
                return self._events.fresh(ids)

        def write() -> npt.NDArray[np.bool_]:
            fresh = self._events.fresh(ids)
            if fresh.any():
                with self._lock:
                    self._events.mark(ids[fresh], at)
                self._append(BlockKind.event_ids, at, encode_block({"ids": ids[fresh]}), 0)
            return fresh

        return self._write(write)

    # --- catalogue, records, deferrals, outbox -----------------------------------------------------------------------

    def append_catalogue_change(self, kind: str, payload: bytes) -> int:
        """See Ledger."""

        def write() -> int:
            self._catalogue_head = shelves.append_change(self._group.connection, kind, payload)
            return self._catalogue_head

        return self._write(write)

    def catalogue_head(self) -> int:
        """See Ledger."""
        if not self._group.healthy:
            raise LedgerUnavailable("the ledger file cannot be read")
        return self._catalogue_head

    def catalogue_changes(self, after_seq: int, limit: int = 10_000) -> list[CatalogueChange]:
        """See Ledger."""
        return self._sql(lambda connection: shelves.changes(connection, after_seq, limit))

    def put_campaign(self, campaign_id: str, document: bytes) -> CampaignRow:
        """See Ledger."""

        def write() -> CampaignRow:
            row = shelves.put_campaign(self._group.connection, campaign_id, document)
            self._catalogue_head = row.seq
            return row

        return self._write(write)

    def get_campaigns(self) -> list[CampaignRow]:
        """See Ledger."""
        return self._sql(shelves.campaigns)

    def find_decision(self, user: int, request_id: int, slot: int = 0) -> bytes | None:  # noqa: ARG002 (a record holds all slots)
        """See Ledger."""

        def look(connection: sqlite3.Connection) -> bytes | None:
            found = self._index.find(connection, user, request_id)
            return (self._record_at(*found) or None) if found else None

        return self._sql(look)

    def pending_records(self, limit: int, after: int = -1) -> list[StoredRecord]:
        """See Ledger."""
        return self._sql(lambda connection: shelves.pending_records(connection, limit, after, _ROW_BITS))

    def ack_records(self, ids: Sequence[int]) -> None:
        """See Ledger."""
        self._sql(lambda connection: shelves.ack_records(connection, ids, _ROW_BITS))

    def due_deferrals(self, now: int, limit: int) -> list[Deferral]:
        """See Ledger."""
        return self._sql(lambda connection: shelves.due_deferrals(connection, now, limit))

    def drop_deferral(self, user: int, request_id: int) -> bool:
        """See Ledger."""
        return self._sql(lambda connection: shelves.drop_deferral(connection, user, request_id))

    def claim_outbox(self, now: int, limit: int, lease_us: int) -> list[OutboxItem]:
        """See Ledger."""
        return self._sql(lambda connection: shelves.claim_outbox(connection, now, limit, lease_us))

    def ack_outbox(self, ids: Sequence[int]) -> int:
        """See Ledger."""
        return self._sql(lambda connection: shelves.ack_outbox(connection, ids))

    def postpone_outbox(self, ids: Sequence[int], until: Sequence[int], attempts: Sequence[int]) -> int:
        """See Ledger."""
        return self._sql(lambda connection: shelves.postpone_outbox(connection, ids, until, attempts))

    def buried_outbox(self, limit: int) -> list[OutboxItem]:
        """See Ledger."""
        return self._sql(lambda connection: shelves.buried_outbox(connection, limit))

    def queue_depths(self, now: int) -> QueueDepths:
        """See Ledger."""
        return self._sql(lambda connection: shelves.queue_depths(connection, now))

    # --- the whole ---------------------------------------------------------------------------------------------------

    def snapshot(self, as_of: int, chunk: int = 10_000) -> Iterator[LedgerView]:
        """See Ledger."""
        with self._reading():
            users = self._table.known_users()
        for start in range(0, len(users), chunk):
            with self._reading():
                views = list(self._table.snapshot(users[start : start + chunk], as_of, chunk))
            yield from views

    def set_history_horizon(self, horizon_us: int) -> None:
        """See Ledger."""

        def write() -> None:
            self._table.horizon_us = max(self._table.horizon_us, horizon_us)
            values = ("history_horizon_us", self._table.horizon_us)
            self._group.connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", values)

        self._write(write)

    def check(self) -> list[str]:
        """Everything wrong with the file, in words; empty when it is sound. Reads all of it."""
        return self._sql(lambda connection: audit_file(connection, self._table))

    def close(self) -> None:
        """See Ledger."""
        self._group.close()
        if self._owner:
            self._owner.release()
            self._owner = None

    # --- helpers -----------------------------------------------------------------------------------------------------

    def _reading(self) -> threading.RLock:
        if not self._group.healthy:
            raise LedgerUnavailable("the ledger is closed" if self._group.closed else "the ledger file cannot be read")
        return self._lock

    def _sql(self, operation: Callable[[sqlite3.Connection], R]) -> R:
        return self._write(lambda: operation(self._group.connection))

    def _write(self, operation: Callable[[], R]) -> R:
        return self._group.run(operation)

    def _append(self, kind: BlockKind, at: int, body: bytes, records: int) -> int:
        """Append a block; returns its position."""
        self._seq += 1
        row = (self._seq, int(kind), at, records, 0, checksum(body), body)
        self._group.connection.execute("INSERT INTO blocks VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        return self._seq

    def _write_through(self, users: U64) -> None:
        """Write the rows of `users` now, names they use included."""
        self._seq += 1
        connection = self._group.connection
        self._names_kept = shelves.save_names(connection, self._table, self._names_kept)
        rows = self._table.index.find(np.sort(users))
        connection.executemany(PUT_USER, user_rows(self._table, rows, self._seq))
        self._checkpoint.written(rows)
