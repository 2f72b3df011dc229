"""Journal frames: rows of several tables as checksummed bytes that are either read whole or not at all.

Layout, little endian::

    magic 8 B | payload length u32 | crc32 of magic, length, key u32 | xxh3-64 of payload seeded with key u64 | payload
    payload = schema version u16 | tables u16 | per table: index in TABLES u16, form u16, length u32, rows
    or, where that is smaller: 65535 u16 | 0 u16 | length u32 | the same as LZ4

Rows are an Arrow record batch (form 0) or columns as they were given (form 1, `serve_app.log.given`). A payload that has the
latter says so in the highest bit of its schema version: code that knows only record batches refuses it by that.

Rows of one batch look alike, so that LZ4 leaves a quarter to a fifth of frames above a few kilobytes.

The key is the file's random number (in its name) plus the frame's offset, so that bytes that look like a frame but were not
written at this place, by this writer, are never read as one.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from typing import TypeAlias

import pyarrow as pa
import xxhash

from serve_app.errors import DamagedArtifact, InvalidInput
from serve_app.log.given import GivenRows
from serve_app.log.given_reader import read_given
from serve_app.log.migrations import READABLE, brought_up, schema_as_of
from serve_app.log.plan import plain
from serve_app.log.schema import SCHEMA_VERSION, TABLES

__all__ = ["HEADER_BYTES", "Rows", "Scan", "decode_payloads", "encode_payload", "framed", "scan_frames"]

Rows: TypeAlias = pa.RecordBatch | GivenRows

_MAGIC = b"\x89HCJF\r\n\x1a"
_HEAD = struct.Struct("<8sIIQ")
_COUNTS = struct.Struct("<HH")
_ENTRY = struct.Struct("<HHI")
_ORDER = list(TABLES)
HEADER_BYTES = _HEAD.size
_MASK = (1 << 64) - 1
_PACKED, _PACKED_HEAD = 0xFFFF, struct.Struct("<HHI")
_PACK_FROM = 4096  # bytes: below, there is little to gain
_MOST_RAW = 1 << 31
_CODEC = pa.Codec("lz4_raw")
_ARROW, _GIVEN = 0, 1
_HAS_GIVEN = 0x8000  # beside the schema version


# Record batches are written without their schema (it is the table's); dictionaries would need messages of their own.
_WIRE = {
    version: {
        name: pa.schema([pa.field(one.name, plain(one.type), one.nullable) for one in schema_as_of(name, version)])
        for name in TABLES
    }
    for version in READABLE
}


def encode_payload(rows: Mapping[str, Rows]) -> bytes:
    """What a frame of `rows` holds, wherever it will stand. InvalidInput: rows of another table than they are given for."""
    parts: list[bytes | pa.Buffer] = [b""]
    version, tables = SCHEMA_VERSION, 0
    for name, batch in rows.items():
        if not len(batch):
            continue
        tables += 1
        if isinstance(batch, GivenRows):
            if batch.table != name:
                raise InvalidInput(f"rows are of the table {batch.table}", field=name)
            version |= _HAS_GIVEN
            parts += [_ENTRY.pack(_ORDER.index(name), _GIVEN, sum(map(len, batch.parts))), *batch.parts]
        else:
            message = _to_wire(name, batch).serialize()
            parts += [_ENTRY.pack(_ORDER.index(name), _ARROW, message.size), message]
    parts[0] = _COUNTS.pack(version, tables)
    return _packed(b"".join(parts))


def framed(payload: bytes, *, key: int, offset: int) -> bytes:
    """The frame of a payload, to be written at `offset` of the file whose random number is `key`."""
    frame_key = (key + offset) & _MASK
    check = _head_check(len(payload), frame_key)
    return _HEAD.pack(_MAGIC, len(payload), check, xxhash.xxh3_64_intdigest(payload, frame_key)) + payload


def _packed(payload: bytes) -> bytes:
    if len(payload) < _PACK_FROM:
        return payload
    packed = _CODEC.compress(payload, asbytes=True)
    if len(packed) + _PACKED_HEAD.size >= len(payload):
        return payload
    return _PACKED_HEAD.pack(_PACKED, 0, len(payload)) + packed


def _unpacked(payload: memoryview) -> memoryview:
    marker, _, length = _PACKED_HEAD.unpack_from(payload, 0) if len(payload) >= _PACKED_HEAD.size else (0, 0, 0)
    if marker != _PACKED:
        return payload
    try:
        if length > _MOST_RAW:
            raise OSError(f"{length} bytes")
        return memoryview(_CODEC.decompress(payload[_PACKED_HEAD.size :], length, asbytes=True))
    except (OSError, ValueError) as error:
        raise DamagedArtifact(f"a journal frame cannot be unpacked: {error}", field="journal") from error


def _to_wire(name: str, batch: pa.RecordBatch) -> pa.RecordBatch:
    if name not in TABLES or batch.schema.names != TABLES[name].names:
        raise InvalidInput("rows do not have the table's columns", field=name)
    arrays = [one.dictionary_decode() if pa.types.is_dictionary(one.type) else one for one in batch.columns]
    return pa.RecordBatch.from_arrays(arrays, schema=_WIRE[SCHEMA_VERSION][name])


def _head_check(length: int, frame_key: int) -> int:
    return zlib.crc32(struct.pack("<8sIQ", _MAGIC, length, frame_key))


@dataclass(slots=True)
class Scan:
    """payloads: (start, end) of each good frame's payload, in order. end: where the last good frame ends (or the scan
    began). damaged: stretches of bytes that are no frame, each with a good frame after it. torn: bytes after `end`."""

    payloads: list[tuple[int, int]] = field(default_factory=list)
    end: int = 0
    damaged: int = 0
    torn: int = 0


def scan_frames(buffer: memoryview, *, key: int, start: int = 0) -> Scan:
    """Find the good frames in a file's bytes from offset `start`; after damage, look for the next magic."""
    scan = Scan(end=start)
    at = start
    while at < len(buffer):
        end = _frame_end(buffer, at, key)
        if end:
            scan.damaged += at > scan.end
            scan.payloads.append((at + HEADER_BYTES, end))
            scan.end = at = end
        else:
            at = _next_magic(buffer, at + 1)
    scan.torn = len(buffer) - scan.end
    return scan


