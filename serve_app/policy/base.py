"""What all parts of a policy document share: the strict base model and the small value types."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictFloat, StringConstraints

from serve_app.policy.instants import instant_us

__all__ = [
    "Action",
    "ChannelName",
    "ClassName",
    "Identifier",
    "Instant",
    "LocalTime",
    "Percent",
    "Probability",
    "Salt",
    "Strict",
    "SurfaceName",
    "seconds_of_day",
]


class Strict(BaseModel):
    """Immutable and closed: unknown keys are errors. Its children's numbers and flags are pydantic's strict ones: "3" is no
    number, 1 is no flag, 3.0 is no count."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


ChannelName = Literal["push", "web_push", "email", "sms", "messenger", "in_app"]
ClassName = Literal["transactional", "informational", "advertising"]
SurfaceName = Literal["related", "gateway", "widgets", "reviews", "notification"]
Action = Literal["drop", "defer"]

Identifier = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_\-]{0,63}$")]
Salt = Annotated[str, StringConstraints(min_length=1, max_length=64)]
Probability = Annotated[StrictFloat, Field(ge=0.0, le=1.0)]

_TIME = re.compile(r"([01]\d|2[0-3]):([0-5]\d)(?::([0-5]\d))?", re.ASCII)


def _check_time(value: Any) -> Any:
    if not isinstance(value, str) or not (_TIME.fullmatch(value) or value == "24:00"):
        raise ValueError(f'{_shown(value)} is not a time of day; write it in quotes as "HH:MM" or "HH:MM:SS"')
    return value


def _check_percent(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value * 100 - round(value * 100)) > 1e-6:
        raise ValueError(f"{value} has more than two decimals; percent is exact to 0.01")
    return value


def _check_instant(value: Any) -> Any:
    form = r"\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d)?(Z|[+-]\d\d:\d\d)"
    if not isinstance(value, str) or not re.fullmatch(form, value, re.ASCII):
        raise ValueError(f"{_shown(value)} is not an instant; write date, time and offset as 2026-01-31T09:00:00+09:00")
    try:
        instant_us(value)
    except (ValueError, OverflowError):
        raise ValueError(f"{value!r} is no day and time of the calendar") from None
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


LocalTime = Annotated[str, BeforeValidator(_check_time)]
"""Local wall clock time, "HH:MM" or "HH:MM:SS"; "24:00" is the end of the day."""

Percent = Annotated[StrictFloat, Field(ge=0.0, le=100.0), BeforeValidator(_check_percent)]
"""0 to 100, exact to 0.01."""

Instant = Annotated[str, BeforeValidator(_check_instant)]
"""RFC 3339 date and time with its offset."""


def seconds_of_day(time: str) -> int:
    """Seconds after local midnight of a `LocalTime`."""
    hours, minutes, *rest = (int(part) for part in time.split(":"))
    return hours * 3600 + minutes * 60 + (rest[0] if rest else 0)
