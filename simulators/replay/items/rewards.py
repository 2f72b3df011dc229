"""What each shown slot brought within a window of its list.

An event counts for the (list, slot) whose decision it carries. A conversion without one goes to the user's last click that
carries one, if it came within the window before. Clicks and carts of one slot count once; conversions and their money add.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from serve_app.noise import hash_key
from serve_app.vocabulary import EventType
from simulators.replay.items.logged import Lists, gathered
from simulators.replay.items.spec import METRICS

__all__ = ["EVENT_COLUMNS", "slot_rewards"]

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

EVENT_COLUMNS = ("user", "ts", "type", "decision_request_id", "slot", "amount")
_KINDS = (EventType.click, EventType.add_to_cart, EventType.conversion)


def slot_rewards(lists: Lists, events: pa.Table, window_us: int) -> F64:
    """f64[s, METRICS] of the rows of `lists.shown()`. events: EVENT_COLUMNS of the same users, in any order."""
    user, at, kind, request, slot, amount = _told(events)
    request, slot, since = _from_clicks(user, at, kind, request, slot)
    row = _rows_of(lists, user, request)
    shown = lists.shown()
    length = np.bincount(lists.owner[shown], minlength=len(lists))
    first = np.cumsum(length) - length
    late = at - lists.requests["decided_at"][np.maximum(row, 0)]
    mine = (row >= 0) & (late >= 0) & (np.maximum(late, since) < window_us) & (slot >= 0)
    mine[mine] &= slot[mine] < length[row[mine]]
    place, kind, amount = first[row[mine]] + slot[mine], kind[mine], amount[mine]
    out = np.zeros((len(shown), len(METRICS)))
    for column, event in enumerate(_KINDS[:2]):
        out[np.unique(place[kind == event]), column] = 1.0
    bought = kind == EventType.conversion
    out[:, 2] = np.bincount(place[bought], minlength=len(shown))
    out[:, 3] = np.bincount(place[bought], weights=amount[bought], minlength=len(shown))
    return out


def _told(events: pa.Table) -> tuple[U64, I64, I64, U64, I64, F64]:
    """Columns of the events that can count, by user and time; request 0: the event carries no decision."""
    mine = events.filter(pc.is_in(events["type"], pa.array([int(one) for one in _KINDS], events["type"].type)))
    filled = pa.table({name: pc.fill_null(mine[name], 0) for name in EVENT_COLUMNS})
    columns = {name: gathered(filled, name) for name in EVENT_COLUMNS}
    order = np.lexsort((columns["ts"], columns["user"]))
    user, at, kind, request, slot, amount = (columns[name][order] for name in EVENT_COLUMNS)
    return user, at, kind.astype(np.int64), request, slot.astype(np.int64), amount.astype(np.float64)


def _from_clicks(user: U64, at: I64, kind: I64, request: U64, slot: I64) -> tuple[U64, I64, I64]:
    """request and slot, those of organic conversions taken from the user's last click; and how long ago that was."""
    places = np.arange(len(at))
    clicked = np.where((kind == EventType.click) & (request != 0), places, -1)
    last = np.maximum.accumulate(clicked) if len(at) else clicked
    organic = (kind == EventType.conversion) & (request == 0) & (last >= 0) & (user != 0)
    organic &= user[last] == user
    since = np.where(organic, at - at[last], 0)
    return np.where(organic, request[last], request), np.where(organic, slot[last], slot), since


def _rows_of(lists: Lists, user: U64, request: U64) -> I64:
    """The list of each (user, request); -1: none of these."""
    keys = hash_key(0, lists.logged_user, lists.requests["request_id"])
    order, wanted = np.argsort(keys, kind="stable"), hash_key(0, user, request)
    if not len(order):
        return np.full(len(user), -1, np.int64)
    found = order[np.minimum(np.searchsorted(keys[order], wanted), len(order) - 1)]
    return np.where((keys[found] == wanted) & (request != 0), found, -1)
