"""An Arrow IPC stream from outside, read so that it takes little more memory than it has bytes.

Arrow's reader believes a stream: buffers that are compressed grow ten-thousandfold, dictionaries and views let every row say
the same long text, batches may be empty and endless. What can grow so is refused before it is read. Layout of messages:
https://arrow.apache.org/docs/format/Columnar.html and its flatbuffers, format/Message.fbs.
"""

from __future__ import annotations

import struct
from collections.abc import Collection

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as kinds

from serve_app.ingress.problems import ProblemError

__all__ = ["read_stream"]

_DICTIONARY, _BATCH = 2, 3  # of the union MessageHeader
_HEADER_KIND, _HEADER = 1, 2  # fields of Message
_DATA = 1  # field of DictionaryBatch
_COMPRESSION = 3  # field of RecordBatch
_MOST_DICTIONARIES = 64
_SPELT_OUT = 64 << 20  # bytes that texts of dictionaries may take


def read_stream(raw: bytes, columns: Collection[str], needed: str, *, most_rows: int, most_values: int) -> pa.Table:
    """The table of a stream with some of `columns`, `needed` among them. most_values: in lists of one column.

    Raises ProblemError: 400 for what is no such stream, 415 for compressed buffers, 422 for columns, types and sizes that
    are not allowed.
    """
    try:
        _refuse_compressed(raw, most_rows)
        with pa.ipc.open_stream(raw) as reader:
            _check_columns(reader.schema, columns, needed)
            table = pa.Table.from_batches(_batches(reader, most_rows), reader.schema)
        table.validate(full=True)  # offsets inside their buffers, text in UTF-8
    except (pa.ArrowException, OSError, ValueError, struct.error) as error:
        raise ProblemError(
            400, "malformed-arrow", f"the body is not an Arrow IPC stream: {error}", field="body", hint="see /docs"
        ) from None
    if not len(table):
        raise _wrong("body", f"0 rows; 1 to {most_rows} are allowed")
    for name in table.column_names:
        _check_values(name, table[name], most_values)
    return table


def _refuse_compressed(raw: bytes, most_rows: int) -> None:
    dictionaries = batches = 0
    for message in pa.ipc.MessageReader.open_stream(pa.py_buffer(raw)):
        data = message.metadata.to_pybytes()
        root = _table_at(data, 0)
        kind = _field(data, root, _HEADER_KIND)
        header = data[kind] if kind else 0
        if header not in (_DICTIONARY, _BATCH):
            continue
        body = _inner(data, root, _HEADER)
        if header == _DICTIONARY:
            dictionaries, body = dictionaries + 1, _inner(data, body, _DATA)
        else:
            batches += 1
        if _field(data, body, _COMPRESSION):
            detail = "the stream's buffers are compressed"
            raise ProblemError(415, "unsupported-media-type", detail, field="body", hint="send them plain")
        if dictionaries > _MOST_DICTIONARIES or batches > most_rows:
            raise _wrong("body", "consists of too many pieces", "send fewer, larger record batches")


def _table_at(data: bytes, at: int) -> int:
    """Where the flatbuffers table lies that `at` points to. struct.error where that is outside."""
    place: int = at + struct.unpack_from("<I", data, at)[0]
    return place


def _field(data: bytes, table: int, number: int) -> int:
    """Where a table has a field, 0: nowhere."""
    layout = table - struct.unpack_from("<i", data, table)[0]
    if layout < 0:
        raise struct.error("a table's layout lies outside")
    size = struct.unpack_from("<H", data, layout)[0]
    place = 4 + 2 * number
    offset = struct.unpack_from("<H", data, layout + place)[0] if place + 2 <= size else 0
    return table + offset if offset else 0


def _inner(data: bytes, table: int, number: int) -> int:
    """Where a table lies that is a table's field."""
    place = _field(data, table, number)
    if not place:
        raise struct.error("a message lacks its header")
    return _table_at(data, place)


def _check_columns(schema: pa.Schema, columns: Collection[str], needed: str) -> None:
    if len(set(schema.names)) < len(schema.names):
        raise _wrong("body", "a column stands twice", "leave one out")
    if unknown := sorted(set(schema.names) - set(columns)):
        raise _wrong(unknown[0], "no such column", f"known: {', '.join(columns)}")
    if needed not in schema.names:
        raise _wrong(needed, "the stream has no such column", "add it")
    for field in schema:
        own = field.type.value_type if kinds.is_list(field.type) or kinds.is_large_list(field.type) else field.type
        own = own.value_type if kinds.is_dictionary(own) else own
        if not (_text(own) or kinds.is_null(own) or kinds.is_primitive(own)):
            raise _wrong(field.name, f"has the type {str(field.type)[:60]}", "see /docs for the types of columns")


def _text(kind: pa.DataType) -> bool:
    return bool(kinds.is_string(kind) or kinds.is_large_string(kind))


def _batches(reader: pa.RecordBatchReader, most_rows: int) -> list[pa.RecordBatch]:
    out: list[pa.RecordBatch] = []
    rows = 0
    for batch in reader:
        rows += len(batch)
        if rows > most_rows:
            raise _wrong("body", f"{rows} rows or more; 1 to {most_rows} are allowed")
        out.append(batch)
    return out


def _check_values(name: str, column: pa.ChunkedArray, most_values: int) -> None:
    spelt_out = 0
    if kinds.is_list(column.type) or kinds.is_large_list(column.type):
        if (pc.sum(pc.list_value_length(column)).as_py() or 0) > most_values:
            raise _wrong(name, f"more than {most_values} values", "send several batches")
        column = pa.chunked_array([chunk.flatten() for chunk in column.chunks], column.type.value_type)
    if not kinds.is_dictionary(column.type) or not _text(column.type.value_type):
        return
    for chunk in column.chunks:
        lengths = pc.binary_length(chunk.dictionary).take(chunk.indices)
        spelt_out += pc.sum(lengths.cast(pa.int64())).as_py() or 0
    if spelt_out > _SPELT_OUT:
        raise _wrong(name, f"its texts, spelt out, take more than {_SPELT_OUT} bytes", "send several batches")


def _wrong(field: str, detail: str, hint: str | None = None) -> ProblemError:
    return ProblemError(422, "invalid-field", detail, field=field, hint=hint)
