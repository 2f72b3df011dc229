"""Journal blocks: the columns of one write as compressed, checksummed bytes.

A block is what one commit (or one batch of events) adds; the SQLite backend appends it, and answers when it is durable.
Decision records of a batch look alike, so that together they compress about tenfold.
"""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from serve_app.batch import lengths_to_offsets
from serve_app.errors import DamagedArtifact
from serve_app.ledger.columns import HISTORY_DTYPE
from serve_app.ledger.records import Records

__all__ = ["checksum", "decode_block", "encode_block"]

_HEAD = struct.Struct("<II")  # length of the raw body, length of its header (with _TAIL: records follow the body)
_TAIL, _TAIL_AT = 1 << 31, struct.Struct("<I")  # length of the compressed body
_CODEC = pa.Codec("zstd", compression_level=1)
_NAMED = {"history": HISTORY_DTYPE}


def checksum(*parts: bytes) -> int:
    """Signed 64-bit XXH3 of the parts, as SQLite keeps integers."""
    digest = xxhash.xxh3_64()
    for part in parts:
        digest.update(part)
    value: int = digest.intdigest()
    return value - (1 << 64) if value >> 63 else value


def encode_block(columns: Mapping[str, npt.NDArray[Any] | Sequence[bytes]]) -> bytes:
    """Arrays (any flat dtype, or HISTORY_DTYPE), lists of bytes, and at most one run of `Records`, by name -> one block.
    Records stand behind the others, packed as they are."""
    header: list[tuple[str, str, int]] = []
    body: list[bytes] = []
    tail = b""
    for name, values in columns.items():
        if isinstance(values, np.ndarray):
            kind = "history" if values.dtype == HISTORY_DTYPE else values.dtype.str
            header.append((name, kind, len(values)))
            body.append(values.tobytes())
        elif isinstance(values, Records):
            assert not tail, "a block has one run of records"
            header.append((name, "records", len(values)))
            body.append((values.offsets[1:] - values.offsets[:-1]).astype(np.uint32).tobytes())
            tail = values.packed
        else:
            header.append((name, "bytes", len(values)))
            body.append(np.fromiter(map(len, values), np.uint32, len(values)).tobytes())
            body.extend(values)
    head = _said(tuple(header))
    raw = b"".join((head, *body))
    main = _CODEC.compress(raw, asbytes=True)
    if not tail:
        return _HEAD.pack(len(raw), len(head)) + main
    return b"".join((_HEAD.pack(len(raw), len(head) | _TAIL), _TAIL_AT.pack(len(main)), main, tail))


@lru_cache(maxsize=256)
def _said(header: tuple[tuple[str, str, int], ...]) -> bytes:
    """The header of a block; block after block says the same."""
    return json.dumps(header, separators=(",", ":")).encode()


def decode_block(block: bytes) -> dict[str, Any]:
    """The columns of `encode_block`; lists of bytes come back as lists, records as `Records`. Raises DamagedArtifact."""
    try:
        size, head_length = _HEAD.unpack_from(block)
        main, tail = block[_HEAD.size :], b""
        if head_length & _TAIL:
            head_length ^= _TAIL
            end = _TAIL_AT.size + _TAIL_AT.unpack_from(main)[0]
            main, tail = main[_TAIL_AT.size : end], main[end:]
        raw: bytes = _CODEC.decompress(main, size, asbytes=True)
        header = json.loads(raw[:head_length])
    except (struct.error, ValueError, OSError) as error:
        raise DamagedArtifact(f"journal block cannot be read: {error}", hint="restore the ledger from a copy") from error
    columns: dict[str, Any] = {}
    at = head_length
    for name, kind, count in header:
        dtype = np.dtype(np.uint32) if kind in ("bytes", "records") else _NAMED.get(kind) or np.dtype(kind)
        values = np.frombuffer(raw, dtype, count, at)
        at += values.nbytes
        if kind == "bytes":
            ends = (at + lengths_to_offsets(values)).tolist()
            columns[name] = [raw[a:b] for a, b in itertools.pairwise(ends)]
            at = ends[-1]
        elif kind == "records":
            columns[name] = Records(lengths_to_offsets(values), packed=tail)
        else:
            columns[name] = values
    return columns
