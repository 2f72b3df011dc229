"""What a policy document forbids, read anew from its plain JSON by somebody who has never seen the gates.

Only what the chaos policies use is understood; anything else in a document (cells, experiments, quiet hours ...) is an
error, so that the checker cannot pass a rule over in silence.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

CHANNELS = ("push", "web_push", "email", "sms", "messenger", "in_app")
CLASSES = ("transactional", "informational", "advertising")
_HOUR_US = 3_600_000_000


@dataclass(frozen=True)
class Cap:
    """At most `limit` counted uses per value of `scope`: within `window_us`, or within a calendar `period`."""

    name: str
    scope: str
    only: frozenset[int]
    limit: int
    window_us: int
    period: str
    counts: frozenset[int]
    binds: frozenset[int]


@dataclass(frozen=True)
class Rules:
    """One revision."""

    revision: str
    caps: tuple[Cap, ...]
    gap_us: int
    gap_counts: frozenset[int]
    gap_binds: frozenset[int]
    default_zone: str


def rules_of(revision: str, document: dict[str, Any]) -> Rules:
    """The rules of a stored document (DATA/policies/<revision>.json)."""
    for name in ("cells", "experiments", "quiet_hours", "segments"):
        if document.get(name):
            raise ValueError(f"this checker knows nothing of {name}")
    classes = document["message_classes"]
    if document["duplicate_window_hours"] or any(one["bypass_caps"] for one in _others(classes)):
        raise ValueError("this checker knows nothing of duplicate windows and of exempt classes")
    gap = document["min_gap"]
    spared = {CLASSES.index(name) for name, one in classes.items() if one["bypass_min_gap"]}
    return Rules(
        revision,
        tuple(_cap(one) for one in document["caps"]),
        round(gap["minutes"] * 60_000_000),
        _classes(gap["counts"]),
        _classes(gap["binds"]) - spared,
        document["default_zone"],
    )


def _others(classes: dict[str, Any]) -> list[Any]:
    return [one for name, one in classes.items() if name != "transactional"]


def _classes(names: list[str]) -> frozenset[int]:
    return frozenset(CLASSES.index(name) for name in names)


def _cap(one: dict[str, Any]) -> Cap:
    if one["only"] and one["scope"] != "channel":
        raise ValueError("this checker reads `only` of channels alone")
    hours = one["window"]["rolling_hours"]
    return Cap(
        one["id"],
        one["scope"],
        frozenset(CHANNELS.index(name) for name in one["only"]),
        one["limit"],
        round(hours * _HOUR_US) if hours else 0,
        one["window"]["calendar"] or "",
        _classes(one["counts"]),
        _classes(one["binds"]),
    )


def period_key(day: date, period: str) -> int:
    """The calendar period a local day lies in: equal numbers, same period."""
    if period == "day":
        return day.toordinal()
    if period == "week":
        year, week, _ = day.isocalendar()
        return year * 100 + week
    return day.year * 100 + day.month


def local_date(at_us: int, zone: str) -> date:
    """The day on the wall of somebody in `zone`."""
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=at_us)
    return moment.astimezone(ZoneInfo(zone)).date()


def day_number(day: date) -> int:
    """Days since 1970-01-01."""
    return day.toordinal() - date(1970, 1, 1).toordinal()
