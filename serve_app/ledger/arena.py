"""Many growing lists in one array: what histories and recents of a large population lie in.

Each list is a run of fixed-width records (whole 8-byte words) with room to grow. A full run moves to the end with
more room; when more than half of the arena is abandoned runs, all lists are packed anew. Reads and appends touch whole
batches.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from serve_app.batch import lengths_to_offsets
from serve_app.kernels import kernel

__all__ = ["Arena"]

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
_ROOM = 4


@kernel
def _copy(out: U64, out_at: I64, source: U64, source_at: I64, lengths: I64, width: int) -> None:
    for i in range(len(lengths)):
        target, start = out_at[i] * width, source_at[i] * width
        for word in range(lengths[i] * width):
            out[target + word] = source[start + word]


@kernel
def _leading_before(times: I64, starts: I64, lengths: I64, cutoff: I64, most: I64, newest: I64) -> I64:
    """How many leading records of each list to drop: older than its cutoff, or beyond `most` records. newest[i]
    becomes the latest time dropped (unchanged where nothing is)."""
    drop = np.zeros(len(lengths), np.int64)
    for i in range(len(lengths)):
        k = 0
        while k < lengths[i] and (times[starts[i] + k] < cutoff[i] or lengths[i] - k > most[i]):
            newest[i] = max(newest[i], times[starts[i] + k])
            k += 1
        drop[i] = k
    return drop


class Arena:
    """Lists of `dtype` records (itemsize a multiple of 8; first field an i8 time named `at`)."""

    def __init__(self, dtype: np.dtype[np.void]) -> None:
        if dtype.itemsize % 8:
            raise ValueError(f"record size {dtype.itemsize} is not a multiple of 8")
        self.dtype = dtype
        self.width = dtype.itemsize // 8
        self.words = np.empty(64 * self.width, np.uint64)
        self.end = 0  # records handed out
        self.start = np.zeros(0, np.int64)
        self.length = np.zeros(0, np.int64)
        self.room = np.zeros(0, np.int64)

    def grow_rows(self, rows: int) -> None:
        """Have at least `rows` lists; new ones are empty."""
        extra = rows - len(self.start)
        if extra > 0:
            zeros = np.zeros(extra, np.int64)
            self.start, self.length, self.room = (np.concatenate((a, zeros)) for a in (self.start, self.length, self.room))

    @property
    def records(self) -> npt.NDArray[np.void]:
        """All records, handed out or not; positions are those of `start`."""
        return self.words.view(self.dtype)

    def gather(self, rows: I64) -> tuple[npt.NDArray[np.void], I64]:
        """Records of lists `rows` one after the other, and offsets i64[n + 1]. Row -1 is an empty list."""
        if len(rows) == 1 and len(self.length):
            return self._gather_one(int(rows[0]))
        known = rows >= 0
        lengths = np.where(known, self.length[rows], 0) if len(self.length) else np.zeros(len(rows), np.int64)
        starts = np.where(known, self.start[rows], 0) if len(self.start) else lengths
        offsets = lengths_to_offsets(lengths)
        out = np.empty(int(offsets[-1]) * self.width, np.uint64)
        _copy(out, offsets[:-1], self.words, starts, lengths, self.width)
        return out.view(self.dtype), offsets

    def _gather_one(self, row: int) -> tuple[npt.NDArray[np.void], I64]:
        start, length = (int(self.start[row]), int(self.length[row])) if row >= 0 else (0, 0)
        found = self.words[start * self.width : (start + length) * self.width].copy()
        return found.view(self.dtype), np.array([0, length], np.int64)

    def append(self, rows: I64, new: npt.NDArray[np.void], offsets: I64) -> None:
        """Append `new[offsets[i]:offsets[i + 1]]` to list rows[i]; rows are distinct."""
        counts = offsets[1:] - offsets[:-1]
        touched = np.flatnonzero(counts)
        if len(touched) == 0:
            return
        rows, starts, counts = rows[touched], offsets[:-1][touched], counts[touched]
        self._make_room(rows, counts)
        source = np.ascontiguousarray(new, self.dtype).view(np.uint64)
        _copy(self.words, self.start[rows] + self.length[rows], source, starts, counts, self.width)
        self.length[rows] += counts

    def replace(self, rows: I64, new: npt.NDArray[np.void], offsets: I64) -> None:
        """Make `new[offsets[i]:offsets[i + 1]]` the whole of list rows[i]; rows are distinct."""
        self.length[rows] = 0
        self.append(rows, new, offsets)

    def trim(self, rows: I64, cutoff: I64, most: int, newest: I64) -> None:
        """Drop leading records with at < cutoff[i], and leading ones beyond `most`; `newest` as `_leading_before`."""
        times = self.records["at"]
        drop = _leading_before(
            times, self.start[rows], self.length[rows], cutoff, np.full(len(rows), most, np.int64), newest
        )
        self.start[rows] += drop
        self.length[rows] -= drop
        self.room[rows] -= drop

    def _make_room(self, rows: I64, counts: I64) -> None:
        need = self.length[rows] + counts
        wanted = np.maximum(_ROOM, need + (need >> 1))
        moving = need > self.room[rows]
        if not moving.any():
            return
        if self.end + int(wanted[moving].sum()) > len(self.words) // self.width:
            self._pack(int(wanted.sum()))
            moving = need > self.room[rows]  # packing took away the room that some of the others had
        rows, room = rows[moving], wanted[moving]
        total = int(room.sum())
        starts = self.end + lengths_to_offsets(room)[:-1]
        _copy(self.words, starts, self.words, self.start[rows], self.length[rows], self.width)
        self.start[rows], self.room[rows] = starts, room
        self.end += total

    def _pack(self, extra: int) -> None:
        """Move all lists to the front of an array that has room for `extra` more records, growing it only if needed."""
        room = np.where(self.length > 0, np.minimum(self.room, self.length + (self.length >> 1) + 1), 0)
        used = int(room.sum())
        have = len(self.words) // self.width
        capacity = have if (used + extra) * 2 <= have else (used + extra) * 2
        starts = lengths_to_offsets(room)[:-1]
        words = np.empty(capacity * self.width, np.uint64)
        _copy(words, starts, self.words, self.start, self.length, self.width)
        self.words, self.start, self.room, self.end = words, starts, room, used
