"""Columns to rows of a log table: cast to the schema, sentinels where nothing is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from serve_app.batch import Ragged
from serve_app.errors import InvalidInput
from serve_app.ids import bucket_of
from serve_app.log.schema import SCHEMA_VERSION, TABLES

__all__ = ["SENTINELS", "assignments", "constant", "fill", "named", "sentinels"]

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Array = npt.NDArray[Any]

_SHARED_ROWS = 8192
# Sentinels that differ from zero, by column name (the same in every table).
SENTINELS: dict[str, float] = {
    **dict.fromkeys(("order", "env_seq", "cell", "context_hour", "availability_seq", "read_version", "refunds_read"), -1),
    **dict.fromkeys(("channel", "message_class", "delivery", "segment", "holdout", "chosen_idx", "commit_version"), -1),
    **dict.fromkeys(("p_cell", "log_rate"), 1.0),
    "known_since": np.iinfo(np.int64).min,
    **dict.fromkeys(("retrieval_score", "value", "p_choice", "p_slot", "p_action", "p_none"), np.nan),
}


def assignments(ids: U64, arms: npt.NDArray[np.int16], p: npt.NDArray[np.float64]) -> pa.ListArray:
    """The `arms` or `holdouts` column: ids u64[k], arms i16[n, k], p f64[n, k] or f64[k] -> list<struct>[n]."""
    rows, width = arms.shape
    flat = [np.tile(ids, rows), arms.reshape(-1), np.broadcast_to(p, (rows, width)).reshape(-1)]
    values = pa.StructArray.from_arrays([pa.array(one) for one in flat], ["id", "arm", "p"])
    return pa.ListArray.from_arrays(pa.array(np.arange(rows + 1, dtype=np.int32) * width), values)


def named(indices: Array, name_of: Callable[[int], str]) -> pa.DictionaryArray:
    """Small integers (-1: unknown) as their names; each distinct one is looked up once."""
    distinct, places = np.unique(indices, return_inverse=True)
    names = ["" if index < 0 else name_of(index) for index in distinct.tolist()]
    return pa.DictionaryArray.from_arrays(pa.array(places.astype(np.int32)), pa.array(names, pa.string()))


def fill(table: str, rows: int, columns: Mapping[str, Any]) -> pa.RecordBatch:
    """`rows` rows of log table `table`: given columns (numpy, Ragged, Arrow; None counts as absent) cast to the schema,
    schema_version and user_bucket added, absent columns set to their sentinel (null in `events`).

    Raises InvalidInput for a column the table does not have, or of another length."""
    schema = TABLES[table]
    unknown = sorted(set(columns) - set(schema.names))
    if unknown:
        raise InvalidInput(f"the log has no column {', '.join(unknown)}", field=table)
    arrays = []
    for spec in schema:
        given = columns.get(spec.name)
        if spec.name == "schema_version":
            given = np.full(rows, SCHEMA_VERSION, np.int16)
        elif spec.name == "user_bucket":
            given = bucket_of(np.asarray(columns["user"], np.uint64))
        array = _absent(spec, rows) if given is None else _to_arrow(given, spec)
        if len(array) != rows:
            raise InvalidInput(f"{len(array)} values for {rows} rows", field=f"{table}.{spec.name}")
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


def _to_arrow(values: Any, spec: pa.Field) -> pa.Array:
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if isinstance(values, pa.Array):
        return values if values.type == spec.type else values.cast(spec.type)
    if isinstance(values, Ragged):
        return _list(values.values, values.offsets, spec)
    if isinstance(values, np.ndarray) and values.ndim == 2:
        rows, width = values.shape
        return _list(np.ascontiguousarray(values).reshape(-1), np.arange(rows + 1, dtype=np.int64) * width, spec)
    return pa.array(values, spec.type)


def _list(values: Array, offsets: I64, spec: pa.Field) -> pa.ListArray:
    if offsets[-1] > np.iinfo(np.int32).max:
        raise InvalidInput(f"{offsets[-1]} list values in one batch", field=spec.name, hint="log in smaller batches")
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values, spec.type.value_type))


def constant(text: str, rows: int) -> pa.DictionaryArray:
    """One text in every row."""
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([text]))
