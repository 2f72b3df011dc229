"""A soak's table and picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd
import vl_convert

from loadtests.growth import Series

__all__ = ["write_soak"]

_SHOWN = 40
_MOST_POINTS = 4_000


def write_soak(report: Mapping[str, Any], series: Mapping[tuple[str, str], Series], out: Path) -> str:
    """OUT/soak.md and soak.svg; the Markdown."""
    lines = ["# Soak", "", f"{report['seconds']:g} s at {report['rate']:g} requests/s, {report['topology']}, "
             f"{report['samples']} samples. Load: exit code {report['load_exit_code']}.", ""]  # fmt: skip
    lines += [f"- **{fault}**" for fault in report["faults"]] or ["Nothing grew, and no process ended."]
    lines += ["", "| what | of | at first | growth | allowed |", "|---" * 5 + "|"]
    told = sorted(report["series"], key=lambda one: -one["growth"] / one["limit"])
    for one in [one for one in told if one["samples"] > 1][:_SHOWN]:
        allowed = "told only" if one["told_only"] else f"{one['limit']:.0f}"
        lines.append(f"| {one['what']} | {one['name']} | {one['level']:.1f} | {one['growth']:+.1f} | {allowed} |")
    text = "\n".join(lines) + "\n"
    (out / "soak.md").write_text(text)
    (out / "soak.svg").write_text(_plot(series))
    return text


def _plot(series: Mapping[tuple[str, str], Series]) -> str:
    shown = {name: one for (name, what), one in series.items() if what == "memory"}
    step = 1 + sum(len(one.times) for one in shown.values()) // _MOST_POINTS
    rows = [
        {"minute": at / 60, "MB": value, "process": name}
        for name, one in shown.items() for at, value in zip(one.times[::step], one.values[::step], strict=True)
    ]  # fmt: skip
    chart = alt.Chart(pd.DataFrame(rows, columns=["minute", "MB", "process"])).mark_line().encode(
        x=alt.X("minute:Q", title="minutes"), y=alt.Y("MB:Q", title="memory of its own (MB)"),
        color=alt.Color("process:N", title=None),
    ).properties(width=680, height=320)  # fmt: skip
    text: str = vl_convert.vegalite_to_svg(chart.to_json())
    return text
