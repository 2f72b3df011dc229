"""Write tables of the log as Parquet, partitioned by day and by group of user buckets, all of it or nothing.

``DATA/log/<table>/day=YYYY-MM-DD/buckets=AAAA-BBBB/part-*.parquet``. The 4,096 fixed buckets are cut into `groups` equal
ranges, one file each per day. Tables without a user have one range.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterable
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from serve_app.errors import InvalidInput
from serve_app.ids import BUCKETS
from serve_app.log.erasure import load_erased, without_erased
from serve_app.log.schema import PER_USER, SCHEMA_VERSION, SORT_KEYS, TABLES
from serve_app.log.snapshot import (
    TRASH_GRACE_US,
    LogFile,
    commit,
    journal_folder,
    load_snapshot,
    log_folder,
    sync_folder,
    writer_lock,
)

__all__ = ["DAY_US", "DEFAULT_GROUPS", "LogWriter", "day_text", "sort_rows"]

I64 = npt.NDArray[np.int64]

DAY_US = 86_400_000_000
DEFAULT_GROUPS = 4
_ROW_GROUP = 131_072  # rows: what a reader that wants a few buckets has to decode at least
# Columns of which nearly every row has its own value.
_MANY_VALUES = frozenset(
    {"ts", "decided_at", "ingested_at", "request_id", "root_id", "event_id", "retrieval_score", "value"}
    | {"heads", "features", "used", "next_free_at"}
)


def day_text(day: int) -> str:
    """Days since 1970-01-01 -> ISO date."""
    return str(np.datetime64(int(day), "D"))


def sort_rows(table: str, rows: pa.Table, first: I64 | None = None) -> pa.Table:
    """Rows in the order of `SORT_KEYS[table]`, after `first` (i64 per row) where given. Stable."""
    # user_bucket is the top bits of user: sorting by user sorts by bucket.
    keys = [rows[name].to_numpy() for name in SORT_KEYS[table] if name != "user_bucket"]
    if first is not None:
        keys.insert(0, first)
    if _is_sorted(keys):
        return rows
    if first is not None and bool((first == first[0]).all()):
        first = None
        del keys[0]
    # Files of several days one after the other: by the first keys alone they are merged, and mostly that is all.
    order = np.argsort(keys[0], kind="stable") if first is None else np.lexsort(keys[1::-1])
    if not _is_sorted([key[order] for key in keys]):
        order = np.lexsort(keys[::-1])
    return rows.combine_chunks().take(pa.array(order))  # many chunks make a take slow


def _is_sorted(keys: list[npt.NDArray[Any]]) -> bool:
    undecided = np.ones(max(len(keys[0]) - 1, 0), np.bool_)  # neighbours equal in every key so far
    for key in keys:
        if bool(np.any(undecided & (key[1:] < key[:-1]))):
            return False
        undecided &= key[1:] == key[:-1]
    return True


class LogWriter:
    """One commit to the log. Use as a context: what was written becomes visible at a clean exit, at once, or never.

    data: the data folder. groups: files per table and day, a power of two up to 4,096. grace_us: how long files that left
    the log are kept for their readers. Raises NotReady when another writer is at work, InvalidInput for rows that do not fit
    their table.
    """

    def __init__(
        self, data: str | os.PathLike[str], *, groups: int = DEFAULT_GROUPS, grace_us: int = TRASH_GRACE_US
    ) -> None:
        if not 1 <= groups <= BUCKETS or groups & (groups - 1):
            raise InvalidInput(f"{groups} is not a power of two from 1 to {BUCKETS}", field="groups")
        self.data = Path(data)
        self._root = log_folder(data)
        self._groups = groups
        self._grace_us = grace_us
        self._stack = ExitStack()
        self._written: list[LogFile] = []
        self._dropped: dict[str, bool] = {}  # path -> whether readers may finish it
        self._retired: list[str] = []

    def __enter__(self) -> LogWriter:
        self._stack.enter_context(writer_lock(self.data))
        try:
            self.snapshot = load_snapshot(self.data)
            self._delete_orphans()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._stack:
            if kind is None:
                self._commit()
            else:
                for one in self._written:
                    (self._root / one.path).unlink(missing_ok=True)

    def write(self, table: str, rows: pa.Table | pa.RecordBatch | Iterable[pa.RecordBatch]) -> int:
        """Write rows as new files, but for those that are to be forgotten; returns their number."""
        # Rows were read before the lock was taken (records of the ledger), and `forget` looks at no erasure twice.
        whole = without_erased(table, _as_table(table, rows), load_erased(self.data))
        if len(whole) == 0:
            return 0
        day, group = self._partition(table, whole)
        key = day * BUCKETS + group
        whole = sort_rows(table, whole, key)
        key.sort()
        starts = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
        for start, end in zip(starts, [*starts[1:], len(key)], strict=True):
            low = int(key[start]) % BUCKETS * self._width(table)
            part = whole.slice(start, end - start)
            self._write_part(table, day_text(int(key[start]) // BUCKETS), low, low + self._width(table) - 1, part)
        return len(whole)

    def drop(self, files: Iterable[LogFile], *, grace: bool = True) -> None:
        """Files whose rows were written again: they leave the log with this commit, and the disk after their readers' grace,
        or with the next commit."""
        self._dropped.update((one.path, grace) for one in files)

    def live(self) -> list[LogFile]:
        """The log's files as this commit will leave them, so far."""
        return [one for one in (*self.snapshot.files, *self._written) if one.path not in self._dropped]

    def consume(self, offsets: dict[str, int], retired: Iterable[str]) -> None:
        """Journal bytes that the rows of this commit came from; `retired` journal files were read to their end."""
        self.snapshot.consumed.update(offsets)
        self._retired = sorted(retired)

    def ranges(self, table: str, rows: pa.Table) -> tuple[I64, I64, I64]:
        """i64[n] each: day number, first and last bucket of the file that every row goes to."""
        day, group = self._partition(table, rows)
        width = self._width(table)
        return day, group * width, (group + 1) * width - 1

    def _width(self, table: str) -> int:
        return BUCKETS // (self._groups if table in PER_USER else 1)

    def _partition(self, table: str, rows: pa.Table) -> tuple[I64, I64]:
        day = rows["ts"].to_numpy() // DAY_US
        if table not in PER_USER:
            return day, np.zeros(len(rows), np.int64)
        return day, rows["user_bucket"].to_numpy().astype(np.int64) * self._groups // BUCKETS

    def _write_part(self, table: str, day: str, low: int, high: int, rows: pa.Table) -> None:
        folder = f"{table}/day={day}/buckets={low:04d}-{high:04d}"
        path = f"{folder}/part-{uuid.uuid4().hex}.parquet"
        (self._root / folder).mkdir(parents=True, exist_ok=True)
        aside = self._root / folder / f".{Path(path).name}.tmp"
        with aside.open("wb") as out:
            encoded = _of_few_values(table)
            pq.write_table(rows, out, compression="zstd", row_group_size=_ROW_GROUP, use_dictionary=encoded)
            out.flush()
            os.fsync(out.fileno())
        aside.replace(self._root / path)
        self._written.append(LogFile(table, path, day, low, high, len(rows)))

    def _commit(self) -> None:
        old = self.snapshot
        journal = journal_folder(self.data)
        for name in old.retired:
            (journal / name).unlink(missing_ok=True)
            old.consumed.pop(name, None)
        for folder in {(self._root / one.path).parent for one in self._written}:
            sync_folder(folder)
        now = time.time_ns() // 1000
        due = old.due(now, self._grace_us)
        for path in due:
            del old.trash[path]
        old.files = self.live()
        old.retired = self._retired
        old.trash |= {path: now if grace else 0 for path, grace in sorted(self._dropped.items())}
        old.sequence += 1
        commit(self.data, old)
        for path in due:
            (self._root / path).unlink(missing_ok=True)

    def _delete_orphans(self) -> None:
        """Files of a writer that died before its commit: nothing lists them."""
        known = {one.path for one in self.snapshot.files} | set(self.snapshot.trash)
        for pattern in ("*/day=*/buckets=*/part-*.parquet", "*/day=*/buckets=*/.part-*.tmp"):
            for path in self._root.glob(pattern):
                if path.relative_to(self._root).as_posix() not in known:
                    path.unlink()


