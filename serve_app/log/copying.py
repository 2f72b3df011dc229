"""Decision records from the ledger into the log, before the ledger lets them go.

A pass asks the ledger for records it still keeps for the log, writes those that neither the Parquet log nor the pass before
holds, commits, and only then acknowledges. Killed anywhere, the next pass finds what was written and acknowledges it; so
nothing is lost and nothing stands twice.
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
from serve_app.log.compaction import merge_rows, watermark_rows
from serve_app.log.of_records import rows_of_records
from serve_app.log.once import COMMITTED, find_requests, keep_once
from serve_app.log.snapshot import load_snapshot
from serve_app.log.writer import DEFAULT_GROUPS, LogWriter

__all__ = ["CopyResult", "RecordSource", "copy_records"]

_BATCH = 20_000
_READS = 8


class RecordSource(Protocol):
    """What copying needs of a ledger (see `serve_app.ledger.protocol.Ledger`)."""

    def pending_records(self, limit: int) -> list[StoredRecord]:
        """See Ledger."""

    def ack_records(self, ids: Sequence[int]) -> None:
        """See Ledger."""


@dataclass(slots=True)
class CopyResult:
    """copied: decisions written from their record; known: already in the log; unreadable: damaged, left in the ledger."""

    copied: int = 0
    known: int = 0
    unreadable: int = 0


def copy_records(
    data: str | os.PathLike[str],
    ledger: RecordSource,
    *,
    now_us: int,
    groups: int = DEFAULT_GROUPS,
    batch: int = _BATCH,
    progress: Callable[[int], None] = lambda _: None,
) -> CopyResult:
    """Copy until the ledger has nothing more to copy. Call after the journal was compacted: what a frame holds with its
    features needs no copy. progress(decisions acknowledged). NotReady when another process writes the log."""
    result, damaged = CopyResult(), set[int]()
    while True:
        records = [one for one in ledger.pending_records(batch + len(damaged)) if one.id not in damaged]
        if not records:
            return result
        missing = _missing(data, records)
        bad = set(_write(data, missing, now_us, groups)) if missing else set()
        ledger.ack_records([one.id for one in records if one.id not in bad])
        damaged |= bad
        result.copied += len(missing) - len(bad)
        result.known += len(records) - len(missing)
        result.unreadable = len(damaged)
        progress(result.copied + result.known)


def _missing(data: str | os.PathLike[str], records: Sequence[StoredRecord]) -> list[StoredRecord]:
    """Those that the log does not hold as committed, on any day."""
    users = np.array([one.user for one in records], np.uint64)
    ids = np.array([one.request_id for one in records], np.uint64)
    for _ in range(_READS):
        snapshot = load_snapshot(data)
        try:
            state = find_requests(data, snapshot.files, users, ids).state
        except DamagedArtifact:
            if load_snapshot(data).sequence == snapshot.sequence:
                raise
            continue  # commits happened meanwhile: files of the snapshot are gone
        return [one for one, found in zip(records, state.tolist(), strict=True) if found != COMMITTED]
    raise NotReady("the log kept changing while it was read", field="log", hint="try again")


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
