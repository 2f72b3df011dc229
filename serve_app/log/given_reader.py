"""Rows that were kept as given (`serve_app.log.given`), as Arrow.

Arrow costs by the array, hardly by the row, and a frame of one request has few rows in many arrays. So many frames are read
at once: those alike in columns and forms become one record batch, of which each frame's rows are a slice.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from serve_app.batch import Ragged, lengths_to_offsets
from serve_app.errors import DamagedArtifact
from serve_app.log.filling import filled
from serve_app.log.given import ENTRY_WORDS, HEAD, PART_ROWS, Form, wire_schema
from serve_app.log.migrations import schema_as_of
from serve_app.log.plan import Column, Plan, plan_of

__all__ = ["read_given"]

Array = npt.NDArray[Any]

_U32 = np.dtype("<u4")
_I32 = np.dtype("<i4")
_BOOL = np.dtype(np.bool_)


def read_given(table: str, contents: Sequence[bytes], version: int) -> list[pa.RecordBatch]:
    """The rows of each content, as schema version `version` had them. DamagedArtifact: a column's form is unknown."""
    alike: dict[bytes, list[int]] = {}
    for at, content in enumerate(contents):
        alike.setdefault(_words(content)[::ENTRY_WORDS].tobytes(), []).append(at)
    out: list[pa.RecordBatch] = [None] * len(contents)
    for places in alike.values():
        joined, counts = _joined(table, [contents[at] for at in places], version)
        first = 0
        for at, count in zip(places, counts, strict=True):
            out[at] = joined.slice(first, count) if len(places) > 1 else joined
            first += count
    return out


def _words(content: bytes) -> Array:
    """The columns' entries: place and form (the upper half), and length, in turn."""
    _, count, _ = HEAD.unpack_from(content, 0)
    return np.frombuffer(content, _U32, ENTRY_WORDS * count, HEAD.size)


def _joined(table: str, contents: Sequence[bytes], version: int) -> tuple[pa.RecordBatch, list[int]]:
    """The rows of contents that are alike, one after the other, and how many are whose."""
    plan, schema, columns_by_place = _as_of(table, version)
    rows = [HEAD.unpack_from(one, 0)[0] for one in contents]
    words = [_words(one) for one in contents]
    ends = [(HEAD.size + one.nbytes + lengths_to_offsets(one[1::ENTRY_WORDS])).tolist() for one in words]
    columns: dict[str, Any] = {}
    for at, word in enumerate(words[0][::ENTRY_WORDS].tolist()):
        column = columns_by_place[word & 0xFFFF]
        bodies = [content[end[at] : end[at + 1]] for content, end in zip(contents, ends, strict=True)]
        columns[column.name] = _column(word >> 16, bodies, column, rows)
    return filled(table, plan, schema, sum(rows), columns, version), rows


@cache
def _as_of(table: str, version: int) -> tuple[Plan, pa.Schema, tuple[Column, ...]]:
    schema = schema_as_of(table, version)
    plan = plan_of(schema)
    return plan, schema, tuple(plan.values())


def _column(form: int, bodies: Sequence[bytes], column: Column, rows: Sequence[int]) -> Any:
    """A column in a form that `fill` takes."""
    if form == Form.flat:
        values = b"".join(bodies)
        if column.flat == _BOOL:
            return np.frombuffer(values, _BOOL)
        return pa.Array.from_buffers(column.type, sum(rows), [None, pa.py_buffer(values)])
    if form == Form.matrix:
        return _matrix(bodies, column, rows)
    if form == Form.runs:
        return np.concatenate([_run(body, column) for body in bodies])
    if form == Form.some:
        return _some(bodies, column, rows)
    if form == Form.lists:
        starts = [_I32.itemsize * (count + 1) for count in rows]
        lengths = [np.diff(np.frombuffer(body, _I32, count + 1)) for body, count in zip(bodies, rows, strict=True)]
        values = b"".join([body[start:] for body, start in zip(bodies, starts, strict=True)])
        return Ragged(np.frombuffer(values, column.inner), lengths_to_offsets(np.concatenate(lengths)))
    if form == Form.text:
        if all(one == bodies[0] for one in bodies):
            return bodies[0].decode()
        return _named(np.repeat(np.arange(len(rows), dtype=np.int32), rows), [one.decode() for one in bodies])
    if form == Form.names:
        return _names(bodies, rows)
    if form == Form.arrow:
        arrays = [pa.ipc.read_record_batch(pa.py_buffer(one), wire_schema(column)).column(0) for one in bodies]
        array = pa.concat_arrays(arrays)
        return array.dictionary_encode() if column.named else array
    raise DamagedArtifact(f"a journal frame has a column of form {form}", field=f"journal.{column.name}")


