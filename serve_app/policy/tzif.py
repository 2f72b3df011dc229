"""Reading the tzdata package: TZif files (RFC 9636) into transitions, their POSIX footer rule extended to a last year."""

from __future__ import annotations

import re
import struct
from datetime import date, timedelta
from importlib import resources

import numpy as np
import numpy.typing as npt

from serve_app.errors import DamagedArtifact

__all__ = ["read_zone", "zone_names"]

I64 = npt.NDArray[np.int64]

_EPOCH = date(1970, 1, 1)
_RULE = re.compile(
    r"(?:<[^>]+>|[A-Za-z]+)(?P<std>[+-]?[\d:]+)(?:(?:<[^>]+>|[A-Za-z]+)(?P<dst>[+-]?[\d:]+)?,(?P<start>[^,]+),(?P<end>[^,]+))?"
)
_DAY = re.compile(r"M(\d+)\.(\d)\.(\d)(?:/([+-]?[\d:]+))?")


def zone_names() -> list[str]:
    """All IANA names of the installed tzdata, sorted: their positions are the zone indices."""
    return sorted(resources.files("tzdata").joinpath("zones").read_text(encoding="ascii").split())


def read_zone(name: str, last_year: int) -> tuple[I64, I64]:
    """(starts, offsets): from starts[i] (seconds UTC, first is the smallest i64) local time is UTC + offsets[i] seconds.

    Raises DamagedArtifact when the file is not TZif version 2 or later.
    """
    path = resources.files("tzdata").joinpath("zoneinfo", *name.split("/"))
    data = path.read_bytes()
    if data[:4] != b"TZif" or data[4:5] < b"2":
        raise DamagedArtifact(f"time zone file {name} is not TZif 2", field="tzdata", hint="reinstall tzdata")
    isut, isstd, leap, times, types, chars = struct.unpack(">6l", data[20:44])
    second = 44 + times * 5 + types * 6 + chars + leap * 8 + isstd + isut
    isut, isstd, leap, times, types, chars = struct.unpack(">6l", data[second + 20 : second + 44])
    at = second + 44
    starts = np.frombuffer(data, ">i8", times, at).astype(np.int64)
    kinds = np.frombuffer(data, "u1", times, at + times * 8)
    table = [struct.unpack_from(">lbb", data, at + times * 9 + i * 6) for i in range(types)]
    offsets = np.array([table[kind][0] for kind in kinds], np.int64)
    footer = data[at + times * 9 + types * 6 + chars + leap * 12 + isstd + isut :].strip(b"\n").decode("ascii")
    first = next((entry for entry in table if not entry[1]), table[0])[0]
    more_starts, more_offsets = _extend(footer, int(starts[-1]) if times else None, last_year, name)
    return (
        np.concatenate([[np.iinfo(np.int64).min], starts, more_starts]).astype(np.int64),
        np.concatenate([[first], offsets, more_offsets]).astype(np.int64),
    )


def _extend(footer: str, after: int | None, last_year: int, name: str) -> tuple[list[int], list[int]]:
    match = _RULE.fullmatch(footer)
    if match is None:
        raise DamagedArtifact(f"time zone {name} has the unreadable rule {footer!r}", field="tzdata")
    standard = -_seconds(match["std"])
    if match["start"] is None:
        return [], []
    daylight = -_seconds(match["dst"]) if match["dst"] else standard + 3600
    first_year = 1970 if after is None else (_EPOCH + timedelta(seconds=after)).year
    changes: list[tuple[int, int]] = []
    for year in range(first_year, last_year + 1):
        changes.append((_day_second(match["start"], year) - standard, daylight))
        changes.append((_day_second(match["end"], year) - daylight, standard))
    changes = sorted(change for change in changes if after is None or change[0] > after)
    return [start for start, _ in changes], [offset for _, offset in changes]


def _day_second(text: str, year: int) -> int:
    """Local seconds since 1970 of a POSIX `Mm.w.d/time` rule in a year."""
    match = _DAY.fullmatch(text)
    if match is None:
        raise DamagedArtifact(f"time zone rule {text!r} is of no known form", field="tzdata")
    month, week, weekday = int(match[1]), int(match[2]), int(match[3])
    first = date(year, month, 1)
    day = first + timedelta(days=(weekday - first.isoweekday()) % 7 + 7 * (week - 1))
    if day.month != month:
        day -= timedelta(days=7)
    return (day - _EPOCH).days * 86_400 + (_seconds(match[4]) if match[4] else 7_200)


def _seconds(text: str) -> int:
    sign = -1 if text.startswith("-") else 1
    parts = [int(part) for part in text.lstrip("+-").split(":")] + [0, 0]
    return sign * (parts[0] * 3600 + parts[1] * 60 + parts[2])
