"""Read the log: Parquet files of the current snapshot, and journal frames that no Parquet file contains yet."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from serve_app.errors import DamagedArtifact, InvalidInput
from serve_app.ids import BUCKETS
from serve_app.log.erasure import erased_in, without_erased
from serve_app.log.journal import read_journal
from serve_app.log.migrations import READABLE, brought_up, schema_as_of
from serve_app.log.schema import PER_USER, SCHEMA_VERSION, SORT_KEYS, TABLES
from serve_app.log.snapshot import LogFile, load_snapshot, log_folder
from serve_app.log.writer import DAY_US, day_text, sort_rows

__all__ = ["BucketGroup", "bucket_groups", "log_days", "read_files", "read_log"]

_ATTEMPTS = 8


@dataclass(frozen=True, slots=True)
class BucketGroup:
    """Users of buckets `low`..`high` (inclusive): absolute paths of every file that holds them, by table."""

    low: int
    high: int
    files: Mapping[str, tuple[str, ...]]


def read_log(
    data: str | os.PathLike[str],
    table: str,
    *,
    columns: Sequence[str] | None = None,
    days: Collection[str] | None = None,
    buckets: tuple[int, int] | None = None,
    journal: bool = True,
) -> pa.Table:
    """Rows of `table` under data folder `data`, in the order of `SORT_KEYS`; empty where nothing is logged.

    columns: names to return (default all). days: ISO dates (UTC, of `ts`). buckets: inclusive
    range. journal: include frames not compacted yet (events among them are not deduplicated yet).
    DamagedArtifact: a file is missing, corrupt or of another schema version.
    """
    wanted = _check(table, columns)
    needed = list(dict.fromkeys([*wanted, *SORT_KEYS[table], *(["ts"] if days is not None else [])]))
    for _ in range(_ATTEMPTS):
        snapshot = load_snapshot(data)
        files = [str(log_folder(data) / one.path) for one in snapshot.files if _wanted(one, table, days, buckets)]
        frames = read_journal(data, snapshot.consumed, tables=[table]).rows.get(table, []) if journal else []
        # A compaction in between moved frames into files that this snapshot does not list: read again.
        if journal and load_snapshot(data).sequence != snapshot.sequence:
            continue
        try:
            parts = _read_parts(files, table, needed)
            break
        except DamagedArtifact:
            if load_snapshot(data).sequence == snapshot.sequence:
                raise
    else:
        raise DamagedArtifact("the log kept changing while it was read", field="log", hint="retry, or pass journal=False")
    fresh = [pa.Table.from_batches([one]).select(needed) for one in frames]
    if days is not None:
        fresh = [_of_days(one, days) for one in fresh]
    rows = pa.concat_tables([_bare(table, needed).empty_table(), *parts, *fresh])
    if buckets is not None and table in PER_USER:
        low, high = (pa.scalar(one, pa.uint16()) for one in buckets)
        rows = rows.filter(pc.and_(pc.greater_equal(rows["user_bucket"], low), pc.less_equal(rows["user_bucket"], high)))
    return sort_rows(table, rows.unify_dictionaries()).select(wanted)


def bucket_groups(
    data: str | os.PathLike[str], tables: Sequence[str], *, days: Collection[str] | None = None
) -> list[BucketGroup]:
    """Compacted files by disjoint ranges of buckets, the unit of a replay or build task: every user's rows of all `tables`
    are in exactly one group. Ranges of different writers that overlap are joined. Journal frames are not included."""
    for table in tables:
        _check(table, None)
    files = [one for one in load_snapshot(data).files if one.table in tables and (days is None or one.day in days)]
    root = log_folder(data)
    groups: list[tuple[int, int, list[LogFile]]] = []
    for one in sorted(files, key=lambda file: (file.low, file.high)):
        if groups and one.low <= groups[-1][1]:
            low, high, members = groups.pop()
            groups.append((low, max(high, one.high), [*members, one]))
        else:
            groups.append((one.low, one.high, [one]))
    return [BucketGroup(low, high, _paths(root, tables, members)) for low, high, members in groups]


def read_files(
    paths: Sequence[str],
    table: str,
    *,
    columns: Sequence[str] | None = None,
    with_erased: bool = False,
    buckets: tuple[int, int] | None = None,
    in_order: bool = True,
) -> pa.Table:
    """Rows of the given files of one table (see `bucket_groups`), in the order of `SORT_KEYS`. with_erased: also what is to
    be forgotten (to check a file, or to write it anew). buckets: of users in this inclusive range alone, for which no more
    is read than the row groups that hold them. in_order=False: one file after the other, which spares the keys and the
    sort."""
    wanted = _check(table, columns)
    needed = list(dict.fromkeys([*wanted, *(SORT_KEYS[table] if in_order else [])]))
    parts = _read_parts(paths, table, needed, with_erased=with_erased, buckets=buckets)
    rows = pa.concat_tables([_bare(table, needed).empty_table(), *parts])
    if not in_order:
        return rows
    return sort_rows(table, rows.unify_dictionaries()).select(wanted)


def log_days(data: str | os.PathLike[str], table: str) -> list[str]:
    """ISO dates that have compacted rows of `table`, ascending."""
    _check(table, None)
    return sorted({one.day for one in load_snapshot(data).files if one.table == table})


def _check(table: str, columns: Sequence[str] | None) -> list[str]:
    schema = TABLES.get(table)
    if schema is None:
        raise InvalidInput(f"the log has no table {table!r}", field="table", hint=f"one of {', '.join(TABLES)}")
    unknown = [one for one in columns or () if one not in schema.names]
    if unknown:
        raise InvalidInput(f"table {table} has no column {', '.join(unknown)}", field="columns")
    return list(columns) if columns is not None else list(schema.names)


def _wanted(one: LogFile, table: str, days: Collection[str] | None, buckets: tuple[int, int] | None) -> bool:
    if buckets is not None and not 0 <= buckets[0] <= buckets[1] < BUCKETS:
        raise InvalidInput(f"{buckets} is not a range within 0..{BUCKETS - 1}", field="buckets")
    inside = buckets is None or (one.low <= buckets[1] and buckets[0] <= one.high)
    return one.table == table and inside and (days is None or one.day in days)


def _of_days(rows: pa.Table, days: Collection[str]) -> pa.Table:
    return rows.filter(pa.array([day_text(ts // DAY_US) in days for ts in rows["ts"].to_pylist()], pa.bool_()))


def _paths(root: Path, tables: Sequence[str], members: list[LogFile]) -> dict[str, tuple[str, ...]]:
    ordered = sorted(members, key=lambda one: one.path)
    return {table: tuple(str(root / one.path) for one in ordered if one.table == table) for table in tables}


def _bare(table: str, columns: Sequence[str]) -> pa.Schema:
    return pa.schema([TABLES[table].field(name).remove_metadata() for name in columns])


def _read_parts(
    paths: Sequence[str],
    table: str,
    columns: Sequence[str],
    *,
    with_erased: bool = False,
    buckets: tuple[int, int] | None = None,
) -> list[pa.Table]:
    def read(path: str) -> pa.Table:
        erased = None if with_erased or table not in PER_USER else erased_in(path)
        if not erased:
            return _read_part(path, table, columns, buckets)
        needed = list(dict.fromkeys([*columns, "user", "ts"]))
        return without_erased(table, _read_part(path, table, needed, buckets), erased).select(columns)

    if len(paths) < 2:
        return [read(path) for path in paths]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(read, paths))


def _with_helpers(known: list[str], wanted: Sequence[str]) -> list[str]:
    """Columns to read: also what a column that the file lacks is made from."""
    return [*known, "as_of"] if "taken_at" in wanted and "taken_at" not in known and "as_of" not in known else known


def _read_part(path: str, table: str, columns: Sequence[str], buckets: tuple[int, int] | None = None) -> pa.Table:
    try:
        with pq.ParquetFile(path) as file:
            text = (file.schema_arrow.metadata or {}).get(b"schema_version", b"none").decode()
            version = int(text) if text.isdecimal() else -1
            if version not in READABLE:
                raise DamagedArtifact(
                    f"{path} has schema version {text}, this code reads {READABLE[0]} to {SCHEMA_VERSION}",
                    field="log.schema_version",
                    hint="use the version of hindcast that wrote it, or import or generate the log again",
                )
            then = schema_as_of(table, version)
            known = [name for name in columns if name in then.names]
            rows = _rows_of(file, _with_helpers(known, columns), buckets).replace_schema_metadata(None)
            rows = rows.cast(pa.schema([then.field(name) for name in rows.column_names]))
            return brought_up(table, rows, version, list(columns))
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise DamagedArtifact(f"{path} is not readable: {error}", field="log", hint="restore or rebuild the log") from error


def _rows_of(file: pq.ParquetFile, columns: list[str], buckets: tuple[int, int] | None) -> pa.Table:
    if buckets is None:
        return file.read(columns=columns, use_threads=False)
    low, high = buckets
    place = file.schema_arrow.get_field_index("user_bucket")
    chosen = []
    for number in range(file.num_row_groups):
        found = file.metadata.row_group(number).column(place).statistics
        if found is None or not found.has_min_max or (found.min <= high and low <= found.max):
            chosen.append(number)
    rows = file.read_row_groups(chosen, columns=columns, use_threads=False)
    bucket = rows["user_bucket"].to_numpy()
    mine = (low <= bucket) & (bucket <= high)
    return rows if mine.all() else rows.filter(pa.array(mine))
