"""One day's events as columns, and what segments count in them.

A day's events are grouped by type, then by user (ascending hash), then in order of time: per type and user there is one
run of `at`, so a whole day inside a window costs one step a user, and the last event of a user is the end of the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from serve_app.kernels import kernel
from serve_app.vocabulary import EventType

__all__ = ["DAY_US", "NEVER", "DayEvents", "EventColumns", "EventHistory", "group_events"]

Bools = npt.NDArray[np.bool_]
I8 = npt.NDArray[np.int8]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]

DAY_US = 86_400_000_000
NEVER = np.iinfo(np.int64).min


@dataclass(frozen=True, slots=True)
class EventColumns:
    """n events as logged, in any order. item u64, 0: none."""

    user: U64
    type: I8
    at: I64
    event_id: U64
    ingested_at: I64
    item: U64


@dataclass(frozen=True, slots=True)
class DayEvents:
    """The events of one UTC day, each once.

    users u64[k] and items u64[i]: sorted and distinct. types i8[b], ascending; blocks i64[b + 1]: runs of each type; codes
    u32[g]: the run's position in `users`; starts i64[g + 1]: the run's events; at i64[n] microseconds UTC; item u32[n]:
    position in `items`.
    """

    users: U64
    items: U64
    types: I8
    blocks: I64
    codes: U32
    starts: I64
    at: I64
    item: U32

    def __len__(self) -> int:
        return len(self.at)

    def runs(self, event: EventType) -> tuple[int, int]:
        """First and last-plus-one run of a type."""
        place = int(np.searchsorted(self.types, int(event)))
        if place == len(self.types) or self.types[place] != event:
            return 0, 0
        return int(self.blocks[place]), int(self.blocks[place + 1])


def group_events(events: EventColumns) -> DayEvents:
    """One day's events, grouped. Of events of one user that share an event id the one ingested first stays, as in the log's
    compaction (ties: the earliest); anonymous ones are left out. The order of the rows does not matter."""
    rows = _distinct(events)
    order = rows[np.lexsort((events.event_id[rows], events.at[rows], events.user[rows], events.type[rows]))]
    user, kind = events.user[order], events.type[order]
    users, items = np.unique(user), np.unique(events.item[order])
    new = np.ones(len(order), np.bool_)
    new[1:] = (user[1:] != user[:-1]) | (kind[1:] != kind[:-1])
    first = np.flatnonzero(new)
    types, of_run = np.unique(kind[first], return_index=True)
    return DayEvents(
        users=users,
        items=items,
        types=types.astype(np.int8),
        blocks=np.append(of_run, len(first)).astype(np.int64),
        codes=np.searchsorted(users, user[first]).astype(np.uint32),
        starts=np.append(first, len(order)).astype(np.int64),
        at=np.ascontiguousarray(events.at[order]),
        item=np.searchsorted(items, events.item[order]).astype(np.uint32),
    )


def _distinct(events: EventColumns) -> I64:
    """Rows to keep."""
    order = np.lexsort((events.event_id, events.user))
    if not bool(np.any(_repeats(events, order))):
        return np.flatnonzero(events.user != 0)
    order = np.lexsort((events.type, events.item, events.at, events.ingested_at, events.event_id, events.user))
    keep = events.user[order] != 0
    keep[1:] &= ~_repeats(events, order)
    rows: I64 = order[keep]
    return rows


def _repeats(events: EventColumns, order: I64) -> Bools:
    """bool[n - 1]: the row after is the same event of the same user, in an order that has these together."""
    user, event_id = events.user[order], events.event_id[order]
    repeats: Bools = (user[1:] == user[:-1]) & (event_id[1:] == event_id[:-1])
    return repeats


@kernel
def _count(
    row: I32, codes: U32, starts: I64, at: I64, item: U32, wanted: Bools, first: int, last: int,
    after: int, until: int, whole: bool, counts: U32,
) -> None:  # fmt: skip
    """Add each user's events with after < at <= until to `counts`. whole: all of the day's are. wanted: by item; empty:
    any item."""
    for run in range(first, last):
        user = row[codes[run]]
        if user < 0:
            continue
        if whole and len(wanted) == 0:
            counts[user] += starts[run + 1] - starts[run]
            continue
        found = 0
        for event in range(starts[run], starts[run + 1]):
            if after < at[event] <= until and (len(wanted) == 0 or wanted[item[event]]):
                found += 1
        counts[user] += found


@kernel
def _places(keys: U64, asked: U64, place: I32) -> None:
    """Where each of `asked` stands in `keys`, both sorted; -1: nowhere. Doubling steps from the one before, so that a few
    or many asked cost in proportion."""
    low = 0
    for i in range(len(asked)):
        step, high = 1, low
        while high < len(keys) and keys[high] < asked[i]:
            low, high = high + 1, high + step
            step *= 2
        high = min(high, len(keys))
        while low < high:
            middle = (low + high) // 2
            if keys[middle] < asked[i]:
                low = middle + 1
            else:
                high = middle
        place[i] = low if low < len(keys) and keys[low] == asked[i] else -1


@kernel
def _last(row: I32, codes: U32, starts: I64, at: I64, first: int, last: int, until: int, latest: I64) -> None:
    for run in range(first, last):
        user = row[codes[run]]
        if user < 0:
            continue
        event = starts[run + 1] - 1
        while event >= starts[run] and at[event] > until:
            event -= 1
        if event >= starts[run] and at[event] > latest[user]:
            latest[user] = at[event]


class EventHistory:
    """Days of events over a population (`users` u64[n], sorted). `days`: by day number since 1970-01-01 UTC, ascending.

    items u64[k] (sorted) and item_category i32[k]: the category of each known item, as an index of `categories`.
    """

    def __init__(
        self, users: U64, days: Sequence[tuple[int, DayEvents]], items: U64, item_category: I32, categories: Sequence[str]
    ) -> None:
        self._users, self._days = users, list(days)
        self._items, self._item_category, self.categories = items, item_category, tuple(categories)
        self._rows: dict[int, I32] = {}

    def count(self, event: EventType, after: int, until: int, category: str | None = None) -> U32:
        """u32[n]: each user's events of a type with after < time <= until (microseconds), of items of `category`."""
        counts = np.zeros(len(self._users), np.uint32)
        anything = np.empty(0, np.bool_)
        for day, one in self._days:
            opens, closes = day * DAY_US, (day + 1) * DAY_US
            first, last = one.runs(event)
            if closes <= after or opens > until or first == last:
                continue
            wanted = anything if category is None else self._of_category(one, category)
            _count(
                self._row(day, one), one.codes, one.starts, one.at, one.item, wanted, first, last,
                after, until, after < opens and closes <= until + 1, counts,
            )  # fmt: skip
        return counts

    def last(self, event: EventType, until: int) -> I64:
        """i64[n]: time of each user's last event of a type with time <= until; NEVER: none."""
        latest = np.full(len(self._users), NEVER, np.int64)
        for day, one in self._days:
            first, last = one.runs(event)
            if day * DAY_US <= until and first < last:
                _last(self._row(day, one), one.codes, one.starts, one.at, first, last, until, latest)
        return latest

    def _row(self, day: int, one: DayEvents) -> I32:
        """i32[k]: population row of each of the day's users; -1: not in it."""
        known = self._rows.get(day)
        if known is None:
            known = self._rows[day] = np.empty(len(one.users), np.int32)
            _places(self._users, one.users, known)
        return known

    def _of_category(self, one: DayEvents, category: str) -> Bools:
        """bool[i]: which of the day's items are of `category`."""
        wanted = np.zeros(len(one.items), np.bool_)
        if category in self.categories:
            place = np.empty(len(one.items), np.int32)
            _places(self._items, one.items, place)
            known = place >= 0
            wanted[known] = self._item_category[place[known]] == self.categories.index(category)
        return wanted


FIELDS = tuple(one.name for one in fields(DayEvents))
