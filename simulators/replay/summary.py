"""A replay's counts in a few lines."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from serve_app.vocabulary import Reason

__all__ = ["summary", "write_counts"]


def write_counts(counts: pa.Table, out: Path) -> Path:
    """All counts (`simulators.replay.counts.COUNTS`) as ``OUT/counts.parquet``."""
    path, aside = out / "counts.parquet", out / ".counts.parquet.new"
    pq.write_table(counts, aside)
    aside.replace(path)
    return path


def summary(counts: pa.Table, targets: Sequence[str]) -> list[tuple[str, ...]]:
    """Rows (what, logged, each target): volumes, reach, reasons, and how far the log's environment goes."""
    total: defaultdict[tuple[str, str, str, int], int] = defaultdict(int)
    for row in counts.to_pylist():
        total[row["policy"], row["measure"], row["dimension"], row["key"]] += row["value"]
    names = ["logged", *targets]

    def line(text: str, measure: str, dimension: str = "", key: int = 0) -> tuple[str, ...]:
        return (text, *(f"{total[name, measure, dimension, key]:,}" for name in names))

    decisions = {name: sum(total[name, "decisions", "reason", int(one)] for one in Reason) for name in names}
    rows = [
        ("decisions", *(f"{decisions[name]:,}" for name in names)),
        line("sends", "sends"),
        line("users", "users"),
        line("users reached", "users_reached"),
    ]
    seen = [one for one in Reason if any(total[name, "decisions", "reason", int(one)] for name in names)]
    rows += [line(f"  {one.name}", "decisions", "reason", int(one)) for one in seen]
    beyond = [total[name, "decisions_beyond_divergence", "", 0] / max(decisions[name], 1) for name in names]
    rows.append(("after first divergence", "", *(f"{one:.1%}" for one in beyond[1:])))
    rows.append(line("carried scores", "carried"))
    return rows
