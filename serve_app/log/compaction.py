"""Journal frames into Parquet user buckets, exactly once.

One commit (`serve_app.log.snapshot`) holds the new files and the journal offsets they came from. Rows are merged with the
small files of their day and bucket range, so that many compactions leave few files and none writes much anew. Rows are
deduplicated by their identity, against each other and against what the log holds: events by event id, of which the copy
ingested first stays; decisions as `serve_app.log.once` says.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from serve_app.ids import BUCKETS
from serve_app.log.journal import JournalRead, journal_files, read_journal
from serve_app.log.once import keep_once
from serve_app.log.reader import read_files
from serve_app.log.rows import fill
from serve_app.log.snapshot import TRASH_GRACE_US, LogFile, load_snapshot, log_folder
from serve_app.log.surroundings import environment_rows, outages
from serve_app.log.writer import DAY_US, DEFAULT_GROUPS, LogWriter, day_text

__all__ = ["CompactionResult", "compact", "deduplicate", "merge_rows", "watermark_rows"]

Bools = npt.NDArray[np.bool_]

_MERGE_BELOW_ROWS = 2_000_000
_SMALL_ROWS = 65_536
_FAN_OUT = 8
_MERGE_BYTES = 128 << 20  # reading, joining and sorting take four times that
_PASS_BYTES = 64 << 20  # five times that unpacked
# The columns that say a row is the same row; a row may come twice when an append was retried.
_IDENTITY = {
    "events": ("user", "event_id"),
    "users": ("user",),
    "items": ("item",),
}
_OF_ANY_DAY = ("users", "items")


@dataclass(slots=True)
class CompactionResult:
    """rows: written from the journal, by table; duplicates: left out, by table; frames, damaged and torn: see
    `serve_app.log.journal.JournalRead`; commits: number of snapshots made."""

    rows: dict[str, int] = field(default_factory=dict)
    duplicates: dict[str, int] = field(default_factory=dict)
    frames: int = 0
    damaged: int = 0
    torn: int = 0
    commits: int = 0


def compact(
    data: str | os.PathLike[str],
    *,
    groups: int = DEFAULT_GROUPS,
    now_us: int | None = None,
    merge_below_rows: int = _MERGE_BELOW_ROWS,
    pass_bytes: int = _PASS_BYTES,
    grace_us: int = TRASH_GRACE_US,
    progress: Callable[[int, int], None] | None = None,
) -> CompactionResult:
    """Move every good journal frame under `data` into Parquet. Files of living writers are read up to their last good
    frame and stay. A crash at any point loses and doubles nothing; a second call finds nothing to do.

    groups: files per table and day. pass_bytes: journal bytes per commit, which bounds memory. grace_us: see `LogWriter`.
    now_us: clock of the watermark. progress(done, total) in journal bytes. Raises NotReady when another writer is at work.
    """
    result = CompactionResult()
    consumed = load_snapshot(data).consumed
    new = {name: max(size - consumed.get(name, 0), 0) for name, size in journal_files(data).items()}
    total, done = sum(new.values()), 0
    clock = time.time_ns() // 1000 if now_us is None else now_us
    for files in _passes(new, pass_bytes):
        with LogWriter(data, groups=groups, grace_us=grace_us) as writer:
            # Not named here: one pass would be held while the next is read.
            _one_pass(writer, read_journal(data, writer.snapshot.consumed, files=files), result, clock, merge_below_rows)
        result.commits += 1
        done += sum(new[name] for name in files)
        if progress is not None:
            progress(done, total)
    return result


def _passes(new: Mapping[str, int], limit: int) -> Iterator[list[str]]:
    """Files of at most so many new bytes, or one file. Those without any make no pass more, but are in one: it finds out
    which of them are finished, and `serve_app.log.lag` counts what comes next from its commit."""
    batch: list[str] = []
    for name, size in new.items():
        if batch and size and sum(new[one] for one in batch) + size > limit:
            yield batch
            batch = []
        batch.append(name)
    if batch:
        yield batch


def _one_pass(writer: LogWriter, read: JournalRead, result: CompactionResult, clock: int, merge_below: int) -> None:
    written: dict[str, pa.Table] = {}
    duplicates: dict[str, int] = {}
    tables = {table: pa.Table.from_batches(batches).unify_dictionaries() for table, batches in read.rows.items()}
    frames = {name: np.repeat(read.numbers[name], [len(one) for one in batches]) for name, batches in read.rows.items()}
    once = keep_once(writer, tables, frames)
    for table, rows in tables.items():
        kept = once[table] if table in once else deduplicate(writer, table, rows)
        duplicates[table] = len(rows) - len(kept)
        written[table] = kept
        merge_rows(writer, table, kept, merge_below)
        result.rows[table] = result.rows.get(table, 0) + len(kept)
        result.duplicates[table] = result.duplicates.get(table, 0) + duplicates[table]
    happened = outages(written["requests"]) if len(written.get("requests", ())) else []
    if happened:
        merge_rows(writer, "environment", pa.Table.from_batches([environment_rows(happened)]), merge_below)
    if written:
        marks = watermark_rows(written, clock, "journal", duplicates=duplicates, damaged=read.damaged + read.torn)
        merge_rows(writer, "watermark", pa.Table.from_batches([marks]), merge_below)
    writer.consume(read.offsets, set(read.finished) - set(writer.snapshot.retired))
    result.frames += read.frames
    result.damaged += read.damaged
    result.torn += read.torn


def watermark_rows(
    tables: Mapping[str, pa.Table],
    now_us: int,
    source: str,
    *,
    duplicates: Mapping[str, int] | None = None,
    damaged: int = 0,
    synthetic_clock: bool = False,
) -> pa.RecordBatch:
    """One watermark row per table and day of the rows just written. `complete_to` is the clock of writing: what was
    ingested before it is in the log. duplicates and damaged frames stand on the first day of their table."""
    names: list[str] = []
    days: list[npt.NDArray[np.int64]] = []
    counts: list[npt.NDArray[np.int64]] = []
    repeated: list[int] = []
    for table, rows in tables.items():
        unique, number = np.unique(rows["ts"].to_numpy() // DAY_US, return_counts=True)
        names += [table] * len(unique)
        days.append(unique)
        counts.append(number)
        repeated += [(duplicates or {}).get(table, 0), *[0] * (len(unique) - 1)][: len(unique)]
    total = len(names)
    clock = np.full(total, now_us, np.int64)
    columns = {
        "ts": clock,
        "complete_to": clock,
        "day": np.concatenate(days).astype(np.int32) if days else np.zeros(0, np.int32),
        "table": pa.array(names, pa.string()),
        "rows": np.concatenate(counts).astype(np.int64) if counts else np.zeros(0, np.int64),
        "duplicates": np.array(repeated, np.int64),
        "damaged_frames": np.array([damaged, *[0] * (total - 1)][:total], np.int64),
        "synthetic_clock": np.full(total, synthetic_clock),
        "source": pa.array([source] * total, pa.string()),
    }
    return fill("watermark", total, columns)


def deduplicate(writer: LogWriter, table: str, rows: pa.Table) -> pa.Table:
    """Rows whose identity is neither repeated among them nor in the log's files of the same days (users and items: of any
    day). Of repeated rows the one ingested first stays."""
    identity = _IDENTITY.get(table)
    if identity is None or len(rows) == 0:
        return rows
    arrival = rows["ingested_at" if table == "events" else "ts"].to_numpy()
    if bool(np.any(arrival[1:] < arrival[:-1])):
        rows = rows.take(pa.array(np.argsort(arrival, kind="stable")))
    keep = _first_of_each(rows, identity)
    known = _known(writer, table, rows, identity)
    if len(known):
        both = pa.concat_tables([known, rows.select(identity)])
        keep &= _first_of_each(both, identity)[len(known) :]
    return rows if keep.all() else rows.filter(pa.array(keep))


def _first_of_each(rows: pa.Table, identity: tuple[str, ...]) -> Bools:
    """bool[n]: no earlier row has the same identity."""
    keys = [rows[name].to_numpy() for name in identity]
    order = np.lexsort(keys[::-1])  # stable: equal identities stay in row order
    same = np.ones(max(len(order) - 1, 0), np.bool_)
    for key in keys:
        same &= key[order][1:] == key[order][:-1]
    keep = np.ones(len(order), np.bool_)
    keep[order[1:][same]] = False
    return keep


def _known(writer: LogWriter, table: str, rows: pa.Table, identity: tuple[str, ...]) -> pa.Table:
    """Identities in the log that may be those of `rows`: their last column is."""
    days = {day_text(one) for one in np.unique(rows["ts"].to_numpy() // DAY_US)} if table not in _OF_ANY_DAY else None
    files = [one for one in writer.live() if one.table == table and (days is None or one.day in days)]
    wanted = pc.unique(rows[identity[-1]])
    parts = [rows.select(identity).slice(0, 0)]
    for one in files:
        logged = read_files([str(log_folder(writer.data) / one.path)], table, columns=identity, in_order=False)
        found = pc.is_in(logged[identity[-1]], value_set=wanted)
        if pc.any(found).as_py():
            parts.append(logged.filter(found))
    return pa.concat_tables([one.cast(parts[0].schema) for one in parts])


def merge_rows(
    writer: LogWriter, table: str, rows: pa.Table, merge_below: int = _MERGE_BELOW_ROWS, merge_bytes: int = _MERGE_BYTES
) -> None:
    """Write rows, together with such files of the same days and ranges as `_to_merge` says, which they replace: one day and
    range after the other, so that memory holds the files of one of them. merge_below: rows, merge_bytes: bytes in memory
    that a file may have and still be written anew."""
    if len(rows) == 0:
        return
    below = min(merge_below, max(merge_bytes * len(rows) // max(rows.nbytes, 1), 1))
    there: dict[tuple[str, int, int], list[LogFile]] = {}
    for one in writer.live():
        if one.table == table and one.rows < below:
            there.setdefault((one.day, one.low, one.high), []).append(one)
    for place, part in _partitions(writer, table, rows):
        merged = part
        if old := _to_merge(there.get(place, []), len(part), below):
            root = log_folder(writer.data)
            logged = read_files([str(root / one.path) for one in old], table, in_order=False)
            merged = pa.concat_tables([_plain(logged), _plain(part)]).unify_dictionaries()
            writer.drop(old)
        writer.write(table, merged)


def _to_merge(files: list[LogFile], rows: int, merge_below: int) -> list[LogFile]:
    """Of one partition's files, those to write anew together with `rows` new ones: smaller ones always, ones of the same
    size once `_FAN_OUT` have gathered. So a row is written once for each size it passes through, not in every pass
    (size-tiered, as in a log-structured merge tree: Luo and Carey, LSM-based storage techniques, VLDB Journal 2020)."""
    left = sorted(files, key=lambda one: (one.rows, one.path))
    chosen: list[LogFile] = []
    while rows < merge_below:
        size = _size_class(rows)
        smaller = [one for one in left if _size_class(one.rows) < size]
        alike = [one for one in left if _size_class(one.rows) == size]
        more = smaller + alike if size == 0 or len(alike) + 1 >= _FAN_OUT else smaller
        if not more:
            break
        for one in more:
            if rows >= merge_below:
                break
            chosen.append(one)
            left.remove(one)
            rows += one.rows
    return chosen


def _size_class(rows: int) -> int:
    """0 below `_SMALL_ROWS`, then one more for each `_FAN_OUT` times as many."""
    size, limit = 0, _SMALL_ROWS
    while rows >= limit:
        size, limit = size + 1, limit * _FAN_OUT
    return size


def _plain(rows: pa.Table) -> pa.Table:
    return rows.replace_schema_metadata(None).cast(pa.schema([one.remove_metadata() for one in rows.schema]))


def _partitions(writer: LogWriter, table: str, rows: pa.Table) -> Iterator[tuple[tuple[str, int, int], pa.Table]]:
    """Rows of each (day, first, last bucket)."""
    day, low, high = writer.ranges(table, rows)
    keys, first, number = np.unique(day * BUCKETS + low, return_index=True, return_inverse=True)
    for at, one in enumerate(first):
        place = day_text(int(day[one])), int(low[one]), int(high[one])
        yield place, rows if len(keys) == 1 else rows.filter(pa.array(number == at))
