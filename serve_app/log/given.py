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
i32[rows], texts), arrow (a record batch of this one column, dictionaries decoded), runs (number of values u32, for how many
rows each stands u32, values) and some (width u32, rows known u32, one value that fills the others' lists, which rows are
known, a bit each from the lowest, bytes filled up; then their lists, 512 at a time, column by column, where like stands by
like and packs well). Absent columns are left out: their sentinels (`serve_app.log.filling`) are put in by the reader
(`serve_app.log.given_reader`), like schema_version and user_bucket.
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
from serve_app.errors import InvalidInput
from serve_app.log.filling import Names, check_columns, to_arrow
from serve_app.log.plan import DERIVED, Column, plain, plan_of_table
from serve_app.log.short import Runs, Some, spelled_out

__all__ = ["ENTRY_WORDS", "HEAD", "PART_ROWS", "Form", "GivenRows", "given_rows", "wire_schema"]

Array = npt.NDArray[Any]
Parts = Sequence[bytes]

HEAD = struct.Struct("<IHH")
ENTRY_WORDS = 2  # u32 each: place and form, bytes
_TURNED_ROWS = 4096  # of a matrix without gaps: larger ones are out of the caches, and turned more slowly than packed
PART_ROWS = 512  # of `some`: to turn many more rows at once takes several times as long a row, and packs no better
_U32 = np.dtype("<u4")
_I32 = np.dtype("<i4")
_TWO_WORDS = struct.Struct("<II")
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
    runs = 6
    some = 7


@dataclass(frozen=True, slots=True)
class GivenRows:
    """`rows` rows of log table `table`, as bytes of their own: whoever gave them may change his arrays. parts: of the
    layout, one after the other."""

    table: str
    rows: int
    parts: tuple[bytes, ...]

    @property
    def content(self) -> bytes:
        """In one piece."""
        return b"".join(self.parts)

    def __len__(self) -> int:
        return self.rows


def given_rows(table: str, rows: int, columns: Mapping[str, Any]) -> GivenRows:
    """What `fill` takes, checked and kept; read back it is what `fill` would have made.

    Raises InvalidInput for a column the table does not have, or of another length; pyarrow's errors for values that do not
    fit their column."""
    plan = plan_of_table(table)
    check_columns(table, plan, columns)
    if "user_bucket" in plan and columns.get("user") is None:
        raise InvalidInput("rows of this table need a user", field=table)
    heads: list[int] = []
    bodies: list[bytes] = []
    flat, runs, text = int(Form.flat), int(Form.runs), int(Form.text)
    for name, values in columns.items():
        if values is None or name in DERIVED:
            continue
        column = plan[name]
        kind, given = column.flat, type(values)
        if given is np.ndarray and kind is not None and values.dtype == kind and values.ndim == 1:  # most columns
            form, count, size = flat, len(values), values.nbytes
            bodies.append(values.tobytes())
        elif given is Runs and kind is not None and values.values.dtype == kind:  # most of the others
            head, own = values.repeats.head, values.values.tobytes()
            form, count, size = runs, values.repeats.rows, len(head) + len(own)
            bodies += (head, own)
        elif given is str and column.named:
            own = values.encode()
            form, count, size = text, rows, len(own)
            bodies.append(own)
        else:
            (form, count, parts), size = _formed(values, column, rows), 0
            for one in parts:
                size += len(one)
            bodies += parts
        if count != rows:
            raise InvalidInput(f"{count} values for {rows} rows", field=f"{table}.{name}")
        heads += (column.place, form, size)
    entries = len(heads) // 3
    head = struct.pack("<IHH" + "HHI" * entries, rows, entries, 0, *heads)
    return GivenRows(table, rows, (head, *bodies))


def _is(values: Array, dtype: np.dtype[Any] | None) -> bool:
    return dtype is not None and values.dtype == dtype  # (a dtype of f64 equals None)


def _formed(values: Any, column: Column, rows: int) -> tuple[Form, int, Parts]:
    """Form, number of rows and bytes of a column that is not flat."""
    lists = values.values if isinstance(values, Ragged) else None
    if lists is not None and lists.ndim == 1 and _is(lists, column.inner) and len(lists) <= _MOST_VALUES:
        return Form.lists, len(values), (values.offsets.astype(_I32).tobytes(), lists.tobytes())
    if isinstance(values, Names) and column.named:
        if len(values.texts) == 1 and len(values) == rows and not values.codes.any():
            return Form.text, rows, (values.texts[0].encode(),)
        return Form.names, len(values), _names(values, column)
    if type(values) is np.ndarray and values.ndim == 2 and _is(values, column.inner) and values.size <= _MOST_VALUES:
        if len(values) > _TURNED_ROWS:
            return Form.matrix, len(values), (values.tobytes(),)
        return Form.some, len(values), _some(Some(np.ones(len(values), np.bool_), values, _nothing(values.dtype)))
    if type(values) is Some and _is(values.values, column.inner) and len(values) * values.values.shape[1] <= _MOST_VALUES:
        return Form.some, len(values), _some(values)
    values = spelled_out(values)
    array = to_arrow(values, column, rows)
    return Form.arrow, len(array), (_message(array, column),)


def _some(values: Some) -> Parts:
    known, width = values.values.shape
    head = _TWO_WORDS.pack(width, known) + values.other.tobytes()
    parts = [values.values[first : first + PART_ROWS].T.tobytes() for first in range(0, known, PART_ROWS)]
    return head, np.packbits(values.known, bitorder="little").tobytes(), *parts


@cache
def _nothing(dtype: np.dtype[Any]) -> np.generic:
    nothing: np.generic = np.zeros(1, dtype)[0]
    return nothing


def _names(values: Names, column: Column) -> Parts:
    if len(values) and not 0 <= values.codes.min() <= values.codes.max() < len(values.texts):
        raise InvalidInput(f"a code is beyond the {len(values.texts)} names there are", field=column.name)
    texts = [one.encode() for one in values.texts]
    counts = np.array([len(texts), *map(len, texts)], _U32)
    return counts.tobytes(), values.codes.astype(_I32, copy=False).tobytes(), *texts


def wire_schema(column: Column) -> pa.Schema:
    """Of the record batch that holds this one column."""
    return pa.schema([pa.field(column.name, plain(column.type), column.spec.nullable)])


def _message(array: pa.Array, column: Column) -> bytes:
    one = array.dictionary_decode() if column.named else array
    return bytes(memoryview(pa.RecordBatch.from_arrays([one], schema=wire_schema(column)).serialize()))
