"""What the log once held and holds no more, by table and day: its watermark beside its files.

Every writer of the log leaves a watermark of how many rows it wrote. Fewer rows than that in the files mean that files are
missing or were cut; a replay goes on without them, and says so. Where users were erased, rows are gone on purpose, and
copies that a newer record took the place of are gone too: a few rows are no fault, so only what exceeds a hundredth of a
day's rows is told.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from serve_app.log.reader import read_log
from serve_app.log.snapshot import load_snapshot
from serve_app.log.writer import day_text

__all__ = ["MissingRows", "missing_rows"]

_TABLES = ("requests", "candidates", "decisions", "events")
_SHARE_TOLD = 0.01


@dataclass(frozen=True, slots=True)
class MissingRows:
    """Of one table and day (ISO, UTC): rows the watermark counts, and rows the log's files hold."""

    table: str
    day: str
    written: int
    found: int


def missing_rows(data: Path) -> list[MissingRows]:
    """Tables and days of which more than a hundredth is missing, by day. Empty for a log without watermarks."""
    marks = read_log(data, "watermark", columns=["table", "day", "rows"], journal=False)
    written: Counter[tuple[str, str]] = Counter()
    for table, day, rows in zip(*(marks[name].to_pylist() for name in ("table", "day", "rows")), strict=True):
        written[table, day_text(day)] += rows
    found: Counter[tuple[str, str]] = Counter()
    for one in load_snapshot(data).files:
        found[one.table, one.day] += one.rows
    return [
        MissingRows(table, day, rows, found[table, day])
        for (table, day), rows in sorted(written.items(), key=lambda item: item[0][::-1])
        if table in _TABLES and rows - found[table, day] > _SHARE_TOLD * rows
    ]
