"""Decision records from the ledger into the log, before the ledger lets them go.

A pass asks the ledger for records it still keeps for the log, writes those that neither the Parquet log nor the journal
holds, commits, and only then acknowledges what Parquet holds. Killed anywhere, the next pass finds what was written and
acknowledges it; so nothing is lost and nothing stands twice.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa

from serve_app.errors import DamagedArtifact, NotReady
from serve_app.ledger.protocol import StoredRecord
from serve_app.ledger.record import unpack_record
from serve_app.log.compaction import merge_rows, watermark_rows
from serve_app.log.journal import living_writers, read_journal
from serve_app.log.of_records import rows_of_records
from serve_app.log.once import COMMITTED, find_requests, keep_once
from serve_app.log.snapshot import Snapshot, load_snapshot
from serve_app.log.writer import DEFAULT_GROUPS, LogWriter

__all__ = ["CopyResult", "RecordSource", "copy_records"]

_BATCH = 20_000
_PAGE = 500  # what the ledger is asked for at once: with SQLite commits wait meanwhile
_READS = 8
_RECENT_DAYS = 4
_UNDER_WAY_US = 120_000_000  # a decision's frame follows its commit within this time, while its writer lives


class RecordSource(Protocol):
    """What copying needs of a ledger (see `serve_app.ledger.protocol.Ledger`)."""

    def pending_records(self, limit: int, after: int = -1) -> list[StoredRecord]:
        """See Ledger."""

    def ack_records(self, ids: Sequence[int]) -> None:
        """See Ledger."""


@dataclass(slots=True)
class CopyResult:
    """copied: decisions written from their record; known: already in the log; unreadable: damaged, left in the ledger;
    waiting: in the journal, or on the way there: left for the next pass."""

    copied: int = 0
    known: int = 0
    unreadable: int = 0
    waiting: int = 0


def copy_records(
    data: str | os.PathLike[str],
    ledger: RecordSource,
    *,
    now_us: int,
    groups: int = DEFAULT_GROUPS,
    batch: int = _BATCH,
    progress: Callable[[int], None] = lambda _: None,
) -> CopyResult:
    """Copy what the ledger has to copy. Call after the journal was compacted: what a frame holds with its
    features needs no copy. progress(decisions acknowledged). NotReady when another process writes the log."""
    result, after = CopyResult(), -1
    while records := _next_records(ledger, after, batch):
        known, missing, waiting = _sorted_out(data, records, now_us)
        bad = _write(data, missing, now_us, groups) if missing else []
        written = {one.id for one in missing}.difference(bad)
        done = [one.id for one in records if one.id in known or one.id in written]
        for start in range(0, len(done), _PAGE):
            ledger.ack_records(done[start : start + _PAGE])
        result.copied += len(written)
        result.known += len(known)
        result.unreadable += len(bad)
        result.waiting += len(waiting)
        progress(result.copied + result.known)
        after = records[-1].id
        if len(records) < batch:  # the rest was decided just now
            break
    return result


def _next_records(ledger: RecordSource, after: int, batch: int) -> list[StoredRecord]:
    """The next `batch` of them; fewer only where there are no more."""
    out: list[StoredRecord] = []
    while len(out) < batch:
        page = ledger.pending_records(min(_PAGE, batch - len(out)), out[-1].id if out else after)
        if not page:
            break
        out += page
    return out


def _sorted_out(
    data: str | os.PathLike[str], records: Sequence[StoredRecord], now_us: int
) -> tuple[set[int], list[StoredRecord], list[int]]:
    """(ids that the newest days of the Parquet log hold as committed; records to write, unless an older day holds them; ids
    to leave for a later pass).

    Left are those that stand in the journal, which is not always as durable as the ledger, and those whose frame may be on
    its way there."""
    users = np.array([one.user for one in records], np.uint64)
    ids = np.array([one.request_id for one in records], np.uint64)
    for _ in range(_READS):
        snapshot = load_snapshot(data)
        try:
            recent = sorted({one.day for one in snapshot.files if one.table == "decisions"})[-_RECENT_DAYS:]
            state = find_requests(data, snapshot.files, users, ids, days=recent).state
        except DamagedArtifact:
            if load_snapshot(data).sequence == snapshot.sequence:
                raise
            continue  # commits happened meanwhile: files of the snapshot are gone
        known = {one.id for one, found in zip(records, state.tolist(), strict=True) if found == COMMITTED}
        rest = [one for one in records if one.id not in known]
        if not rest:
            return known, [], []
        journalled = _journalled(data, snapshot)
        if load_snapshot(data).sequence != snapshot.sequence:
            continue
        newest = now_us - _UNDER_WAY_US if living_writers(data) else None
        waits = {
            one.id
            for one in rest
            if (one.user, one.request_id) in journalled or (newest is not None and _decided_at(one) > newest)
        }
        return known, [one for one in rest if one.id not in waits], sorted(waits)
    raise NotReady("the log kept changing while it was read", field="log", hint="try again")


def _journalled(data: str | os.PathLike[str], snapshot: Snapshot) -> set[tuple[int, int]]:
    """(user, request id) of committed decisions in frames that no Parquet file contains."""
    out: set[tuple[int, int]] = set()
    for batch in read_journal(data, snapshot.consumed, tables=["decisions"]).rows.get("decisions", []):
        committed = batch["commit_version"].to_numpy() >= 0
        columns = (batch[name].to_numpy()[committed].tolist() for name in ("user", "request_id"))
        out.update(zip(*columns, strict=True))
    return out


def _decided_at(one: StoredRecord) -> int:
    try:
        return int(unpack_record(one.record)["request"].get("decided_at", 0))
    except DamagedArtifact:
        return 0  # whoever writes its rows will say so


def _write(data: str | os.PathLike[str], records: Sequence[StoredRecord], now_us: int, groups: int) -> list[int]:
    """Write the records' rows in one commit; returns ids of those that cannot be read."""
    made = rows_of_records(records)
    if not made.tables:
        return made.unreadable
    with LogWriter(data, groups=groups) as writer:
        frames = {name: np.zeros(len(rows), np.int64) for name, rows in made.tables.items()}
        kept = keep_once(writer, made.tables, frames, any_day=True)
        for table, rows in kept.items():
            merge_rows(writer, table, rows)
        marks = watermark_rows({name: rows for name, rows in kept.items() if len(rows)}, now_us, "ledger")
        if len(marks):
            merge_rows(writer, "watermark", pa.Table.from_batches([marks]))
    return made.unreadable
