"""One user's history while the user's requests are walked: entries in a few arrays that stay in the cache.

Entries begin .. end are kept; those before `recent` lie outside every window of the policies at the time of the request.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from serve_app.kernels import inlined, kernel
from serve_app.ledger.columns import Histories
from serve_app.ledger.refunds import flag_refunded, is_refunded
from serve_app.policy.tables import SCOPE_CAMPAIGN, SCOPE_CATEGORY, SCOPE_CHANNEL
from serve_app.policy.zones import DAY, SECOND, offset_at, row_at, zone_table
from simulators.replay.histories import Failures
from simulators.replay.stream.pointers import i1, i2, i4, i8, plain, u1, u8

__all__ = [
    "BEGIN",
    "END",
    "RECENT",
    "Entries",
    "Failed",
    "Start",
    "Zones",
    "append",
    "entries",
    "entries_at",
    "failed_at",
    "failed_of",
    "has_room",
    "load",
    "look_back",
    "refund",
    "start_at",
    "start_of",
    "trim",
    "turn_to",
    "zones",
    "zones_at",
]  # fmt: skip

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
I16 = npt.NDArray[np.int16]
I8 = npt.NDArray[np.int8]
U8 = npt.NDArray[np.uint8]
U64 = npt.NDArray[np.uint64]

# Entries.place[...]: which entries there are, the zone their `days` are of, and its offset between two times.
BEGIN, END, RECENT, ZONE, SINCE, UNTIL, OFFSET = range(7)
_FOREVER = np.iinfo(np.int64).max


class Entries(NamedTuple):
    """Fields as HISTORY_DTYPE has them; days: local day in the user's present zone; newest: latest time up to each entry;
    place: see above. Their keys by the scope of a cap are `Tables.keys`."""

    at: I64
    campaign: U64
    holdout: U64
    request_id: U64
    local_day: I32
    slot: I16
    kind: I8
    flags: U8
    days: I64
    newest: I64
    place: I64
    room: int


@inlined
def entries_at(t: I64) -> Entries:
    """Inside kernels: from the addresses of `Entries`."""
    return Entries(
        i8(t[0]), u8(t[1]), u8(t[2]), u8(t[3]), i4(t[4]), i2(t[5]), i1(t[6]), u1(t[7]), i8(t[8]), i8(t[9]), i8(t[10]), t[11]
    )


class Start(NamedTuple):
    """Histories of all users, field by field, between `offsets`."""

    at: I64
    campaign: U64
    category: U64
    holdout: U64
    request_id: U64
    local_day: I32
    slot: I16
    channel: I8
    message_class: I8
    flags: U8
    offsets: I64


@inlined
def start_at(t: I64) -> Start:
    """Inside kernels: from the addresses of a `Start`."""
    return Start(
        i8(t[0]), u8(t[1]), u8(t[2]), u8(t[3]), u8(t[4]), i4(t[5]), i2(t[6]), i1(t[7]), i1(t[8]), u1(t[9]), i8(t[10])
    )


class Failed(NamedTuple):
    """See `simulators.replay.histories.Failures`. next is read and never moved."""

    begin: I64
    end: I64
    next: I64
    at: I64
    request: U64
    slot: I16


@inlined
def failed_at(t: I64) -> Failed:
    """Inside kernels: from the addresses of a `Failed`."""
    return Failed(i8(t[0]), i8(t[1]), i8(t[2]), i8(t[3]), u8(t[4]), i2(t[5]))


class Zones(NamedTuple):
    """See `serve_app.policy.zones.ZoneTable`."""

    first: I64
    starts: I64
    offsets: I64


@inlined
def zones_at(t: I64) -> Zones:
    """Inside kernels: from the addresses of `Zones`."""
    return Zones(i8(t[0]), i8(t[1]), i8(t[2]))


def entries(room: int) -> Entries:
    """Room for so many entries."""
    return Entries(
        np.empty(room, np.int64), np.empty(room, np.uint64), np.empty(room, np.uint64), np.empty(room, np.uint64),
        np.empty(room, np.int32), np.empty(room, np.int16), np.empty(room, np.int8), np.empty(room, np.uint8),
        np.empty(room, np.int64), np.empty(room, np.int64), np.zeros(7, np.int64), room,
    )  # fmt: skip


def start_of(histories: Histories | None, users: int) -> Start:
    """None: nobody has any."""
    known = histories if histories is not None else Histories.empty(users)
    fields = {name: np.ascontiguousarray(known.entries[name]) for name in Start._fields[:-1]}
    return Start(**fields, offsets=plain(np.asarray(known.offsets, np.int64)))


def failed_of(failures: Failures) -> Failed:
    """As kernels take them."""
    return Failed(*(plain(getattr(failures, name)) for name in Failed._fields))


def zones() -> Zones:
    """All zones of this process."""
    return Zones(*zone_table().arrays)


@inlined
def turn_to(h: Entries, at: int, zone: int, z: Zones) -> int:
    """The offset in force at `at` in a zone; where the zone is another than before, all entries' days are its own."""
    place = h.place
    if zone == place[ZONE] and place[SINCE] <= at < place[UNTIL]:
        return place[OFFSET]
    row = row_at(at, zone, z.first, z.starts)
    place[SINCE], place[OFFSET] = z.starts[row], z.offsets[row]
    place[UNTIL] = z.starts[row + 1] if row + 1 < z.first[zone + 1] else _FOREVER
    if zone != place[ZONE]:
        place[ZONE] = zone
        for e in range(place[BEGIN], place[END]):
            h.days[e] = (h.at[e] + offset_at(h.at[e], zone, z.first, z.starts, z.offsets)) // DAY
    return place[OFFSET]


