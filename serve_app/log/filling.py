"""Columns to rows of a log table: cast to the schema, sentinels where nothing is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from serve_app.batch import Ragged
from serve_app.errors import InvalidInput
from serve_app.ids import bucket_of
from serve_app.log.plan import Column, Plan, plan_of_table
from serve_app.log.schema import SCHEMA_VERSION, TABLES
from serve_app.log.short import spelled_out

__all__ = [
    "SENTINELS",
    "Names",
    "assignments",
    "check_columns",
    "constant",
    "fill",
    "filled",
    "named",
    "sentinels",
    "to_arrow",
]

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Array = npt.NDArray[Any]

_SHARED_ROWS = 8192
_MOST_VALUES = np.iinfo(np.int32).max
_BOOL = np.dtype(np.bool_)
# Sentinels that differ from zero, by column name (the same in every table). Journal frames leave absent columns out and
# leave it to their reader to put these in: a column's sentinel never changes within a schema version.
SENTINELS: dict[str, float] = {
    **dict.fromkeys(("order", "env_seq", "cell", "context_hour", "availability_seq", "read_version", "refunds_read"), -1),
    **dict.fromkeys(("channel", "message_class", "delivery", "segment", "holdout", "chosen_idx", "commit_version"), -1),
    **dict.fromkeys(("p_cell", "log_rate"), 1.0),
    "known_since": np.iinfo(np.int64).min,
    **dict.fromkeys(("retrieval_score", "value", "p_choice", "p_slot", "p_action", "p_none"), np.nan),
}


@dataclass(frozen=True, slots=True)
class Names:
    """One of few texts a row: `codes` i32[n] index `texts`."""

    codes: npt.NDArray[np.int32]
    texts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.codes)

    @classmethod
    def of(cls, indices: Array, name_of: Callable[[int], str]) -> Names:
        """Small integers (-1: unknown) as their names; each distinct one is looked up once."""
        if len(indices) == 1:
            index = int(indices[0])
            return cls(np.zeros(1, np.int32), ("" if index < 0 else name_of(index),))
        distinct, places = np.unique(indices, return_inverse=True)
        names = tuple("" if index < 0 else name_of(index) for index in distinct.tolist())
        return cls(places.astype(np.int32), names)

    def to_arrow(self) -> pa.DictionaryArray:
        """As the log has it."""
        return pa.DictionaryArray.from_arrays(pa.array(self.codes), pa.array(self.texts, pa.string()))


def assignments(ids: U64, arms: npt.NDArray[np.int16], p: npt.NDArray[np.float64]) -> pa.ListArray:
    """The `arms` or `holdouts` column: ids u64[k], arms i16[n, k], p f64[n, k] or f64[k] -> list<struct>[n]."""
    rows, width = arms.shape
    flat = [np.tile(ids, rows), arms.reshape(-1), np.broadcast_to(p, (rows, width)).reshape(-1)]
    values = pa.StructArray.from_arrays([pa.array(one) for one in flat], ["id", "arm", "p"])
    return pa.ListArray.from_arrays(pa.array(np.arange(rows + 1, dtype=np.int32) * width), values)


def named(indices: Array, name_of: Callable[[int], str]) -> pa.DictionaryArray:
    """`Names.of` as Arrow."""
    return Names.of(indices, name_of).to_arrow()


def fill(table: str, rows: int, columns: Mapping[str, Any]) -> pa.RecordBatch:
    """`rows` rows of log table `table`: given columns (numpy, Ragged, Names, Runs, Some, Arrow, or the text of every row;
    None counts as absent) cast to its schema, schema_version and user_bucket added, absent ones set to their sentinel (in
    `events` null).

    Raises InvalidInput for a column the table does not have, or of another length."""
    plan = plan_of_table(table)
    check_columns(table, plan, columns)
    return filled(table, plan, TABLES[table], rows, columns, SCHEMA_VERSION)


def check_columns(table: str, plan: Plan, columns: Mapping[str, Any]) -> None:
    """InvalidInput: a column the table does not have."""
    if not columns.keys() <= plan.keys():
        unknown = ", ".join(sorted(columns.keys() - plan.keys()))
        raise InvalidInput(f"the log has no column {unknown}", field=table)


def filled(table: str, plan: Plan, schema: pa.Schema, rows: int, columns: Mapping[str, Any], version: int) -> pa.RecordBatch:
    """`fill` for the columns (`plan`, `schema`) that a table had in schema version `version`."""
    arrays = []
    for name, column in plan.items():
        given = columns.get(name)
        if name == "schema_version":
            given = np.full(rows, version, np.int16)
        elif name == "user_bucket":
            given = bucket_of(np.asarray(spelled_out(columns["user"]), np.uint64))
        array = _absent(column.spec, rows) if given is None else to_arrow(given, column, rows)
        if len(array) != rows:
            raise InvalidInput(f"{len(array)} values for {rows} rows", field=f"{table}.{name}")
        arrays.append(array)
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _absent(spec: pa.Field, rows: int) -> pa.Array:
    """`rows` sentinels; small batches share one array a column."""
    if rows <= _SHARED_ROWS:
        return _shared_sentinels(spec.name, spec.type, spec.nullable).slice(0, rows)
    return sentinels(spec, rows)


@cache
def _shared_sentinels(name: str, dtype: pa.DataType, nullable: bool) -> pa.Array:
    return sentinels(pa.field(name, dtype, nullable), _SHARED_ROWS)


def sentinels(spec: pa.Field, rows: int) -> pa.Array:
    """`rows` times the value that stands for none."""
    if spec.nullable:
        return pa.nulls(rows, spec.type)
    if pa.types.is_list(spec.type):
        return pa.ListArray.from_arrays(pa.array(np.zeros(rows + 1, np.int32)), pa.array([], spec.type.value_type))
    if pa.types.is_dictionary(spec.type):
        return constant("", rows)
    if pa.types.is_string(spec.type) or pa.types.is_binary(spec.type):
        return pa.array([""] * rows, spec.type) if rows else pa.array([], spec.type)
    return pa.array(np.full(rows, SENTINELS.get(spec.name, 0), spec.type.to_pandas_dtype()), spec.type)


def to_arrow(values: Any, column: Column, rows: int) -> pa.Array:
    """A given column in the type of the log's. rows: how often the one text of all rows is repeated."""
    values = spelled_out(values)
    if isinstance(values, np.ndarray):
        if values.ndim == 2:
            width = values.shape[1]
            return _list(
                np.ascontiguousarray(values).reshape(-1), np.arange(len(values) + 1, dtype=np.int64) * width, column
            )
        return _flat(values, column.type, column.flat)
    if isinstance(values, str) and column.named:
        return constant(values, rows)
    if isinstance(values, Names):
        return values.to_arrow()
    if isinstance(values, Ragged):
        return _list(values.values, values.offsets, column)
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if isinstance(values, pa.Array):
        return values if values.type == column.type else values.cast(column.type)
    return pa.array(values, column.type)


