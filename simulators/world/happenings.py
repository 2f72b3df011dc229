"""Events of the world before they become log rows: one structured array, and how they arrive (late, twice)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from simulators.world.draws import Draws
from simulators.world.settings import DAY_US, HOUR_US, SECOND_US, WorldSettings

__all__ = ["HAPPENING", "arrivals", "event_ids", "happenings", "joined"]

# user, item, campaign: row numbers, -1 none. request_id, session: 0 none. note: index into the driver's attribute texts.
HAPPENING = np.dtype(
    [
        ("ts", "i8"),
        ("request_id", "u8"),
        ("session", "u8"),
        ("amount", "f8"),
        ("user", "i4"),
        ("slot", "i4"),
        ("item", "i4"),
        ("campaign", "i4"),
        ("position", "i4"),
        ("quantity", "i4"),
        ("note", "i4"),
        ("type", "i1"),
        ("channel", "i1"),
    ]
)
_NONE = {"slot": -1, "item": -1, "campaign": -1, "position": -1, "note": -1, "channel": -1, "amount": np.nan}


def happenings(rows: int, **columns: Any) -> npt.NDArray[np.void]:
    """`rows` events with the given columns (scalars broadcast), everything else "none"."""
    out = np.zeros(rows, HAPPENING)
    for name, value in {**_NONE, **columns}.items():
        out[name] = value
    return out


def joined(parts: list[npt.NDArray[np.void]]) -> npt.NDArray[np.void]:
    """All events, ordered by user, then time (ties keep their order)."""
    every = np.concatenate([np.empty(0, HAPPENING), *parts])
    return every[np.lexsort((every["ts"], every["user"]))]


def event_ids(draws: Draws, events: npt.NDArray[np.void], user: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """u64[n]: the same happening has the same id in every run. `user` u64[n] are the users' hashes."""
    names = ("ts", "type", "item", "slot", "channel", "note")
    return draws.bits("event.id", user, *(events[name] for name in names))


def arrivals(
    settings: WorldSettings, draws: Draws, event_id: npt.NDArray[np.uint64], ts: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """(ingested_at, ingested_at of the second copy, bool: arrives twice), each [n].

    Most events arrive within seconds; `late_share` of them hours to three days later; `duplicate_share` a second time."""
    quick = (draws.exponential("arrival.quick", event_id) * 2 * SECOND_US).astype(np.int64)
    late = draws.uniform("arrival.late", event_id) < settings.late_share
    delay = HOUR_US + (draws.uniform("arrival.delay", event_id) ** 2 * 3 * DAY_US).astype(np.int64)
    ingested = ts + np.where(late, delay, quick) + 1
    again = ingested + 5 * SECOND_US + (draws.uniform("arrival.again", event_id) * HOUR_US).astype(np.int64)
    return ingested, again, draws.uniform("arrival.twice", event_id) < settings.duplicate_share
