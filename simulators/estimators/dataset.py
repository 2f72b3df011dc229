"""Estimates from logs of any system: Parquet files or a Ray dataset, one pipeline from rows to sums.

::

    columns = RowColumns(propensity="p", target={"new": "pi_new"}, reward={"click": "click"}, user="user")
    suite = estimate_dataset("rows/", columns, estimators=("ips", "snips"))
    for estimate in suite.estimates(): ...

Rows of a user must meet in one place, since users are what intervals rest on. Files that hold every user's rows next to
each other (`grouped`), as logs in user buckets do, are read where they lie. Other files of up to half a billion values are
read whole by every task, each keeping its share of the users: a few reads cost less than a shuffle. Larger ones, and
datasets, are repartitioned by user. Where users might still be torn, tasks say whose rows they had, and a user seen in two
is an error.

A task turns its rows into sums of a few kilobytes; a user's rows are added in an order of their own (`row_columns`) and
users exactly, so neither the files nor the order of rows, the number of tasks or their order changes a byte.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from serve_app.errors import InvalidInput
from serve_app.noise import hash_key
from simulators.estimators.row_columns import (
    ESTIMATORS,
    RowColumns,
    check_columns,
    chosen,
    plain,
    rows_of_table,
    user_keys,
)
from simulators.estimators.suite import Suite

if TYPE_CHECKING:
    import ray.data

__all__ = ["ESTIMATORS", "RowColumns", "estimate_dataset", "estimate_table", "parquet_files"]

U64 = npt.NDArray[np.uint64]

_VALUES_A_TASK = 8_000_000  # worth a task of its own that reads all files
_VALUES_AT_ONCE = 32_000_000  # values that a task keeps at most: 256 MB, and about four times that while it works
_READS = 16  # of all files, at most
_ROWS_A_PARTITION = 500_000
_PARTITIONS = 64  # of a dataset, whose rows are not known
_BUCKETS_A_PARTITION = 64  # enough that partitions are of like size, few enough to list
_BUCKET = "user bucket"
_BATCH = 131_072  # rows of a grouped file read at a time
_READ_AT_ONCE = 1_048_576  # rows of others


def estimate_dataset(
    source: ray.data.Dataset | str | Path,
    columns: RowColumns,
    *,
    estimators: Sequence[str] = ("ips", "snips"),
    grouped: bool = False,
    partitions: int | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Suite:
    """Sums of all rows, in one execution of one Ray Data pipeline.

    source: a dataset, a Parquet file, or a folder of them. grouped: every user's rows stand next to each other in one file
    (files only; takes 16 bytes a user here, to see that it is so). partitions: parts of the users, one task each; above 16
    of them rows are shuffled. Default: of files one part for 8 million values, up to 16; beyond 32 million values a part,
    one for 500,000 rows; of a dataset 64. progress(rows done) is called as tasks end. Rows that cannot be used are left out
    and counted by fault; of a user's rows with one identity one stays. InvalidInput: a column is absent or of another
    kind, a user's rows are not together in one grouped file.
    """
    empty = columns.suite(estimators)
    total, rows, seen = empty, 0, [np.empty(0, np.uint64)]
    for one in _pipeline(source, columns, tuple(estimators), grouped, partitions).iter_rows():
        if one["error"]:
            message, field, hint = json.loads(one["error"])
            raise InvalidInput(message, field=field, hint=hint)
        total = total + _read(empty, one["sums"])
        rows += int(one["rows"])
        seen.append(np.frombuffer(one["whose"], np.uint64))
        progress(rows)
    if _meet(seen):
        raise InvalidInput(
            "rows of one user came in several parts", field="grouped" if grouped else "partitions",
            hint="leave it out: rows are then repartitioned by user" if grouped else
            "Ray Data has cut a partition into blocks: ask for more, smaller partitions",
        )  # fmt: skip
    return total


def estimate_table(
    table: pa.Table, columns: RowColumns, *, estimators: Sequence[str] = ("ips", "snips"), together: bool = False
) -> Suite:
    """The same of rows in memory, without Ray: in any order, or with every user's rows standing `together`."""
    suite = columns.suite(estimators)
    suite.update(rows_of_table(chosen(table, columns), columns, together=together))
    return suite


