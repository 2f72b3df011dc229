"""Estimates from logs of any system: Parquet files or a Ray dataset, one pipeline from rows to sums.

::

    columns = RowColumns(propensity="p", target={"new": "pi_new"}, reward={"click": "click"}, user="user")
    suite = estimate_dataset("rows/", columns, estimators=("ips", "snips"))
    for estimate in suite.estimates(): ...

Rows of a user must meet in one place, since users are what intervals rest on: rows are repartitioned by user, unless the
files hold every user's rows next to each other (`grouped`), as logs in user buckets do; then nothing moves. A task turns its
rows into sums of a few kilobytes, and sums add up exactly, so neither the number of tasks nor their order changes a byte.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from serve_app.errors import InvalidInput
from serve_app.ids import hash_ids
from simulators.estimators.dm import DM
from simulators.estimators.dr import DR
from simulators.estimators.dros import DRos
from simulators.estimators.estimator import Estimator
from simulators.estimators.ips import IPS
from simulators.estimators.rows import FAULTS, Rows, checked_rows
from simulators.estimators.sndr import SNDR
from simulators.estimators.snips import SNIPS
from simulators.estimators.suite import Suite
from simulators.estimators.switch_dr import SwitchDR

if TYPE_CHECKING:
    import ray.data

__all__ = ["ESTIMATORS", "RowColumns", "estimate_dataset", "estimate_table", "parquet_files"]

F64 = npt.NDArray[np.float64]
U64 = npt.NDArray[np.uint64]

_KINDS: tuple[type[Estimator], ...] = (IPS, SNIPS, DM, DR, SNDR, SwitchDR, DRos)
ESTIMATORS: Mapping[str, type[Estimator]] = {one.name: one for one in _KINDS}
"""By the names that `estimate_dataset` takes."""
_ROWS_A_PARTITION = 500_000
_BATCH = 131_072  # rows of a grouped file read at a time


@dataclass(frozen=True)
class RowColumns:
    """Names of the columns that hold what `checked_rows` takes, by policy and metric where there are several.

    user: None takes every row for a user of its own. send with target_send, unsupported, log_rate, row_id, q_logged with
    q_target: optional, as there."""

    propensity: str
    target: Mapping[str, str]
    reward: Mapping[str, str]
    user: str | None = None
    send: str | None = None
    target_send: Mapping[str, str] = field(default_factory=dict)
    unsupported: Mapping[str, str] = field(default_factory=dict)
    log_rate: str | None = None
    row_id: str | None = None
    q_logged: Mapping[str, str] = field(default_factory=dict)
    q_target: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def names(self) -> list[str]:
        """All of them, once."""
        of_model = [name for one in self.q_target.values() for name in one.values()]
        several = [*self.target.values(), *self.reward.values(), *self.target_send.values(), *self.unsupported.values()]
        single = [one for one in (self.user, self.propensity, self.send, self.log_rate, self.row_id) if one is not None]
        return list(dict.fromkeys([*single, *several, *self.q_logged.values(), *of_model]))

    def suite(self, estimators: Sequence[str]) -> Suite:
        """An empty suite. InvalidInput names an estimator there is none of, or what one lacks."""
        for name in estimators:
            if name not in ESTIMATORS:
                raise InvalidInput(f"no estimator {name!r}", field="estimators", hint=f"of {', '.join(ESTIMATORS)}")
            if name not in ("ips", "snips") and not (self.q_logged and self.q_target):
                raise InvalidInput(f"{name} needs the outcome model's predictions", field="q_logged, q_target",
                                   hint="name their columns, or leave it out")  # fmt: skip
        return Suite([ESTIMATORS[name](tuple(self.target), tuple(self.reward)) for name in dict.fromkeys(estimators)])


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
    (files only); otherwise rows are repartitioned by user, into `partitions` (default: 500,000 rows each). progress(rows
    read) is called as tasks end. Rows that cannot be used are left out and counted by fault. InvalidInput: a column is
    absent or of another kind, a user's rows are not together in a grouped file.
    """
    empty = columns.suite(estimators)
    made, limit = _pipeline(source, columns, estimators, grouped, partitions)
    total, parts, rows = empty, 0, 0
    for one in made.iter_rows():
        total = total + _read(empty, one["sums"])
        parts, rows = parts + 1, rows + int(one["rows"])
        progress(rows)
    if limit is not None and parts > limit:
        raise InvalidInput(f"{parts} parts of {limit} partitions: users were torn apart", field="partitions",
                           hint="ask for more, smaller partitions")  # fmt: skip
    return total


