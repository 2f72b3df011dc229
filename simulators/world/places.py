"""Where users live: time zones with their clock changes, and regions. Korea first."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

from simulators.world.settings import HOUR_US, SECOND_US

__all__ = ["PLACES", "LocalClock", "Place"]

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Place:
    """A zone (IANA), its region (ISO 3166-1), and the share of users living there."""

    zone: str
    region: str
    share: float


PLACES = (
    Place("Asia/Seoul", "KR", 0.72),
    Place("Asia/Tokyo", "JP", 0.08),
    Place("America/New_York", "US", 0.07),
    Place("America/Los_Angeles", "US", 0.04),
    Place("Europe/London", "GB", 0.04),
    Place("Europe/Berlin", "DE", 0.03),
    Place("Australia/Sydney", "AU", 0.02),
)


class LocalClock:
    """UTC offsets of all places, hour by hour, over the world's range (clocks here change on whole hours)."""

    def __init__(self, start_us: int, days: int) -> None:
        hours = (days + 4) * 24
        self._first = start_us - 2 * 24 * HOUR_US
        self._offsets = np.empty((len(PLACES), hours), np.int64)
        for row, place in enumerate(PLACES):
            zone = ZoneInfo(place.zone)
            for hour in range(hours):
                at = datetime.fromtimestamp((self._first + hour * HOUR_US) / SECOND_US, UTC).astimezone(zone)
                offset = at.utcoffset()
                assert offset is not None  # an aware datetime always has one
                self._offsets[row, hour] = int(offset.total_seconds()) * SECOND_US

    def offset_us(self, place: npt.NDArray[np.int16], at: I64) -> I64:
        """UTC offset of each (place, instant), microseconds."""
        hour = np.clip((at - self._first) // HOUR_US, 0, self._offsets.shape[1] - 1)
        result: I64 = self._offsets[place, hour]
        return result

    def local_hour(self, place: npt.NDArray[np.int16], at: I64) -> npt.NDArray[np.int8]:
        """Hour of day (0..23) on the wall clock."""
        local = at + self.offset_us(place, at)
        return ((local // HOUR_US) % 24).astype(np.int8)

    def at_local_hour(self, place: npt.NDArray[np.int16], day_start: int, hour: npt.NDArray[np.float64]) -> I64:
        """The instant within the UTC day starting at `day_start` whose wall clock shows `hour` (fractional, 0..24)."""
        wanted = (hour * HOUR_US).astype(np.int64)
        offset = self.offset_us(place, np.full(len(place), day_start + 12 * HOUR_US, np.int64))
        return day_start + (wanted - offset) % (24 * HOUR_US)
