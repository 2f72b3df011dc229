"""What the columns of a log table are made of: numpy's type beside Arrow's, looked up once a table and not once a batch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa

from serve_app.log.schema import TABLES

__all__ = ["DERIVED", "Column", "Plan", "inner_dtype", "plain", "plan_of", "plan_of_table"]

DERIVED = ("schema_version", "user_bucket")
"""Columns that nobody gives: they follow from the writer's version and from `user`."""

_BYTE = np.dtype(np.uint8)


@dataclass(frozen=True, slots=True)
class Column:
    """One column. place: its position in the table. flat: numpy's type of one value a row, None where there is none (lists,
    texts). inner: that of a list's values (structs as numpy's packed ones; bytes of `binary`), else None. named: few texts,
    a dictionary in Arrow."""

    place: int
    spec: pa.Field
    name: str
    type: pa.DataType
    flat: np.dtype[Any] | None
    inner: np.dtype[Any] | None
    named: bool


Plan = dict[str, Column]


def plan_of(schema: pa.Schema) -> Plan:
    """Columns of a schema, by name, in its order."""
    return {
        spec.name: Column(
            place, spec, spec.name, spec.type, _numpy(spec.type), inner_dtype(spec.type), pa.types.is_dictionary(spec.type)
        )
        for place, spec in enumerate(schema)
    }


@cache
def plan_of_table(table: str) -> Plan:
    """Columns of log table `table` as this code writes it."""
    return plan_of(TABLES[table])


def plain(dtype: pa.DataType) -> pa.DataType:
    """The type of what a dictionary holds; other types as they are."""
    return dtype.value_type if pa.types.is_dictionary(dtype) else dtype


def _numpy(dtype: pa.DataType) -> np.dtype[Any] | None:
    if pa.types.is_struct(dtype):
        fields = [(one.name, _numpy(one.type)) for one in dtype]
        return None if any(own is None for _, own in fields) else np.dtype(fields)
    number = pa.types.is_integer(dtype) or pa.types.is_floating(dtype) or pa.types.is_boolean(dtype)
    return np.dtype(dtype.to_pandas_dtype()) if number else None


def inner_dtype(dtype: pa.DataType) -> np.dtype[Any] | None:
    """numpy's type of the values of a list column (structs packed), or of the bytes of a binary one. None: of no such."""
    if pa.types.is_list(dtype):
        return _numpy(dtype.value_type)
    return _BYTE if pa.types.is_binary(dtype) else None
