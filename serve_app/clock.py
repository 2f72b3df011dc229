"""The one place of the server that reads the wall clock. Decisions get `now` from here, stamped once at admission."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from functools import lru_cache

__all__ = ["micros_of", "monotonic_s", "now_us", "set_clock_skew", "text_of"]

_skew_us = 0


def now_us() -> int:
    """Microseconds since 1970-01-01 UTC."""
    return time.time_ns() // 1000 + _skew_us


def set_clock_skew(skew_us: int) -> None:
    """Let this process's clock run ahead (or behind) by so much. For tests of clocks that disagree: a server calls it only
    where `Settings.testing` asks for it, which `Settings.checked` allows on expendable data folders alone."""
    global _skew_us
    _skew_us = skew_us


def monotonic_s() -> float:
    """Seconds of a clock that never goes back: for deadlines and budgets inside one process."""
    return time.monotonic()


def micros_of(moment: datetime) -> int:
    """A moment with a zone -> microseconds since 1970-01-01 UTC, exactly."""
    delta = moment.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


def text_of(at_us: int) -> str:
    """Microseconds since 1970-01-01 UTC -> RFC 3339 text in UTC."""
    seconds, micros = divmod(at_us, 1_000_000)
    return f"{_text_of_second(seconds)}.{micros:06d}Z" if micros else f"{_text_of_second(seconds)}Z"


@lru_cache(maxsize=1024)
def _text_of_second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().removesuffix("+00:00")