def _flat(values: Array, kind: pa.DataType, dtype: np.dtype[Any] | None) -> pa.Array:
    """Numbers that have the type already are wrapped: a fraction of the time of `pa.array`."""
    if dtype is None or dtype == _BOOL or type(values) is not np.ndarray or values.ndim != 1 or values.dtype != dtype:
        return pa.array(values, kind)
    if dtype.names is not None:
        fields = [_flat(np.ascontiguousarray(values[one.name]), one.type, values.dtype[one.name]) for one in kind]
        return pa.StructArray.from_arrays(fields, fields=list(kind))
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(np.ascontiguousarray(values))])


def _list(values: Array, offsets: I64, column: Column) -> pa.Array:
    if offsets[-1] > _MOST_VALUES:
        raise InvalidInput(f"{offsets[-1]} list values in one batch", field=column.name, hint="log in smaller batches")
    ends = np.ascontiguousarray(offsets, np.int32)
    if pa.types.is_binary(column.type):
        parts = [None, pa.py_buffer(ends), pa.py_buffer(np.ascontiguousarray(values, np.uint8))]
        return pa.Array.from_buffers(column.type, len(ends) - 1, parts)
    return pa.ListArray.from_arrays(pa.array(ends), _flat(values, column.type.value_type, column.inner))


def constant(text: str, rows: int) -> pa.DictionaryArray:
    """One text in every row."""
    zeros = _zeros().slice(0, rows) if rows <= _SHARED_ROWS else pa.array(np.zeros(rows, np.int32))
    return pa.DictionaryArray.from_arrays(zeros, pa.array([text]))


@cache
def _zeros() -> pa.Array:
    return pa.array(np.zeros(_SHARED_ROWS, np.int32))