def estimate_table(table: pa.Table, columns: RowColumns, *, estimators: Sequence[str] = ("ips", "snips")) -> Suite:
    """The same of rows in memory, in any order, without Ray."""
    suite = columns.suite(estimators)
    suite.update(_rows(_sorted(_chosen(table, columns), columns), columns))
    return suite


def parquet_files(path: str | Path) -> list[str]:
    """A file itself, or a folder's Parquet files in order of their paths. InvalidInput where there is none."""
    at = Path(path)
    found = [at] if at.is_file() else sorted(at.rglob("*.parquet"))
    if not found:
        raise InvalidInput(f"no Parquet file in {at}", field="rows", hint="name a file, or a folder of them")
    return [str(one) for one in found]


def _pipeline(
    source: ray.data.Dataset | str | Path, columns: RowColumns, estimators: Sequence[str], grouped: bool,
    partitions: int | None,
) -> tuple[ray.data.Dataset, int | None]:  # fmt: skip
    """The dataset of sums, and how many parts it may have at most (None: any number)."""
    import ray.data

    if isinstance(source, str | Path):
        files = parquet_files(source)
        _check_columns(pq.read_schema(files[0]), columns, files[0])
        if grouped:
            whole = partial(_of_file, columns=columns, estimators=tuple(estimators))
            items = [{"file": one} for one in files]
            return ray.data.from_items(items, override_num_blocks=len(items)).map(whole), None
        rows = sum(pq.read_metadata(one).num_rows for one in files)
        partitions = partitions or max(1, -(-rows // _ROWS_A_PARTITION))
        if partitions == 1:  # one task holds them all: nothing need be moved
            every = partial(_of_files, columns=columns, estimators=tuple(estimators))
            return ray.data.from_items([{"files": files}], override_num_blocks=1).map(every), None
        data = ray.data.read_parquet(files, columns=columns.names())
    elif grouped:
        raise InvalidInput("blocks of a dataset do not say where users end", field="grouped", hint="pass the files")
    else:
        data = source.select_columns(columns.names())
    part = partial(_of_block, columns=columns, estimators=tuple(estimators))
    if columns.user is not None:
        partitions = partitions or 64
        data = data.repartition(partitions, keys=[columns.user])
    data.context.target_max_block_size = None  # a partition is one block
    return data.map_batches(part, batch_size=None, batch_format="pyarrow"), partitions if columns.user else None


def _of_block(table: pa.Table, columns: RowColumns, estimators: Sequence[str]) -> dict[str, list[Any]]:
    suite = estimate_table(table, columns, estimators=estimators)
    return {"sums": [_written(suite)], "rows": [len(table)]}


def _of_files(item: dict[str, Any], columns: RowColumns, estimators: Sequence[str]) -> dict[str, Any]:
    table = pa.concat_tables([pq.read_table(one, columns=columns.names()) for one in item["files"]])
    return {"sums": _written(estimate_table(table, columns, estimators=estimators)), "rows": len(table)}


def _of_file(item: dict[str, Any], columns: RowColumns, estimators: Sequence[str]) -> dict[str, Any]:
    suite, rows = columns.suite(estimators), 0
    seen: list[U64] = []
    for table in _whole_users(item["file"], columns):
        found = _rows(table, columns)
        suite.update(found)
        rows += len(table)
        seen.append(np.unique(found.user))
    if columns.user is not None and len(np.unique(np.concatenate(seen))) != sum(map(len, seen)):
        raise InvalidInput(f"{item['file']}: rows of one user are not next to each other", field="grouped",
                           hint="leave it out: rows are then repartitioned by user")  # fmt: skip
    return {"sums": _written(suite), "rows": rows}


def _whole_users(file: str, columns: RowColumns) -> Iterator[pa.Table]:
    """A file's rows in pieces that tear no user apart."""
    rest: pa.Table | None = None
    for batch in pq.ParquetFile(file).iter_batches(_BATCH, columns=columns.names(), use_threads=False):
        table = pa.Table.from_batches([batch])
        table = table if rest is None else pa.concat_tables([rest, table])
        end = len(table) if columns.user is None else _last_change(table[columns.user].combine_chunks())
        yield table.slice(0, end)
        rest = table.slice(end)
    if rest is not None:
        yield rest


def _last_change(users: pa.Array) -> int:
    """Where the last user begins."""
    changes = np.flatnonzero(pc.fill_null(pc.not_equal(users[1:], users[:-1]), True).to_numpy(zero_copy_only=False))
    return int(changes[-1]) + 1 if len(changes) else 0


def _user_keys(column: pa.ChunkedArray, name: str) -> U64:
    """u64 of each: whole numbers as they are, texts hashed."""
    values = column.combine_chunks()
    if values.null_count:
        raise InvalidInput(f"{values.null_count} rows have none", field=name)
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if pa.types.is_integer(values.type):
        wide = pa.uint64() if pa.types.is_unsigned_integer(values.type) else pa.int64()
        return values.cast(wide).to_numpy(zero_copy_only=False).astype(np.uint64)
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        raise InvalidInput(f"is of type {values.type}", field=name, hint="users are whole numbers or texts")
    coded = values.dictionary_encode()
    hashes = hash_ids(coded.dictionary.to_pylist())
    return hashes[coded.indices.to_numpy(zero_copy_only=False)]


def _sorted(table: pa.Table, columns: RowColumns) -> pa.Table:
    """By user, and within a user by what the rows say: an order that does not depend on how they came."""
    if columns.user is None:
        return table
    table = table.combine_chunks()
    within = [columns.row_id] if columns.row_id is not None else [*columns.reward.values(), columns.propensity]
    keys = [_numbers(table, name) for name in within]
    known = pc.is_valid(table[columns.user]).to_numpy()
    user = np.zeros(len(table), np.uint64)
    user[known] = _user_keys(table[columns.user].filter(pa.array(known)), columns.user)
    return table.take(pa.array(np.lexsort((*keys, user))))


def _numbers(table: pa.Table, name: str) -> F64:
    """f64[n] of a column; NaN where it is null."""
    try:
        values = table[name].combine_chunks().cast(pa.float64())
    except pa.ArrowException as error:
        raise InvalidInput(f"holds no numbers: {error}", field=name) from None
    found: F64 = values.to_numpy(zero_copy_only=False)
    return found


def _rows(table: pa.Table, columns: RowColumns) -> Rows:
    """Checked rows; those without a user are left out and counted."""
    lost = 0
    if columns.user is not None and table[columns.user].null_count:
        lost = table[columns.user].null_count
        table = table.filter(pc.is_valid(table[columns.user]))
    n = len(table)
    users = np.arange(n, dtype=np.uint64) if columns.user is None else _user_keys(table[columns.user], columns.user)

    def matrix(names: Mapping[str, str], wanted: Sequence[str]) -> F64:
        missing = [one for one in wanted if one not in names]
        if missing:
            raise InvalidInput(f"no column is named for {missing[0]!r}", field="columns", hint="name one each, or none")
        return np.stack([_numbers(table, names[one]) for one in wanted], axis=1)

    policies, metrics = tuple(columns.target), tuple(columns.reward)
    reward, send = matrix(columns.reward, metrics), None
    if columns.send is not None:
        send = _numbers(table, columns.send)
        reward[np.isnan(send)] = np.nan
        send = np.nan_to_num(send)
    found = checked_rows(
        users, _numbers(table, columns.propensity), matrix(columns.target, policies), reward, send=send,
        target_send=matrix(columns.target_send, policies) if columns.target_send else None,
        unsupported=matrix(columns.unsupported, policies) if columns.unsupported else None,
        log_rate=None if columns.log_rate is None else _numbers(table, columns.log_rate),
        q_logged=matrix(columns.q_logged, metrics) if columns.q_logged else None,
        q_target=np.stack([matrix(columns.q_target.get(one, {}), metrics) for one in policies], axis=1)
        if columns.q_target
        else None,
        row_id=None if columns.row_id is None else _user_keys(table[columns.row_id], columns.row_id),
    )  # fmt: skip
    found.excluded[FAULTS.index("user_missing")] += lost
    return found


def _chosen(table: pa.Table, columns: RowColumns) -> pa.Table:
    _check_columns(table.schema, columns, "the rows")
    return table.select(columns.names())


def _check_columns(schema: pa.Schema, columns: RowColumns, where: str) -> None:
    for name in columns.names():
        if name not in schema.names:
            raise InvalidInput(f"{where} has no such column", field=name, hint=f"it has {', '.join(schema.names)}")


def _written(suite: Suite) -> bytes:
    out = io.BytesIO()
    np.savez(out, allow_pickle=False, **suite.to_arrays())
    return out.getvalue()


def _read(empty: Suite, data: bytes) -> Suite:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return empty.load({name: arrays[name] for name in arrays.files})
