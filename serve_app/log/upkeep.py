"""What keeps the log and the ledger one truth, run every few minutes: compact, copy, forget, and once a day a snapshot.

Every step is atomic and repeats without effect; the next run ends what a killed one began.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from serve_app.ledger.columns import LedgerView
from serve_app.log.compaction import CompactionResult, compact
from serve_app.log.copying import CopyResult, RecordSource, copy_records
from serve_app.log.erasure import load_erased
from serve_app.log.forgetting import forget, overwrite_consumed
from serve_app.log.ledger_state import has_snapshot, write_snapshot
from serve_app.log.snapshot import load_snapshot
from serve_app.log.writer import DAY_US, DEFAULT_GROUPS, LogWriter

__all__ = ["UpkeepLedger", "UpkeepResult", "upkeep", "upkeep_answer"]


class UpkeepLedger(RecordSource, Protocol):
    """What upkeep needs of a ledger."""

    def snapshot(self, as_of: int, chunk: int = 10_000) -> Iterator[LedgerView]:
        """See `serve_app.ledger.protocol.Ledger`."""


@dataclass(slots=True)
class UpkeepResult:
    """What one run did. forgotten: rows of erased users taken off the disk; overwritten: journal bytes; snapshot_users: -1
    where no snapshot was due."""

    compaction: CompactionResult = field(default_factory=CompactionResult)
    copies: CopyResult = field(default_factory=CopyResult)
    forgotten: int = 0
    overwritten: int = 0
    snapshot_users: int = -1


def upkeep(
    data: str | os.PathLike[str],
    ledger: UpkeepLedger | None,
    *,
    now_us: int,
    groups: int = DEFAULT_GROUPS,
    snapshots: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> UpkeepResult:
    """One run. ledger None: what concerns the journal only. snapshots: write the day's ledger snapshot where there is none
    yet. progress(done, total) in journal bytes. NotReady when another process writes the log."""
    result = UpkeepResult()
    before = load_snapshot(data)
    # Users erased from here on may still be in the journal's new bytes: they wait for the next run, which reads these.
    erasures = load_erased(data).lines
    result.compaction = compact(data, groups=groups, now_us=now_us, progress=progress)
    if ledger is not None:
        result.copies = copy_records(data, ledger, now_us=now_us, groups=groups)
        as_of = now_us // DAY_US * DAY_US
        if snapshots and not has_snapshot(data, as_of):
            result.snapshot_users = write_snapshot(data, ledger.snapshot(as_of), as_of, now_us, groups=groups)
    result.overwritten = overwrite_consumed(data, before, groups=groups)
    result.forgotten = forget(data, groups=groups, upto=erasures)
    after = load_snapshot(data)
    if after.sequence == before.sequence and (after.due(time.time_ns() // 1000) or after.retired):
        with LogWriter(data, groups=groups):
            pass  # a commit deletes what the one before left for its readers
    return result


def upkeep_answer(result: UpkeepResult) -> dict[str, Any]:
    """What one run did, as JSON."""
    done, copies = result.compaction, result.copies
    return {
        "rows": dict(sorted(done.rows.items())),
        "duplicates": dict(sorted(done.duplicates.items())),
        "frames": done.frames,
        "damaged": done.damaged,
        "torn": done.torn,
        "records_copied": copies.copied,
        "records_known": copies.known,
        "records_waiting": copies.waiting,
        "records_unreadable": copies.unreadable,
        "rows_forgotten": result.forgotten,
        "journal_bytes_overwritten": result.overwritten,
        "snapshot_users": result.snapshot_users if result.snapshot_users >= 0 else None,
    }
