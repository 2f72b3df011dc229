"""Journal blocks: the columns of one write as compressed, checksummed bytes.

A block is what one commit (or one batch of events) adds; the SQLite backend appends it, and answers when it is durable.
Decision records of a batch look alike, so that together they compress about tenfold.
"""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from serve_app.batch import lengths_to_offsets
from serve_app.errors import DamagedArtifact
from serve_app.ledger.protocol import HISTORY_DTYPE

__all__ = ["checksum", "decode_block", "encode_block"]

_HEAD = struct.Struct("<II")  # length of the raw body, length of its header
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
    """Arrays (any flat dtype, or HISTORY_DTYPE) and lists of bytes, by name -> one block."""
    header: list[tuple[str, str, int]] = []
    body: list[bytes] = []
    for name, values in columns.items():
        if isinstance(values, np.ndarray):
            kind = "history" if values.dtype == HISTORY_DTYPE else values.dtype.str
            header.append((name, kind, len(values)))
            body.append(values.tobytes())
        else:
            header.append((name, "bytes", len(values)))
            body.append(np.fromiter(map(len, values), np.uint32, len(values)).tobytes())
            body.extend(values)
    head = json.dumps(header, separators=(",", ":")).encode()
    raw = b"".join((head, *body))
    return _HEAD.pack(len(raw), len(head)) + _CODEC.compress(raw, asbytes=True)


def decode_block(block: bytes) -> dict[str, Any]:
    """The columns of `encode_block`; lists of bytes come back as lists. Raises DamagedArtifact."""
    try:
        size, head_length = _HEAD.unpack_from(block)
        raw: bytes = _CODEC.decompress(block[_HEAD.size :], size, asbytes=True)
        header = json.loads(raw[:head_length])
    except (struct.error, ValueError, OSError) as error:
        raise DamagedArtifact(f"journal block cannot be read: {error}", hint="restore the ledger from a copy") from error
    columns: dict[str, Any] = {}
    at = head_length
    for name, kind, count in header:
        dtype = np.dtype(np.uint32) if kind == "bytes" else _NAMED.get(kind) or np.dtype(kind)
        values = np.frombuffer(raw, dtype, count, at)
        at += values.nbytes
        if kind == "bytes":
            ends = (at + lengths_to_offsets(values)).tolist()
            columns[name] = [raw[a:b] for a, b in itertools.pairwise(ends)]
            at = ends[-1]
        else:
            columns[name] = values
    return columns
