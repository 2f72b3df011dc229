"""What each logged decision brought: attributed rewards, within a window of the decision.

An event counts for the decision whose id it carries. A conversion without one goes to the user's last click that carries
one, if it came within the window before. Repeated clicks of one send count once; conversions and their money add.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from serve_app.noise import hash_key
from serve_app.vocabulary import Action, EventType
from simulators.replay.opportunities import Opportunities

__all__ = ["EVENT_COLUMNS", "METRICS", "attributed"]

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

METRICS = ("sends", "clicks", "conversions", "revenue", "opt_outs")
EVENT_COLUMNS = ("user", "ts", "type", "decision_request_id", "slot", "amount")
_ONCE = {EventType.click: 1, EventType.opt_out: 4}


def attributed(asked: Opportunities, events: pa.Table, window_us: int) -> F64:
    """f64[n, METRICS] of each logged request, all its sends together. events: EVENT_COLUMNS of the same users."""
    out = np.zeros((len(asked), len(METRICS)))
    granted = asked.logged["granted"] & (asked.logged["action"] == Action.send)
    chosen = (asked.logged_candidates["slot"] >= 0) & asked.logged["granted"][asked.batch.owner]
    out[:, 0] = np.where(granted, np.bincount(asked.batch.owner[chosen], minlength=len(asked)), 0)
    user, at, kind, request, slot, amount = _sorted(events)
    request, slot = _conversions_to_clicks(user, at, kind, request, slot, window_us)
    row = _rows_of(asked, user, request)
    mine = row >= 0
    mine[mine] &= granted[row[mine]]
    late = at - asked.batch.requests["decided_at"][np.maximum(row, 0)]
    mine &= (late >= 0) & (late < window_us)
    row, kind, slot, amount = row[mine], kind[mine], slot[mine], amount[mine]
    for event, column in _ONCE.items():
        of_kind = kind == event
        pairs = np.unique(np.stack([row[of_kind], slot[of_kind]]), axis=1)
        out[:, column] = np.bincount(pairs[0], minlength=len(asked))
    bought = kind == EventType.conversion
    out[:, 2] = np.bincount(row[bought], minlength=len(asked))
    out[:, 3] = np.bincount(row[bought], weights=amount[bought], minlength=len(asked))
    return out


def _sorted(events: pa.Table) -> tuple[U64, I64, npt.NDArray[np.int8], U64, I64, F64]:
    """Columns by user and time; request 0: the event carries no decision."""
    columns = {name: events[name].combine_chunks() for name in EVENT_COLUMNS}
    filled = {name: one.fill_null(0).to_numpy(zero_copy_only=False) for name, one in columns.items()}
    order = np.lexsort((filled["ts"], filled["user"]))
    names = ("user", "ts", "type", "decision_request_id", "slot", "amount")
    user, at, kind, request, slot, amount = (filled[name][order] for name in names)
    return user, at, kind, request, slot.astype(np.int64), amount


def _conversions_to_clicks(
    user: U64, at: I64, kind: npt.NDArray[np.int8], request: U64, slot: I64, window_us: int
) -> tuple[U64, I64]:
    """request and slot, those of organic conversions taken from the user's last click within the window."""
    places = np.arange(len(at))
    clicked = np.where((kind == EventType.click) & (request != 0), places, -1)
    last = np.maximum.accumulate(clicked) if len(at) else clicked
    organic = (kind == EventType.conversion) & (request == 0) & (last >= 0)
    organic &= (user[last] == user) & (at - at[last] < window_us)
    return np.where(organic, request[last], request), np.where(organic, slot[last], slot)


def _rows_of(asked: Opportunities, user: U64, request: U64) -> I64:
    """Row of each (user, request); -1: none of these."""
    requests = asked.batch.requests
    keys = hash_key(0, requests["user"], requests["request_id"])
    order = np.argsort(keys, kind="stable")
    wanted = hash_key(0, user, request)
    if not len(order):
        return np.full(len(user), -1, np.int64)
    found = order[np.minimum(np.searchsorted(keys[order], wanted), len(order) - 1)]
    same = (requests["user"][found] == user) & (requests["request_id"][found] == request)
    return np.where(same, found, -1)
