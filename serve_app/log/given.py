"""Rows of a log table as they were given: the bytes of the columns there are, which become Arrow when somebody reads them.

Who answers a request waits for its journal frame, and a frame holds some 120 columns of mostly one row. Their bytes are
copied in a tenth of the time that it takes to make Arrow arrays of them; a reader does that later, for whom nobody waits.
Names, lengths and types are checked here, when rows are given, so that a reader finds nothing wrong.

Layout, little endian::

    rows u32 | columns u16 | reserved u16
    per column: place in the table u16 | form u16 | bytes u32
    per column: its bytes

Forms: flat (numpy's values; booleans a byte each), matrix (the same, one list a row, all of one width), lists (offsets
i32[rows + 1], values), text (UTF-8, the same in every row), names (number of texts u32, their lengths u32 each, codes
i32[rows], texts) and arrow (a record batch of this one column, dictionaries decoded). Absent columns are left out: their
sentinels (`serve_app.log.filling`) are put in by the reader, like schema_version and user_bucket.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, unique
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from serve_app.batch import Ragged
from serve_app.errors import DamagedArtifact, InvalidInput
from serve_app.log.filling import Names, check_columns, filled, to_arrow
from serve_app.log.migrations import schema_as_of
from serve_app.log.plan import DERIVED, Column, Plan, plain, plan_of, plan_of_table

__all__ = ["Form", "GivenRows", "given_rows", "read_given"]

Array = npt.NDArray[Any]
Parts = Sequence[bytes | Array]

_HEAD = struct.Struct("<IHH")
_ENTRY = struct.Struct("<HHI")
_U32 = np.dtype("<u4")
_I32 = np.dtype("<i4")
_MOST_VALUES = np.iinfo(np.int32).max


@unique
class Form(IntEnum):
    """How a column's bytes are to be read; part of the journal's format, so never renumbered."""

    flat = 0
    matrix = 1
    lists = 2
    text = 3
    names = 4
    arrow = 5


@dataclass(frozen=True, slots=True)
class GivenRows:
    """`rows` rows of log table `table`, as bytes of their own: whoever gave them may change his arrays."""

    table: str
    rows: int
    content: bytes

    def __len__(self) -> int:
        return self.rows

    def to_arrow(self, version: int) -> pa.RecordBatch:
        """The rows, as a reader gets them."""
        return read_given(self.table, memoryview(self.content), version)


def given_rows(table: str, rows: int, columns: Mapping[str, Any]) -> GivenRows:
    """What `fill` takes, checked and kept; read back it is what `fill` would have made.

    Raises InvalidInput for a column the table does not have, or of another length; pyarrow's errors for values that do not
    fit their column."""
    plan = plan_of_table(table)
    check_columns(table, plan, columns)
    if "user_bucket" in plan and columns.get("user") is None:
        raise InvalidInput("rows of this table need a user", field=table)
    heads: list[int] = []
    bodies: list[Any] = []
    for name, values in columns.items():
        if values is None or name in DERIVED:
            continue
        column = plan[name]
        kind = column.flat
        if type(values) is np.ndarray and kind is not None and values.dtype == kind and values.ndim == 1:
            form, count, size = Form.flat, len(values), values.nbytes
            bodies.append(values.tobytes())
        else:
            (form, count, parts), size = _formed(values, column, rows), 0
            for one in parts:
                size += len(one) if isinstance(one, bytes) else one.nbytes
            bodies += parts
        if count != rows:
            raise InvalidInput(f"{count} values for {rows} rows", field=f"{table}.{name}")
        heads += (column.place, form, size)
    entries = len(heads) // 3
    head = struct.pack("<IHH" + "HHI" * entries, rows, entries, 0, *heads)
    return GivenRows(table, rows, b"".join((head, *bodies)))


def _is(values: Array, dtype: np.dtype[Any] | None) -> bool:
    return dtype is not None and values.dtype == dtype  # (a dtype of f64 equals None)


def _dense(values: Array) -> Array:
    return values if values.flags.c_contiguous else np.ascontiguousarray(values)


def _formed(values: Any, column: Column, rows: int) -> tuple[Form, int, Parts]:
    """Form, number of rows and bytes of a column that is not flat."""
    if isinstance(values, str) and column.named:
        return Form.text, rows, (values.encode(),)
    if isinstance(values, Names) and column.named:
        return Form.names, len(values), _names(values)
    if type(values) is np.ndarray and values.ndim == 2 and _is(values, column.inner) and values.size <= _MOST_VALUES:
        return Form.matrix, len(values), (_dense(values),)
    if isinstance(values, Ragged) and _is(values.values, column.inner) and values.values.ndim == 1:
        if len(values.values) > _MOST_VALUES:
            raise InvalidInput(f"{len(values.values)} list values in one batch", field=column.name)
        return Form.lists, len(values), (values.offsets.astype(_I32), _dense(values.values))
    array = to_arrow(values, column, rows)
    return Form.arrow, len(array), (_message(array, column),)


def _names(values: Names) -> Parts:
    texts = [one.encode() for one in values.texts]
    counts = np.array([len(texts), *map(len, texts)], _U32)
    return counts, _dense(values.codes.astype(_I32, copy=False)), *texts


def _wire(column: Column) -> pa.Schema:
    return pa.schema([pa.field(column.name, plain(column.type), column.spec.nullable)])


def _message(array: pa.Array, column: Column) -> bytes:
    one = array.dictionary_decode() if column.named else array
    return bytes(memoryview(pa.RecordBatch.from_arrays([one], schema=_wire(column)).serialize()))


def read_given(table: str, content: memoryview, version: int) -> pa.RecordBatch:
    """The rows whose bytes these are, as schema version `version` had them. DamagedArtifact: a form of another version."""
    plan, schema, columns_by_place = _as_of(table, version)
    rows, count, _ = _HEAD.unpack_from(content, 0)
    body = _HEAD.size + count * _ENTRY.size
    columns: dict[str, Any] = {}
    for place, form, size in _ENTRY.iter_unpack(content[_HEAD.size : body]):
        column = columns_by_place[place]
        # Copied: arrays want their values aligned, and must outlive the file's map.
        columns[column.name] = _read(form, bytes(content[body : body + size]), column, rows)
        body += size
    return filled(table, plan, schema, rows, columns, version)


@cache
def _as_of(table: str, version: int) -> tuple[Plan, pa.Schema, tuple[Column, ...]]:
    schema = schema_as_of(table, version)
    plan = plan_of(schema)
    return plan, schema, tuple(plan.values())


def _read(form: int, body: bytes, column: Column, rows: int) -> Any:
    if form == Form.flat:
        return np.frombuffer(body, column.flat)
    if form == Form.matrix:
        values = np.frombuffer(body, column.inner)
        return values.reshape(rows, len(values) // max(rows, 1))
    if form == Form.lists:
        ends = np.frombuffer(body, _I32, rows + 1)
        return Ragged(np.frombuffer(body[ends.nbytes :], column.inner), ends.astype(np.int64))
    if form == Form.text:
        return body.decode()
    if form == Form.names:
        return _read_names(body, rows)
    if form == Form.arrow:
        (array,) = pa.ipc.read_record_batch(pa.py_buffer(body), _wire(column)).columns
        return array.dictionary_encode() if column.named else array
    raise DamagedArtifact(f"a journal frame has a column of form {form}", field=f"journal.{column.name}")


def _read_names(body: bytes, rows: int) -> pa.DictionaryArray:
    (count,) = struct.unpack_from("<I", body)
    lengths = np.frombuffer(body, _U32, count, 4)
    codes = np.frombuffer(body, _I32, rows, 4 + lengths.nbytes)
    at = 4 + lengths.nbytes + codes.nbytes
    ends = at + np.cumsum(lengths, dtype=np.int64)
    texts = [body[end - length : end].decode() for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)]
    # Encoded anew, so that its texts stand in order of their first row, each once, like those of any frame.
    return (
        pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(texts, pa.string())).dictionary_decode().dictionary_encode()
    )