def _matrix(bodies: Sequence[bytes], column: Column, rows: Sequence[int]) -> Array | Ragged:
    values = np.frombuffer(b"".join(bodies), column.inner)
    widths = [len(body) // max(count, 1) // values.itemsize for body, count in zip(bodies, rows, strict=True)]
    if len(set(widths)) == 1:
        return values.reshape(sum(rows), widths[0])
    return Ragged(values, lengths_to_offsets(np.repeat(widths, rows)))


def _run(body: bytes, column: Column) -> Array:
    (own,) = struct.unpack_from("<I", body)
    counts = np.frombuffer(body, _U32, own, _U32.itemsize)
    assert column.flat is not None
    return np.repeat(np.frombuffer(body, column.flat, own, _U32.itemsize * (1 + own)), counts)


def _some(bodies: Sequence[bytes], column: Column, rows: Sequence[int]) -> Array | Ragged:
    parts = [_one_some(body, column, count) for body, count in zip(bodies, rows, strict=True)]
    widths = [one.shape[1] for one in parts]
    if len(set(widths)) == 1:
        return np.concatenate(parts)
    return Ragged(np.concatenate([one.ravel() for one in parts]), lengths_to_offsets(np.repeat(widths, rows)))


def _one_some(body: bytes, column: Column, rows: int) -> Array:
    width, known = struct.unpack_from("<II", body)
    assert column.inner is not None
    other = np.frombuffer(body, column.inner, 1, 2 * _U32.itemsize)
    at = 2 * _U32.itemsize + other.nbytes
    bits = np.frombuffer(body, np.uint8, (rows + 7) // 8, at)
    values = np.empty((known, width), column.inner)
    given = np.frombuffer(body, column.inner, width * known, at + len(bits))
    for first in range(0, known, PART_ROWS):
        last = min(first + PART_ROWS, known)
        values[first:last] = given[width * first : width * last].reshape(width, last - first).T
    if known == rows:
        return values
    out = np.repeat(other, rows * width).reshape(rows, width)
    out[np.unpackbits(bits, count=rows, bitorder="little").view(np.bool_)] = values
    return out


def _names(bodies: Sequence[bytes], rows: Sequence[int]) -> pa.DictionaryArray:
    texts: list[str] = []
    codes = []
    for body, count in zip(bodies, rows, strict=True):
        (own,) = struct.unpack_from("<I", body)
        lengths = np.frombuffer(body, _U32, own, _U32.itemsize)
        at = _U32.itemsize * (1 + own)
        codes.append(np.frombuffer(body, _I32, count, at) + np.int32(len(texts)))
        ends = (at + _I32.itemsize * count + lengths_to_offsets(lengths)).tolist()
        texts += [body[low:high].decode() for low, high in itertools.pairwise(ends)]
    return _named(np.concatenate(codes), texts)


def _named(codes: npt.NDArray[np.int32], texts: Sequence[str]) -> pa.DictionaryArray:
    """Encoded anew, so that the texts stand in order of their first row, each once."""
    plain = pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(texts, pa.string())).dictionary_decode()
    return plain.dictionary_encode()
