"""Regions (ISO 3166-1 alpha-2) as small integers: the two letters in base 26, so the index needs no table."""

from __future__ import annotations

from functools import cache
from importlib import resources

from serve_app.errors import InvalidInput

__all__ = ["REGIONS", "UNKNOWN_REGION", "assigned_regions", "region_index", "region_name"]

REGIONS = 26 * 26
UNKNOWN_REGION = -1


def region_index(code: str) -> int:
    """ "KR" or "kr" -> i16 index. Raises InvalidInput for anything but two letters A-Z."""
    letters = code.upper()
    if len(letters) != 2 or not letters.isascii() or not letters.isalpha():
        raise InvalidInput(f"{code[:20]!r} is not a region", field="region", hint="use an ISO 3166-1 code such as KR")
    return (ord(letters[0]) - 65) * 26 + ord(letters[1]) - 65


def region_name(index: int) -> str:
    """i16 index -> "KR"; "" for UNKNOWN_REGION."""
    if index == UNKNOWN_REGION:
        return ""
    if not 0 <= index < REGIONS:
        raise InvalidInput(f"{index} is not a region index", field="region")
    return chr(65 + index // 26) + chr(65 + index % 26)


@cache
def assigned_regions() -> frozenset[str]:
    """Lower-case codes that ISO 3166-1 assigns, from the table that comes with the IANA time zones."""
    table = resources.files("tzdata").joinpath("zoneinfo", "iso3166.tab").read_text(encoding="utf-8")
    return frozenset(line[:2].lower() for line in table.splitlines() if line and not line.startswith("#"))