@cache
def _of_few_values(table: str) -> list[str]:
    """Parquet columns of `table` to encode with a dictionary: of others it is dear to make, and larger than the values."""
    return [path for one in TABLES[table] if one.name not in _MANY_VALUES for path in _leaves(one.name, one.type)]


def _leaves(path: str, dtype: pa.DataType) -> list[str]:
    if pa.types.is_list(dtype):
        return _leaves(f"{path}.list.element", dtype.value_type)
    if pa.types.is_struct(dtype):
        return [leaf for one in dtype for leaf in _leaves(f"{path}.{one.name}", one.type)]
    return [path]


def _as_table(table: str, rows: pa.Table | pa.RecordBatch | Iterable[pa.RecordBatch]) -> pa.Table:
    schema = TABLES.get(table)
    if schema is None:
        raise InvalidInput(f"the log has no table {table!r}", field="table")
    if isinstance(rows, pa.RecordBatch):
        rows = [rows]
    whole = rows if isinstance(rows, pa.Table) else pa.Table.from_batches(rows, schema=schema)
    if whole.schema.names != schema.names:
        wrong = sorted(set(whole.schema.names) ^ set(schema.names))
        raise InvalidInput(f"columns differ from the schema: {', '.join(wrong) or 'their order'}", field=table)
    bare = pa.schema([one.remove_metadata() for one in schema], metadata={"schema_version": str(SCHEMA_VERSION)})
    try:
        return whole.replace_schema_metadata(None).cast(bare)
    except (pa.ArrowException, ValueError) as error:
        raise InvalidInput(f"rows do not fit the schema: {error}", field=table) from error
