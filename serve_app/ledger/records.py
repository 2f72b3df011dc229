"""Decision records of a batch as one run of bytes: packed once, where they are made, and stored as they came.

They look alike, so that together they compress about sevenfold; between processes and into the ledger's file they travel
packed, and are unpacked only where somebody reads one.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from serve_app.batch import lengths_to_offsets
from serve_app.errors import DamagedArtifact
from serve_app.kernels import kernel

__all__ = ["Records", "assemble", "unpacked"]

I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]
_CODEC = pa.Codec("zstd", compression_level=1)
_COUNT = struct.Struct("<I")


def unpacked(size: int, packed: bytes) -> bytes:
    """`size` bytes. Raises DamagedArtifact."""
    try:
        raw: bytes = _CODEC.decompress(packed, size, asbytes=True)
    except (OSError, ValueError) as error:
        raise DamagedArtifact(f"records cannot be unpacked: {error}", hint="restore the ledger from a copy") from error
    return raw


class Records(Sequence[bytes]):
    """n byte strings, record i at offsets[i]:offsets[i + 1] (i64[n + 1]) of one run, given as it is or packed."""

    __slots__ = ("_packed", "_raw", "offsets")

    def __init__(self, offsets: I64, raw: bytes | None = None, packed: bytes | None = None) -> None:
        self.offsets, self._raw, self._packed = offsets, raw, packed

    @classmethod
    def of(cls, records: Sequence[bytes]) -> Records:
        """From separate byte strings."""
        if isinstance(records, Records):
            return records
        return cls(lengths_to_offsets(np.fromiter(map(len, records), np.int64, len(records))), b"".join(records))

    @property
    def raw(self) -> bytes:
        """All records, one after the other. Raises DamagedArtifact."""
        if self._raw is None:
            assert self._packed is not None
            self._raw = unpacked(int(self.offsets[-1]), self._packed)
        return self._raw

    @property
    def packed(self) -> bytes:
        """All records, compressed."""
        if self._packed is None:
            assert self._raw is not None
            self._packed = _CODEC.compress(self._raw, asbytes=True)
        return self._packed

    def alone(self, row: int) -> tuple[int, bytes]:
        """Length of one record, and its bytes packed: what `unpacked` takes."""
        if len(self) == 1:
            return int(self.offsets[-1]), self.packed
        record = self[row]
        return len(record), _CODEC.compress(record, asbytes=True)

    @property
    def present(self) -> int:
        """How many are not empty."""
        return int(np.count_nonzero(self.offsets[1:] > self.offsets[:-1]))

    def take(self, rows: I64) -> Records:
        """The records of `rows`, in that order."""
        if len(rows) == len(self) and bool((rows == np.arange(len(self))).all()):
            return self
        return Records.of([self[row] for row in rows.tolist()])

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, row: int) -> bytes: ...
    @overload
    def __getitem__(self, row: slice) -> list[bytes]: ...
    def __getitem__(self, row: int | slice) -> bytes | list[bytes]:
        if isinstance(row, slice):
            return [self[one] for one in range(*row.indices(len(self)))]
        if not -len(self) <= row < len(self):
            raise IndexError(row)
        row %= len(self)
        return self.raw[self.offsets[row] : self.offsets[row + 1]]

    def __iter__(self) -> Iterator[bytes]:
        raw = self.raw
        return (raw[start:stop] for start, stop in pairwise(self.offsets.tolist()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[object, ...]:
        return (_packed_records, (self.offsets.tobytes(), self.packed))


def _packed_records(offsets: bytes, packed: bytes) -> Records:
    return Records(np.frombuffer(bytearray(offsets), np.int64), packed=packed)


@kernel
def _assemble(
    head: U8, count_at: int, counts: npt.NDArray[np.uint32], requests: U8, wide: int, candidates: U8, narrow: int,
    offsets: I64, starts: I64, out: U8,
) -> None:  # fmt: skip
    for r in range(len(counts)):
        at = starts[r]
        for i in range(len(head)):
            out[at + i] = head[i]
        for i in range(4):
            out[at + count_at + i] = (counts[r] >> np.uint32(8 * i)) & np.uint32(255)
        at += len(head)
        for i in range(wide):
            out[at + i] = requests[r * wide + i]
        at += wide
        first = offsets[r] * narrow
        for i in range((offsets[r + 1] - offsets[r]) * narrow):
            out[at + i] = candidates[first + i]


def assemble(
    head: bytes, count_at: int, requests: npt.NDArray[np.void], candidates: npt.NDArray[np.void], offsets: I64
) -> Records:
    """One record per row of `requests`: `head` with the number of its candidates as u32 at `count_at`, its row, and its rows
    of `candidates` (offsets[r]:offsets[r + 1])."""
    if len(requests) == 1:
        start, end = count_at, count_at + _COUNT.size
        record = b"".join((head[:start], _COUNT.pack(len(candidates)), head[end:], requests.tobytes(), candidates.tobytes()))
        return Records(np.array([0, len(record)], np.int64), record)
    wide, narrow, counts = requests.dtype.itemsize, candidates.dtype.itemsize, np.diff(offsets)
    starts = lengths_to_offsets(len(head) + wide + counts * narrow)
    out = np.empty(int(starts[-1]), np.uint8)
    _assemble(
        np.frombuffer(bytearray(head), np.uint8), count_at, counts.astype(np.uint32), _bytes(requests), wide,
        _bytes(candidates), narrow, np.ascontiguousarray(offsets), starts, out,
    )  # fmt: skip
    return Records(starts, out.tobytes())


def _bytes(rows: npt.NDArray[np.void]) -> U8:
    return rows.view(np.uint8).reshape(-1) if rows.dtype.itemsize and len(rows) else np.empty(0, np.uint8)
