"""What a stored policy forbids, read from its document by plain Python that shares no code with the gates."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from functools import cache
from importlib import resources
from pathlib import Path
from zoneinfo import ZoneInfo

from serve_app.errors import HindcastError
from serve_app.policies import read_policy
from serve_app.policy.document import PolicyDocument
from serve_app.policy.overrides import CELL_ROOTS, EXPERIMENT_ROOTS, apply_overrides
from serve_app.policy.rules import RegionRule
from serve_app.vocabulary import Channel, MessageClass

__all__ = [
    "Policies", "channel_name", "class_name", "day_number", "local", "period_of", "region_rule", "within",
]  # fmt: skip

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@cache
def _zone(name: str) -> ZoneInfo:
    """From the tzdata package: the machine's own may be of another year."""
    with resources.files("tzdata").joinpath("zoneinfo", *name.split("/")).open("rb") as stream:
        return ZoneInfo.from_file(stream, name)


def local(at: int, zone: str) -> datetime:
    """The wall clock of `zone` at microseconds UTC."""
    return (_EPOCH + timedelta(microseconds=at)).astimezone(_zone(zone))


def within(now: time, start: str, end: str) -> bool:
    """start <= now < end on a clock that runs over midnight where end is not after start; "24:00" is midnight."""
    seconds = now.hour * 3600 + now.minute * 60 + now.second
    first, last = (int(text[:2]) * 3600 + int(text[3:5]) * 60 for text in (start, end))
    return first <= seconds < last if first < last else seconds >= first or seconds < last


def day_number(day: date) -> int:
    """Days since 1970-01-01."""
    return (day - date(1970, 1, 1)).days


def period_of(number: int, kind: str) -> tuple[int, ...]:
    """Which calendar day, ISO week or month a local day (days since 1970-01-01) lies in."""
    day = date(1970, 1, 1) + timedelta(days=number)
    if kind == "day":
        return (number,)
    return day.isocalendar()[:2] if kind == "week" else (day.year, day.month)


class Policies:
    """The documents of a data folder, by revision, arms and cell: experiments and cells change rules."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._known: dict[tuple[str, int, int], PolicyDocument | None] = {}

    def document(self, revision: str, arm_bits: int, cell: int) -> PolicyDocument | None:
        """The rules in force for a request; None where the folder does not hold the policy."""
        key = (revision, arm_bits, cell)
        if key not in self._known:
            self._known[key] = self._built(*key)
        return self._known[key]

    def _built(self, revision: str, arm_bits: int, cell: int) -> PolicyDocument | None:
        try:
            document = read_policy(self._data, revision)
        except HindcastError:
            return None
        overrides: dict[str, object] = {}
        for place, experiment in enumerate(document.experiments):
            arm = (arm_bits >> 4 * place & 15) - 1
            overrides |= experiment.arms[arm].overrides if arm >= 0 else {}
        changed = (
            apply_overrides(document, overrides, field="experiments", roots=EXPERIMENT_ROOTS) if overrides else document
        )
        own = document.cells.variants[cell].overrides if document.cells and cell >= 0 else {}
        return apply_overrides(changed, own, field="cells", roots=CELL_ROOTS) if own else changed


def region_rule(document: PolicyDocument, region: str) -> RegionRule:
    """The law of a region."""
    return document.regions.get(region.lower(), document.other_regions)


def class_name(number: int) -> str:
    """Advertising where it is not known."""
    return MessageClass(number).name if number >= 0 else MessageClass.advertising.name


def channel_name(number: int) -> str:
    """Its name in documents."""
    return Channel(number).name
