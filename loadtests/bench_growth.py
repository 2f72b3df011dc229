"""How the chain's cost grows: with items of the catalogue, with candidates of a request, with trees of the model.

One process, one core, retrieval to ranked list (as `bench_chain`), one thing varied at a time from 100,000 items, 200
candidates and 100 trees. Run: ``python -m loadtests.bench_growth --out bench-results``.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import altair as alt
import pandas as pd
import typer
import vl_convert
from hdrh.histogram import HdrHistogram
from rich.console import Console

from loadtests.bench_chain import CANDIDATES, TREES, build_parts, chain, request_batch
from loadtests.hardware import hardware, hardware_line

__all__ = ["Point", "main", "measured"]

_WARM_UP = 30
_ITEMS = 100_000


@dataclass(frozen=True)
class Point:
    """One size of everything."""

    items: int = _ITEMS
    candidates: int = CANDIDATES
    trees: int = TREES


def measured(point: Point, rounds: int) -> dict[str, Any]:
    """Microseconds of a request by itself, and of one in a batch of 32; seconds to build the tables and the index."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        parts = build_parts(point.items, Path(folder), candidates=point.candidates, trees=point.trees)
        found: dict[str, Any] = {"build_s": time.perf_counter() - began}
        for size in (1, 32):
            wall, cpu = HdrHistogram(1, 60_000_000, 3), 0
            for step in range(-_WARM_UP, max(rounds // size, 10)):
                batch = request_batch(parts, size, step % 200, point.candidates)
                start, used = time.perf_counter_ns(), time.process_time_ns()
                chain(parts, batch)
                used, took = time.process_time_ns() - used, time.perf_counter_ns() - start
                if step >= 0:
                    wall.record_value(max(1, took // 1_000))
                    cpu += used
            count = wall.get_total_count() * size
            own = {f"p{p:g}_us": wall.get_value_at_percentile(p) / size for p in (50, 99)}
            found[f"batch_{size}"] = {**own, "cpu_us": cpu / count / 1_000}
    return found


def _numbers(text: str) -> list[int]:
    return [int(one) for one in text.split(",")]


def main(
    items: Annotated[str, typer.Option(help="Sizes of the catalogue.")] = "10000,30000,100000,300000,1000000",
    candidates: Annotated[str, typer.Option(help="Candidates a request.")] = "100,200,300,500,1000",
    trees: Annotated[str, typer.Option(help="Trees of the model.")] = "25,50,100,200,400",
    base_items: Annotated[int, typer.Option(help="Items while candidates and trees vary.")] = _ITEMS,
    rounds: Annotated[int, typer.Option(min=10, help="Requests measured each.")] = 400,
    out: Annotated[Path, typer.Option(help="JSON, Markdown and plot go below this folder.")] = Path("bench-results"),
) -> None:
    """Measure, and write growth.json, growth.md, growth.svg."""
    console = Console()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    base = Point(items=base_items)
    rows = []
    for name, values in (("items", items), ("candidates", candidates), ("trees", trees)):
        for value in _numbers(values):
            with console.status(f"{value:,} {name}"):
                rows.append({"what": name, "size": value, **measured(replace(base, **{name: value}), rounds)})
            console.print(f"{value:>9,} {name}: {rows[-1]['batch_1']['p50_us']:,.0f} us")
    out.mkdir(parents=True, exist_ok=True)
    report = {"hardware": hardware(), "base": base.__dict__, "rows": rows}
    (out / "growth.json").write_text(json.dumps(report, indent=1))
    (out / "growth.md").write_text(_markdown(report))
    (out / "growth.svg").write_text(_plot(rows))


def _markdown(report: dict[str, Any]) -> str:
    lines = ["# Growth of the chain's cost", "", hardware_line(report), "",
             "| varied | size | one request: p50 us | p99 us | cpu us | of 32: p50 us | cpu us | build s |",
             "|---" * 8 + "|"]  # fmt: skip
    for row in report["rows"]:
        one, many = row["batch_1"], row["batch_32"]
        lines.append(
            f"| {row['what']} | {row['size']:,} | {one['p50_us']:,.0f} | {one['p99_us']:,.0f} | {one['cpu_us']:,.0f} "
            f"| {many['p50_us']:,.0f} | {many['cpu_us']:,.0f} | {row['build_s']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def _plot(rows: list[dict[str, Any]]) -> str:
    frame = pd.DataFrame(
        [{"what": row["what"], "size": row["size"], "microseconds": row["batch_1"]["p50_us"]} for row in rows]
    )
    panels = [
        alt.Chart(frame[frame["what"] == name]).mark_line(point=True).encode(
            x=alt.X("size:Q", scale=alt.Scale(type="log"), title=name),
            y=alt.Y("microseconds:Q", title="p50 us, one request"),
        ).properties(width=240, height=220)
        for name in dict.fromkeys(row["what"] for row in rows)
    ]  # fmt: skip
    text: str = vl_convert.vegalite_to_svg(alt.hconcat(*panels).to_json())
    return text


if __name__ == "__main__":
    typer.run(main)