def _frame_end(buffer: memoryview, at: int, key: int) -> int:
    """End of a good frame at `at`, or 0."""
    if at + HEADER_BYTES > len(buffer):
        return 0
    magic, length, check, digest = _HEAD.unpack_from(buffer, at)
    frame_key = (key + at) & _MASK
    end = at + HEADER_BYTES + length
    if magic != _MAGIC or check != _head_check(length, frame_key) or end > len(buffer):
        return 0
    good = xxhash.xxh3_64_intdigest(buffer[at + HEADER_BYTES : end], frame_key) == digest
    return end if good else 0


def _next_magic(buffer: memoryview, at: int) -> int:
    window = 1 << 20
    while at < len(buffer):
        found = bytes(buffer[at : at + window]).find(_MAGIC)
        if found >= 0:
            return at + found
        at += window - len(_MAGIC) + 1
    return len(buffer)


def decode_payloads(
    payloads: Iterable[memoryview], tables: Collection[str] | None = None
) -> dict[str, list[tuple[int, pa.RecordBatch]]]:
    """Rows of good frames, by table (only `tables` where given): (place of the frame among `payloads`, its rows), in order.
    Many small frames take little longer together than one. DamagedArtifact: of another schema version."""
    out: dict[str, list[tuple[int, pa.RecordBatch]]] = {}
    kept: dict[tuple[str, int], list[tuple[int, bytes]]] = {}
    for place, payload in enumerate(payloads):
        for name, form, version, content in _parts(_unpacked(payload), tables):
            if form == _GIVEN:
                kept.setdefault((name, version), []).append((place, content))
            elif form == _ARROW:
                out.setdefault(name, []).append((place, _up_to_date(name, _of_message(name, content, version), version)))
            else:
                raise DamagedArtifact(f"a journal frame has rows of form {form}", field="journal")
    for (name, version), given in kept.items():
        rows = read_given(name, [content for _, content in given], version)
        found = [(place, _up_to_date(name, one, version)) for (place, _), one in zip(given, rows, strict=True)]
        out[name] = sorted([*out.get(name, ()), *found], key=itemgetter(0))
    return out


def _parts(payload: memoryview, tables: Collection[str] | None) -> Iterator[tuple[str, int, int, bytes]]:
    """Table, form, schema version and bytes of the rows of each table in a payload."""
    version, count = _COUNTS.unpack_from(payload, 0)
    version &= ~_HAS_GIVEN
    if version not in READABLE:
        raise DamagedArtifact(
            f"journal frames have schema version {version}, this code reads {READABLE[0]} to {SCHEMA_VERSION}",
            field="journal.schema_version",
            hint="compact with the version of hindcast that wrote them",
        )
    at = _COUNTS.size
    for _ in range(count):
        index, form, length = _ENTRY.unpack_from(payload, at)
        at += _ENTRY.size
        name = _ORDER[index]
        if tables is None or name in tables:
            # Copied: Arrow wants its buffers aligned, and the file's map must not outlive the call.
            yield name, form, version, bytes(payload[at : at + length])
        at += length


def _of_message(name: str, content: bytes, version: int) -> pa.RecordBatch:
    batch = pa.ipc.read_record_batch(pa.py_buffer(content), _WIRE[version][name])
    then = schema_as_of(name, version)
    arrays = [
        array.dictionary_encode() if pa.types.is_dictionary(spec.type) else array
        for array, spec in zip(batch.columns, then, strict=True)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=then)


def _up_to_date(name: str, rows: pa.RecordBatch, version: int) -> pa.RecordBatch:
    if version == SCHEMA_VERSION:
        return rows
    newer = brought_up(name, pa.Table.from_batches([rows]), version, TABLES[name].names).combine_chunks().to_batches()
    return newer[0] if newer else pa.RecordBatch.from_pylist([], schema=schema_as_of(name, SCHEMA_VERSION))
