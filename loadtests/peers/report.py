"""The comparison as JSON, a Markdown table, and plots."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd
import vl_convert
from hdrh.histogram import HdrHistogram

from loadtests.hardware import hardware_line

__all__ = ["summed", "write_peers"]

_FONT = "Arial, Helvetica, sans-serif"
# (what is judged, of whom, against whom, connections, figure, floor or ceiling, the target)
_TARGETS = (
    ("chain / naive Ray Serve chain, throughput", "chain", "naive", 32, "per_s", "at least", 11.0),
    ("chain / naive Ray Serve chain, p99", "chain", "naive", 32, "p99_ms", "at most", 1 / 6),
    ("chain / naive Ray Serve chain, p50", "chain", "naive", 1, "p50_ms", "at most", 0.4),
    ("chain / FastAPI with log, auth, validation", "chain", "full", 32, "per_s", "at least", 1.1),
    ("fused / FastAPI with log, auth, validation", "fused", "full", 32, "per_s", "at least", 1.0),
    ("two fused / FastAPI with log, auth, validation", "fused-2", "full", 32, "per_s", "at least", 1.4),
    ("two fused / leanest FastAPI (reported)", "fused-2", "lean", 32, "per_s", "at least", 1.0),
)
Rows = dict[tuple[str, str, int], dict[str, float]]


def summed(runs: list[Mapping[str, Any]]) -> Rows:
    """Rounds added up: (name, route, connections) -> figures."""
    found: dict[tuple[str, str, int], tuple[HdrHistogram, list[float]]] = {}
    for run in runs:
        key = (run["name"], run["route"], run["connections"])
        latency, sums = found.setdefault(key, (HdrHistogram(1, 600_000_000, 3), [0.0, 0.0, 0.0, 0.0]))
        if run["good"]:
            latency.decode_and_add(base64.b64decode(run["latency"]))
        for at, name in enumerate(("good", "failed", "seconds", "cpu_seconds")):
            sums[at] += run.get(name, 0.0)
    out: Rows = {}
    for key, (latency, (good, failed, seconds, _)) in found.items():
        out[key] = {"per_s": good / seconds, "failed": failed}
        for percent, name in ((50, "p50_ms"), (99, "p99_ms"), (99.9, "p999_ms")):
            out[key][name] = latency.get_value_at_percentile(percent) / 1e3 if good else float("nan")
    return out


def write_peers(report: dict[str, Any], words: Mapping[str, str], out: Path) -> str:
    """OUT/peers.json, peers.md, peers-*.svg; the Markdown."""
    rows = summed(report["runs"])
    report["figures"] = [
        {"name": name, "route": route, "connections": count, **figures} for (name, route, count), figures in rows.items()
    ]
    report["targets"] = list(_targets(rows))
    (out / "peers.json").write_text(json.dumps(report, indent=1))
    text = _markdown(report, rows, {"compute": "bare compute in process, one core", **words})
    (out / "peers.md").write_text(text)
    for route in dict.fromkeys(route for _, route, _ in rows):
        (out / f"peers-{route}.svg").write_text(_plot(rows, route))
    return text


def _targets(rows: Rows) -> Any:
    for route in dict.fromkeys(route for _, route, _ in rows):
        for what, ours, theirs, count, figure, bound, limit in _TARGETS:
            one, other = rows.get((ours, route, count)), rows.get((theirs, route, count))
            if one and other and one["per_s"] and other["per_s"]:
                ratio = one[figure] / other[figure]
                kept = ratio >= limit if bound == "at least" else ratio <= limit
                yield {"route": route, "what": what, "connections": count, "ratio": ratio, "bound": bound, "target": limit,
                       "kept": kept}  # fmt: skip


def _markdown(report: Mapping[str, Any], rows: Rows, words: Mapping[str, str]) -> str:
    lines = ["# Beside others", "", hardware_line(report),
             "", f"{report['items']:,} items, {report['rounds']} rounds of {report['seconds']:g} s each, load generator on "
             "the same machine. Requests a second (p50 / p99 in ms).", ""]  # fmt: skip
    for route in dict.fromkeys(route for _, route, _ in rows):
        counts = sorted({count for name, own, count in rows if own == route})
        lines += [
            f"## {route}",
            "",
            "| | " + " | ".join(f"{n} connections" for n in counts) + " |",
            "|---" * (len(counts) + 1) + "|",
        ]
        for name, said in words.items():
            cells = [_cell(rows.get((name, route, count))) for count in counts]
            if any(cells):
                lines.append(f"| {said} | " + " | ".join(cells) + " |")
        lines.append("")
    if report["targets"]:
        lines += ["## Targets", "", "| route | what | connections | ratio | target | |", "|---" * 6 + "|"]
        for one in report["targets"]:
            kept = "kept" if one["kept"] else "**missed**"
            ends = f"{one['connections']} | {one['ratio']:.2f} | {one['bound']} {one['target']:.2f} | {kept}"
            lines.append(f"| {one['route']} | {one['what']} | {ends} |")
    first = {run["name"]: run["first_failure"] for run in report["runs"] if run.get("first_failure")}
    lines += [
        f"\nFirst failure of {words.get(name, name)}: `{' '.join(said.split())[:300]}`" for name, said in first.items()
    ]
    lines += [f"\nLeft out: {words.get(name, name)}: {why}" for name, why in report["left_out"].items()]
    return "\n".join(lines) + "\n"


def _cell(one: Mapping[str, float] | None) -> str:
    if one is None:
        return ""
    failed = f", {one['failed']:.0f} failed" if one["failed"] else ""
    return f"{one['per_s']:,.0f} ({one['p50_ms']:.1f} / {one['p99_ms']:.1f}{failed})"


def _plot(rows: Rows, route: str) -> str:
    frame = pd.DataFrame(
        [{"name": name, "connections": count, **figures} for (name, own, count), figures in rows.items() if own == route]
    )
    axes = alt.Axis(labelFont=_FONT, titleFont=_FONT)
    chart = alt.Chart(frame).mark_line(point=True).encode(
        x=alt.X("connections:Q", scale=alt.Scale(type="log", base=2), title="connections", axis=axes),
        y=alt.Y("per_s:Q", title=f"{route}: answers a second", axis=axes), color=alt.Color("name:N", title=None),
    ).properties(width=520, height=300)  # fmt: skip
    text: str = vl_convert.vegalite_to_svg(chart.to_json())
    return text
