"""The log as a trace of HTTP requests that a load test can send again.

What the log keeps is what was decided on, so requests come back in meaning, not byte for byte: ids by the dictionaries,
items only where the dictionary has them. Left out: children of pages and of deferrals (no client sent those), reviews (the
log does not keep which were named) and requests whose ids nobody can name any more. Events lose their decision ids, which
would be those of another run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from loadtests.scenarios.trace import write_trace
from serve_app.errors import InvalidInput
from serve_app.ids import hash_ids
from serve_app.log.reader import read_log
from serve_app.vocabulary import Channel, EventType, Origin, Surface

__all__ = ["TraceMade", "make_trace"]

_REQUESTS = (
    "user", "ts", "request_id", "parent_request_id", "surface", "origin", "anchor", "excluded", "slots", "context_device",
)  # fmt: skip
_CANDIDATES = ("request_id", "idx", "campaign", "channel")
_EVENTS = ("user", "ts", "event_id", "type", "item", "campaign", "channel", "quantity", "amount", "currency", "stars")
_CALLS = {
    Surface.related: "/v1/recommendations/related",
    Surface.gateway: "/v1/recommendations/gateway",
    Surface.widgets: "/v1/widgets/rank",
    Surface.notification: "/v1/notifications/decide",
}
_DEVICES = ("unknown", "app", "mobile_web", "desktop")
# Not: what names a decision, which would be of another run; facts about users (a load test must not withdraw anybody's
# consent, nor give uses back).
_TOLD = ("view", "click", "add_to_cart", "conversion", "dismiss", "seen")
_NONE = pa.scalar(0, pa.uint64())
_MOST_DAYS = 3_660
Row = Mapping[str, Any]


@dataclass
class TraceMade:
    """What is in a trace, and what is not and why."""

    requests: int
    seconds: float
    by_path: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class _Names:
    """Texts of hashes."""

    users: Mapping[int, str]
    items: Mapping[int, str]
    campaigns: Mapping[int, str]


def make_trace(data: Path, out: Path, *, start: int, end: int, most: int) -> TraceMade:
    """Write the trace of what was asked from `start` to `end` (microseconds UTC). InvalidInput where there is nothing.

    most: requests at most, the earliest ones.
    """
    names = _names(data)
    days = _days(start, end)
    left_out: Counter[str] = Counter()
    found = _asked(data, names, days, start, end, left_out) + _happened(data, names, days, start, end, left_out)
    if not found:
        raise InvalidInput(
            "nothing was asked in this time", field=str(data), hint="see `hindcast log` for the days there are"
        )
    found.sort(key=lambda one: one["at"])
    found = found[:most]
    first, last = found[0]["at"], found[-1]["at"]
    made = TraceMade(len(found), (last - first) / 1e6, Counter(one["path"] for one in found), left_out)
    head = {"requests": made.requests, "seconds": made.seconds, "from": _text(first), "to": _text(last)}
    write_trace(out, ({**one, "at": (one["at"] - first) / 1e6} for one in found), head)
    return made


def _names(data: Path) -> _Names:
    users, items = read_log(data, "users", columns=["user", "user_id"]), read_log(data, "items", columns=["item", "item_id"])
    campaigns = data / "catalogue" / "campaigns.parquet"
    ids = pq.read_table(campaigns, columns=["campaign_id"])["campaign_id"].to_pylist() if campaigns.exists() else []
    return _Names(_dictionary(users), _dictionary(items), dict(zip(hash_ids(ids).tolist(), ids, strict=True)))


def _dictionary(table: pa.Table) -> dict[int, str]:
    keys, texts = (column.to_pylist() for column in table.columns)
    return dict(zip(keys, texts, strict=True))


def _days(start: int, end: int) -> list[str] | None:
    """The days to read; None: whatever there is."""
    first, last = start // 86_400_000_000, (end - 1) // 86_400_000_000
    return None if last - first > _MOST_DAYS else [str(np.datetime64(day, "D")) for day in range(first, last + 1)]


def _read(data: Path, table: str, columns: Sequence[str], days: list[str] | None, start: int, end: int) -> pa.Table:
    rows = read_log(data, table, columns=list(dict.fromkeys([*columns, "ts"])), days=days)
    within = pc.and_(pc.greater_equal(rows["ts"], start), pc.less(rows["ts"], end))
    return rows.filter(within)


def _asked(
    data: Path, names: _Names, days: list[str] | None, start: int, end: int, left_out: Counter[str]
) -> list[dict[str, Any]]:
    rows = _read(data, "requests", _REQUESTS, days, start, end)
    pages = _pages(rows)
    client = pc.and_(pc.equal(rows["parent_request_id"], _NONE), pc.not_equal(rows["origin"], int(Origin.deferral)))
    left_out["children of pages and deferrals"] += len(rows) - (pc.sum(client).as_py() or 0)
    rows = rows.filter(client)
    candidates = _candidates(data, names, days, start, end)
    out = []
    for row in rows.to_pylist():
        made = _request(row, names, pages, candidates)
        if isinstance(made, str):
            left_out[made] += 1
        else:
            out.append(made)
    return out


def _pages(rows: pa.Table) -> dict[int, int]:
    """Root requests of pages -> products in each widget."""
    children = rows.filter(
        pc.and_(pc.not_equal(rows["parent_request_id"], _NONE), pc.equal(rows["surface"], int(Surface.gateway)))
    )
    return dict(zip(children["parent_request_id"].to_pylist(), children["slots"].to_pylist(), strict=True))


def _candidates(data: Path, names: _Names, days: list[str] | None, start: int, end: int) -> dict[int, list[dict[str, str]]]:
    rows = _read(data, "candidates", _CANDIDATES, days, start, end)
    rows = rows.filter(pc.not_equal(rows["campaign"], _NONE))
    out: dict[int, list[dict[str, str]]] = {}
    for row in rows.select(["request_id", "campaign", "channel"]).to_pylist():
        campaign = names.campaigns.get(row["campaign"])
        if campaign is not None and row["channel"] >= 0:
            out.setdefault(row["request_id"], []).append({"campaign": campaign, "channel": Channel(row["channel"]).name})
    return out


def _request(
    row: Row, names: _Names, pages: Mapping[int, int], candidates: Mapping[int, list[dict[str, str]]]
) -> dict[str, Any] | str:
    """A request of the log as one of HTTP, or why not."""
    surface = Surface(row["surface"])
    user = names.users.get(row["user"])
    if surface is Surface.notification:
        named = candidates.get(row["request_id"])
        if user is None or not named:
            return "nobody knows the user's or the campaigns' names"
        return _call(row, _CALLS[surface], user, {"user": user, "candidates": named[:200]})
    body: dict[str, Any] = {"device": _DEVICES[max(row["context_device"], 0)]}
    body |= {"user": user} if user is not None else {}
    excluded = [names.items[one] for one in row["excluded"] or () if one in names.items]
    body |= {"exclude": excluded} if excluded else {}
    if surface is Surface.related:
        item = names.items.get(row["anchor"])
        return _call(row, _CALLS[surface], user, {**body, "item": item, "slots": row["slots"]}) if item else "unknown items"
    if surface is Surface.widgets and row["request_id"] in pages:
        products = min(max(pages[row["request_id"]], 1), 50)
        return _call(row, _CALLS[Surface.gateway], user, {**body, "widgets": min(row["slots"], 20), "slots": products})
    if surface is Surface.reviews:
        return "reviews"
    asked = {"slots": min(row["slots"], 50)}
    return _call(row, _CALLS[surface], user, {**body, **asked})


def _call(row: Row, path: str, user: str | None, body: Any) -> dict[str, Any]:
    return {"at": row["ts"], "method": "POST", "path": path, "user": user or "", "body": body}


def _happened(
    data: Path, names: _Names, days: list[str] | None, start: int, end: int, left_out: Counter[str]
) -> list[dict[str, Any]]:
    rows = _read(data, "events", _EVENTS, days, start, end)
    told: Callable[[int], bool] = {int(EventType[name]) for name in _TOLD if name in EventType.__members__}.__contains__
    return list(_calls_of_events(rows.to_pylist(), names, told, left_out))


def _calls_of_events(
    rows: Sequence[Row], names: _Names, told: Callable[[int], bool], left_out: Counter[str]
) -> Iterator[dict[str, Any]]:
    for row in rows:
        user = names.users.get(row["user"])
        if user is None or not told(row["type"]):
            left_out["events that set a user's state, or of users nobody can name"] += 1
            continue
        event = {
            "specversion": "1.0", "id": f"{row['event_id']:016x}", "source": "/trace", "type": EventType(row["type"]).name,
            "subject": user, "time": _text(row["ts"]), "data": _data(row, names),
        }  # fmt: skip
        yield _call(row, "/v1/events", user, [event])


def _data(row: Row, names: _Names) -> dict[str, Any]:
    said: dict[str, Any] = {name: row[name] for name in ("quantity", "amount", "currency", "stars")}
    said |= {"item": names.items.get(row["item"]), "campaign": names.campaigns.get(row["campaign"])}
    said["channel"] = None if row["channel"] is None else Channel(row["channel"]).name
    return {name: value for name, value in said.items() if value is not None}


def _text(at_us: int) -> str:
    return datetime.fromtimestamp(at_us / 1e6, UTC).isoformat()
