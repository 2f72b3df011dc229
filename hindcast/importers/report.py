"""What an import did with every row: kept, mended or refused, and why."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from serve_app.errors import HindcastError

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["ImportReport"]


@dataclass(slots=True)
class ImportReport:
    """Counts of rows of the source. Every row is in `kept` or `refused`, once; `mended` rows are among the kept, perhaps
    for several reasons. `written` counts rows of catalogue and log; `notes` are choices a reader should know."""

    source: str
    rows_in: int = 0
    kept: dict[str, int] = field(default_factory=dict)
    mended: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    written: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    synthetic_clock: bool = False
    seconds: float = 0.0

    def check(self) -> None:
        """Every row of the source is accounted for."""
        told = sum(self.kept.values()) + sum(self.refused.values())
        if told != self.rows_in:
            raise HindcastError(f"{self.rows_in} rows in, {told} accounted for", field=f"import.{self.source}")

    def as_json(self) -> str:
        """The whole report."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False)

    def table(self) -> Table:
        """For the terminal."""
        from rich.table import Table

        out = Table("", "what", "rows", title=f"import {self.source}: {self.rows_in:,} rows in {self.seconds:.1f} s")
        out.columns[2].justify = "right"
        for heading, counts in (("kept", self.kept), ("mended", self.mended), ("refused", self.refused)):
            for reason, count in sorted(counts.items(), key=lambda pair: -pair[1]):
                out.add_row(heading, reason, f"{count:,}")
            out.add_section()
        for table, count in self.written.items():
            out.add_row("written", table, f"{count:,}")
        return out