def parquet_files(path: str | Path) -> list[str]:
    """A file itself, or a folder's Parquet files in order of their paths. InvalidInput where there is none."""
    at = Path(path)
    found = [at] if at.is_file() else sorted(at.rglob("*.parquet"))
    if not found:
        raise InvalidInput(f"no Parquet file in {at}", field="rows", hint="name a file, or a folder of them")
    return [str(one) for one in found]


def _pipeline(
    source: ray.data.Dataset | str | Path, columns: RowColumns, estimators: tuple[str, ...], grouped: bool,
    partitions: int | None,
) -> ray.data.Dataset:  # fmt: skip
    """The dataset of results: a row each task."""
    import ray.data

    if not isinstance(source, str | Path):
        if grouped:
            raise InvalidInput("blocks of a dataset do not say where users end", field="grouped", hint="pass the files")
        schema = source.schema(fetch_if_missing=False)
        if schema is not None:
            check_columns(pa.schema(zip(schema.names, schema.types, strict=True)), columns, "the dataset")
        return _repartitioned(source, columns, estimators, partitions or _PARTITIONS)
    files = parquet_files(source)
    for one in files:
        check_columns(pq.read_schema(one), columns, one)
    if grouped or columns.user is None:
        whole = partial(_of_grouped, columns=columns, estimators=estimators)
        return ray.data.from_items([{"file": one} for one in files], override_num_blocks=len(files)).map(whole)
    rows = sum(pq.read_metadata(one).num_rows for one in files)
    values = rows * len(columns.names())
    if partitions is None and values > _READS * _VALUES_AT_ONCE:
        partitions = max(_READS + 1, -(-rows // _ROWS_A_PARTITION))
    partitions = partitions or min(_READS, max(1, -(-values // _VALUES_A_TASK)))
    if partitions > _READS:
        return _repartitioned(ray.data.read_parquet(files), columns, estimators, partitions)
    share = partial(_of_share, files=files, columns=columns, shares=partitions, estimators=estimators)
    return ray.data.from_items([{"share": one} for one in range(partitions)], override_num_blocks=partitions).map(share)


def _repartitioned(
    data: ray.data.Dataset, columns: RowColumns, estimators: tuple[str, ...], partitions: int
) -> ray.data.Dataset:
    """Rows meet by a bucket of their user, which we say ourselves: Ray's own hash of a user may differ between blocks that
    hold users as numbers of different widths, or coded by a dictionary."""
    data = data.select_columns(columns.names())
    if columns.user is not None:
        keyed = partial(_keyed, columns=columns, buckets=partitions * _BUCKETS_A_PARTITION)
        data = data.map_batches(keyed, batch_size=None, batch_format="pyarrow")
        data = data.repartition(partitions, keys=[_BUCKET])
    part = partial(_of_block, columns=columns, estimators=estimators)
    return data.map_batches(part, batch_size=None, batch_format="pyarrow")


def _keyed(table: pa.Table, columns: RowColumns, buckets: int) -> pa.Table:
    """Rows with their user as u64 (null stays), and the user's bucket."""
    name = columns.user or ""
    table = chosen(table, columns)
    users, known = _users(table[name], name)
    table = table.set_column(table.schema.get_field_index(name), name, pa.array(users, mask=~known))
    return table.append_column(_BUCKET, pa.array(_bucket(users, buckets)))


def _users(column: pa.ChunkedArray, name: str) -> tuple[U64, npt.NDArray[np.bool_]]:
    """u64 of each, 0 where there is none; and where there is one."""
    known = pc.is_valid(column).to_numpy()
    users = np.zeros(len(column), np.uint64)
    users[known] = user_keys(column.filter(pa.array(known)), name)
    return users, known


def _bucket(users: U64, buckets: int) -> npt.NDArray[np.int64]:
    return (hash_key(0, users) % np.uint64(buckets)).astype(np.int64)


def _of_block(table: pa.Table, columns: RowColumns, estimators: tuple[str, ...]) -> dict[str, list[Any]]:
    def of() -> tuple[Suite, int, U64]:
        buckets = [] if columns.user is None else table[_BUCKET].unique().to_pylist()
        return estimate_table(table, columns, estimators=estimators), len(table), np.array(buckets, np.uint64)

    return {name: [value] for name, value in _result(of).items()}


def _of_share(
    item: dict[str, Any], files: Sequence[str], columns: RowColumns, shares: int, estimators: tuple[str, ...]
) -> dict[str, Any]:
    """Of all files' rows, those of the users that fall to a share."""

    def of() -> tuple[Suite, int, U64]:
        parts = []
        for batch in (batch for one in files for batch in _batches(one, columns, _READ_AT_ONCE)):
            users, _ = _users(batch[columns.user], columns.user or "")
            parts.append(batch if shares == 1 else batch.filter(pa.array(_bucket(users, shares) == item["share"])))
        table = pa.concat_tables(parts, promote_options="permissive")
        return estimate_table(table, columns, estimators=estimators), len(table), np.empty(0, np.uint64)

    return _result(of)


def _batches(file: str, columns: RowColumns, rows: int) -> Iterator[pa.Table]:
    """A file in pieces; one without rows where there are none."""
    opened, empty = pq.ParquetFile(file), True
    for batch in opened.iter_batches(rows, columns=columns.names(), use_threads=False):
        empty = False
        yield pa.Table.from_batches([batch])
    if empty:
        yield pa.schema([opened.schema_arrow.field(name) for name in columns.names()]).empty_table()


def _of_grouped(item: dict[str, Any], columns: RowColumns, estimators: tuple[str, ...]) -> dict[str, Any]:
    def of() -> tuple[Suite, int, U64]:
        suite, rows, seen = columns.suite(estimators), 0, [np.empty(0, np.uint64)]
        for table in _whole_users(item["file"], columns):
            found = rows_of_table(table, columns, together=True)
            suite.update(found)
            rows += len(table)
            if columns.user is not None:
                seen.append(np.unique(found.user))
        if _meet(seen):
            raise InvalidInput(f"{item['file']}: rows of one user are not next to each other", field="grouped",
                               hint="leave it out: rows are then repartitioned by user")  # fmt: skip
        return suite, rows, np.concatenate(seen)

    return _result(of)


def _whole_users(file: str, columns: RowColumns) -> Iterator[pa.Table]:
    """A file's rows in pieces that tear no user apart."""
    rest: pa.Table | None = None
    for table in _batches(file, columns, _BATCH):
        table = table if rest is None else pa.concat_tables([rest, table])
        end = len(table) if columns.user is None else _last_change(plain(table[columns.user]))
        yield table.slice(0, end)
        rest = table.slice(end)
    if rest is not None:
        yield rest


def _last_change(users: pa.Array) -> int:
    """Where the last user begins."""
    changes = np.flatnonzero(pc.fill_null(pc.not_equal(users[1:], users[:-1]), True).to_numpy(zero_copy_only=False))
    return int(changes[-1]) + 1 if len(changes) else 0


def _meet(seen: Sequence[U64]) -> bool:
    """Is a number in two of these arrays, each without repetition?"""
    every = np.concatenate(seen)
    every.sort()
    return bool((every[1:] == every[:-1]).any())


def _result(of: Callable[[], tuple[Suite, int, U64]]) -> dict[str, Any]:
    """What a task gives: sums, the number of rows, and whose they are: users, or buckets of users, that no other task may
    have. What is wrong with rows is a result too: raised in a task, it would come wrapped in Ray's words and stacks."""
    try:
        suite, rows, whose = of()
    except InvalidInput as error:
        said = json.dumps([error.message, error.field, error.hint])
        return {"sums": b"", "rows": 0, "whose": b"", "error": said}
    out = io.BytesIO()
    np.savez(out, allow_pickle=False, **suite.to_arrays())
    return {"sums": out.getvalue(), "rows": rows, "whose": whose.tobytes(), "error": ""}


def _read(empty: Suite, data: bytes) -> Suite:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return empty.load({name: arrays[name] for name in arrays.files})