@kernel
def load(h: Entries, keys: U64, u: int, start: Start) -> bool:
    """Begin with user u. False where there is no room."""
    place, count = h.place, start.offsets[u + 1] - start.offsets[u]
    place[BEGIN], place[END], place[RECENT], place[ZONE], place[SINCE], place[UNTIL] = 0, count, 0, -1, 0, 0
    if count > h.room:
        return False
    for e in range(count):
        s = start.offsets[u] + e
        h.at[e], h.campaign[e], h.holdout[e] = start.at[s], start.campaign[s], start.holdout[s]
        h.request_id[e], h.local_day[e], h.slot[e] = start.request_id[s], start.local_day[s], start.slot[s]
        h.kind[e], h.flags[e] = start.message_class[s], start.flags[s]
        keys[SCOPE_CHANNEL, e] = np.uint64(np.int64(start.channel[s]))
        keys[SCOPE_CATEGORY, e], keys[SCOPE_CAMPAIGN, e] = start.category[s], start.campaign[s]
        h.newest[e] = max(h.at[e], h.newest[e - 1]) if e else h.at[e]
    return True


@kernel
def has_room(h: Entries, keys: U64, count: int) -> bool:
    """Is there room for `count` more entries? Moves the entries to the front where half of the room lies before them."""
    place = h.place
    if place[END] + count <= h.room:
        return True
    begin = place[BEGIN]
    if begin * 2 < h.room:
        return False
    for e in range(begin, place[END]):
        t = e - begin
        h.at[t], h.campaign[t], h.holdout[t], h.request_id[t] = h.at[e], h.campaign[e], h.holdout[e], h.request_id[e]
        h.local_day[t], h.slot[t], h.kind[t], h.flags[t] = h.local_day[e], h.slot[e], h.kind[e], h.flags[e]
        h.days[t], h.newest[t] = h.days[e], h.newest[e]
        for scope in range(4):
            keys[scope, t] = keys[scope, e]
    place[END] -= begin
    place[RECENT] -= begin
    place[BEGIN] = 0
    return place[END] + count <= h.room


@inlined
def append(
    h: Entries, keys: U64, e: int, at: int, day: int, request_id: np.uint64, slot: int, campaign: np.uint64,
    category: np.uint64, channel: int, kind: int, holdout: np.uint64, flags: int,
) -> None:  # fmt: skip
    """Set entry e, for which there is room."""
    h.at[e], h.campaign[e], h.holdout[e], h.request_id[e] = at, campaign, holdout, request_id
    h.local_day[e], h.slot[e], h.kind[e], h.flags[e], h.days[e] = day, slot, kind, flags, day
    keys[SCOPE_CHANNEL, e] = np.uint64(np.int64(channel))
    keys[SCOPE_CATEGORY, e], keys[SCOPE_CAMPAIGN, e] = category, campaign
    h.newest[e] = max(at, h.newest[e - 1]) if e > h.place[BEGIN] else at


@inlined
def trim(h: Entries, cutoff: int) -> None:
    """Drop leading entries older than that."""
    place = h.place
    while place[BEGIN] < place[END] and h.at[place[BEGIN]] < cutoff:
        place[BEGIN] += 1
    place[RECENT] = max(place[RECENT], place[BEGIN])


@inlined
def look_back(h: Entries, at: int, longest: int) -> None:
    """Set `recent`: entries before it are all older than `longest` at `at` (and a second more)."""
    place, since = h.place, at - longest - SECOND
    while place[RECENT] < place[END] and h.newest[place[RECENT]] < since:
        place[RECENT] += 1
    while place[RECENT] > place[BEGIN] and h.newest[place[RECENT] - 1] >= since:
        place[RECENT] -= 1


@kernel
def refund(h: Entries, f: int, end: int, begin: int, at: int, read: int, known: int, failed: Failed) -> int:
    """Flag the sends whose failure was known, as `simulators.replay.histories.UserHistories.refund`; f: the user's first
    failure that is not applied. Returns the next one."""
    place, seen = h.place, 0
    for e in range(place[BEGIN], place[END]):
        seen += 1 if is_refunded(h.flags[e]) else 0
    while f < end:
        if known >= 0:
            due = f - begin < known
        elif read >= 0:
            due = seen < read
        else:
            due = failed.at[f] <= at
        if not due:
            break
        seen += flag_refunded(
            place[BEGIN], place[END], failed.request[f], failed.slot[f], h.request_id, h.slot, h.holdout, h.flags
        )
        f += 1
    return f
