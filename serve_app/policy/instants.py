"""RFC 3339 text <-> microseconds since 1970 UTC."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

__all__ = ["instant_text", "instant_us"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def instant_us(text: str) -> int:
    """i64 microseconds of an `Instant` of the policy document (ValueError when it is none)."""
    return (datetime.fromisoformat(text) - _EPOCH) // timedelta(microseconds=1)


def instant_text(at: int) -> str:
    """UTC text of i64 microseconds, to the second."""
    return (_EPOCH + timedelta(microseconds=at)).isoformat(timespec="seconds").replace("+00:00", "Z")
