"""Time zones as arrays: local days and seconds of i64 UTC microseconds, inside kernels, daylight saving right.

A zone's index is its position among the sorted IANA names of the installed tzdata, hence the same in all processes of one
constraints file. Transitions reach to the end of 2100; later times keep the last offset.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.errors import InvalidInput
from serve_app.kernels import kernel
from serve_app.policy.tzif import read_zone, zone_names

__all__ = [
    "UNKNOWN_ZONE",
    "ZoneTable",
    "day_at",
    "local_day",
    "local_second_of_day",
    "offset_at",
    "utc_at",
    "utc_of_local",
    "zone_count",
    "zone_index",
    "zone_name",
    "zone_table",
]

I64 = npt.NDArray[np.int64]
I16 = npt.NDArray[np.int16]

UNKNOWN_ZONE = -1
SECOND = 1_000_000
DAY = 86_400 * SECOND
_LAST_YEAR = 2100


@dataclass(frozen=True, slots=True)
class ZoneTable:
    """All zones. Zone z owns rows first[z] .. first[z + 1] of `starts` and `offsets` (both microseconds)."""

    names: tuple[str, ...]
    first: I64
    starts: I64
    offsets: I64

    @property
    def arrays(self) -> tuple[Any, ...]:
        """What kernels take: (first, starts, offsets), all i64."""
        return self.first, self.starts, self.offsets


@cache
def _names() -> tuple[tuple[str, ...], dict[str, int]]:
    names = tuple(zone_names())
    return names, {name: index for index, name in enumerate(names)}


@cache
def zone_table() -> ZoneTable:
    """The table of this process, read from the tzdata package at first use."""
    names = _names()[0]
    parts = [read_zone(name, _LAST_YEAR) for name in names]
    lengths = [len(starts) for starts, _ in parts]
    first = np.zeros(len(names) + 1, np.int64)
    np.cumsum(lengths, out=first[1:])
    lowest, highest = np.iinfo(np.int64).min // SECOND, np.iinfo(np.int64).max // SECOND
    starts = np.clip(np.concatenate([starts for starts, _ in parts]), lowest, highest) * SECOND
    return ZoneTable(names, first, starts, np.concatenate([offsets for _, offsets in parts]) * SECOND)


def zone_index(name: str) -> int:
    """Index of an IANA name. Raises InvalidInput when tzdata has no such zone."""
    index = _names()[1].get(name)
    if index is None:
        hint = "use an IANA name such as Asia/Seoul"
        raise InvalidInput(f"{name[:60]!r} is not a time zone", field="zone", hint=hint)
    return index


def zone_count() -> int:
    """How many zones there are; indices are below."""
    return len(_names()[0])


def zone_name(index: int) -> str:
    """IANA name of an index; "" for UNKNOWN_ZONE."""
    if index == UNKNOWN_ZONE:
        return ""
    names = _names()[0]
    if not 0 <= index < len(names):
        raise InvalidInput(f"{index} is not a zone index", field="zone")
    return names[index]


@kernel
def row_at(ts: int, zone: int, first: I64, starts: I64) -> int:
    """Scalar, inside kernels: the row of `starts` in force at `ts` (binary search)."""
    low, high = first[zone], first[zone + 1]
    while high - low > 1:
        middle = (low + high) >> 1
        if starts[middle] <= ts:
            low = middle
        else:
            high = middle
    return low


@kernel
def offset_at(ts: int, zone: int, first: I64, starts: I64, offsets: I64) -> int:
    """Scalar, inside kernels: microseconds local time is ahead of UTC at `ts`."""
    return offsets[row_at(ts, zone, first, starts)]


@kernel
def day_at(ts: int, zone: int, first: I64, starts: I64, offsets: I64) -> int:
    """Scalar, inside kernels: local days since 1970-01-01."""
    return (ts + offset_at(ts, zone, first, starts, offsets)) // DAY


@kernel
def utc_at(local: int, zone: int, later: bool, first: I64, starts: I64, offsets: I64) -> int:
    """Scalar, inside kernels: UTC of local wall clock microseconds. A time that occurs twice gives the earlier or `later`
    instant; a time the clock skips gives the instant of the jump."""
    row = row_at(local - 2 * DAY, zone, first, starts)
    last = first[zone + 1] - 1
    result, found = local - offsets[row], False
    while row <= last and starts[row] <= local + 2 * DAY:
        ts = local - offsets[row]
        if starts[row] <= ts and (row == last or ts < starts[row + 1]):
            result = ts if later or not found else result
            found = True
        elif not found and row > first[zone] and ts < starts[row] <= local - offsets[row - 1]:
            result, found = starts[row], True
        row += 1
    return result


@kernel
def _days(ts: I64, zone: I16, first: I64, starts: I64, offsets: I64, out: npt.NDArray[np.int32]) -> None:
    for i in range(len(ts)):
        out[i] = day_at(ts[i], zone[i], first, starts, offsets)


@kernel
def _seconds(ts: I64, zone: I16, first: I64, starts: I64, offsets: I64, out: npt.NDArray[np.int32]) -> None:
    for i in range(len(ts)):
        local = ts[i] + offset_at(ts[i], zone[i], first, starts, offsets)
        out[i] = (local - local // DAY * DAY) // SECOND


@kernel
def _utc(days: I64, seconds: I64, zone: I16, later: bool, first: I64, starts: I64, offsets: I64, out: I64) -> None:
    for i in range(len(days)):
        out[i] = utc_at(days[i] * DAY + seconds[i] * SECOND, zone[i], later, first, starts, offsets)


def _checked(zone: npt.ArrayLike, rows: int) -> I16:
    if isinstance(zone, np.ndarray) and zone.dtype == np.int16 and zone.shape == (rows,):
        zones: I16 = np.ascontiguousarray(zone)
    else:
        zones = np.ascontiguousarray(np.broadcast_to(np.asarray(zone, np.int16), (rows,)))
    if rows and (zones.min() < 0 or zones.max() >= len(_names()[0])):
        raise InvalidInput("a zone index is out of range", field="zone", hint="zone_index(name) gives valid ones")
    return zones


def local_day(ts: npt.ArrayLike, zone: npt.ArrayLike) -> npt.NDArray[np.int32]:
    """i64[n] UTC microseconds, i16[n] or one zone -> i32[n] days since 1970-01-01 on the local calendar."""
    times = np.atleast_1d(np.asarray(ts, np.int64))
    out, table = np.empty(len(times), np.int32), zone_table()
    _days(times, _checked(zone, len(times)), table.first, table.starts, table.offsets, out)
    return out


def local_second_of_day(ts: npt.ArrayLike, zone: npt.ArrayLike) -> npt.NDArray[np.int32]:
    """i64[n] UTC microseconds, i16[n] or one zone -> i32[n] wall clock seconds since local midnight."""
    times = np.atleast_1d(np.asarray(ts, np.int64))
    out, table = np.empty(len(times), np.int32), zone_table()
    _seconds(times, _checked(zone, len(times)), table.first, table.starts, table.offsets, out)
    return out


def utc_of_local(day: npt.ArrayLike, second: npt.ArrayLike, zone: npt.ArrayLike, *, later: bool = True) -> I64:
    """Local day and wall clock second -> i64[n] UTC microseconds; see `utc_at` for times that occur twice or never."""
    days = np.atleast_1d(np.asarray(day, np.int64))
    seconds = np.ascontiguousarray(np.broadcast_to(np.asarray(second, np.int64), days.shape))
    out, table = np.empty(len(days), np.int64), zone_table()
    _utc(days, seconds, _checked(zone, len(days)), later, table.first, table.starts, table.offsets, out)
    return out
