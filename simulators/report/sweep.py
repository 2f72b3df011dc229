"""A sweep's result as files: sweep.html with the frontier, sweep.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import altair as alt
import jinja2
import orjson
import pandas as pd

from serve_app.release.manifest import write_text_atomically
from simulators.replay.sweep import Point, SweepPlan
from simulators.report.charts import svg_of

__all__ = ["frontier_chart", "write_sweep"]


def write_sweep(points: Sequence[Point], best: Point | None, plan: SweepPlan, out: Path) -> dict[str, Any]:
    """Write both files to `out`; returns the content of the JSON."""
    content = {
        "plan": plan.model_dump(),
        "chosen": best.name if best else None,
        "points": [asdict(one) for one in points],
    }
    write_text_atomically(out / "sweep.json", orjson.dumps(content, option=orjson.OPT_INDENT_2).decode())
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    page = environment.get_template("sweep.html.j2").render(
        points=points, best=best, plan=plan, chart=frontier_chart(points, best, plan.metric),
        short=lambda value: f"{value:.4g}", signed=lambda value: f"{value:+.4g}",
    )  # fmt: skip
    write_text_atomically(out / "sweep.html", page)
    return content


def frontier_chart(points: Sequence[Point], best: Point | None, metric: str) -> str:
    """SVG: sends against the metric's difference from the log, on the half that judges; the frontier of the other half is
    joined by a line."""
    rows = [
        {"name": one.name, "sends": one.judge.sends, "value": one.judge.difference, "low": one.judge.low,
         "high": one.judge.high, "kind": _kind(one, best)}
        for one in points if one.judge.difference is not None
    ]  # fmt: skip
    if not rows:
        return ""
    frame = pd.DataFrame(rows)
    scale = alt.Scale(domain=["chosen", "frontier", "other"], range=["#c8553d", "#1b6ca8", "#b4b9c1"])
    x = alt.X("sends:Q", title="sends a user", scale=alt.Scale(zero=False))
    colour = alt.Color("kind:N", scale=scale, title=None)
    spans = alt.Chart(frame).mark_rule(opacity=0.5).encode(
        x=x, y=alt.Y("low:Q", title=f"{metric} a user, difference from the log"), y2="high:Q", color=colour
    )  # fmt: skip
    dots = alt.Chart(frame).mark_point(filled=True, size=90, opacity=1).encode(x=x, y="value:Q", color=colour)
    line = alt.Chart(frame[frame.kind != "other"]).mark_line(color="#1b6ca8", opacity=0.4).encode(x=x, y="value:Q")
    logged = alt.Chart(pd.DataFrame([{"sends": points[0].judge.logged_sends, "value": 0.0}])).mark_point(
        shape="cross", size=120, color="#1d2127", filled=True
    ).encode(x="sends:Q", y="value:Q")  # fmt: skip
    zero = alt.Chart(pd.DataFrame([{"zero": 0.0}])).mark_rule(color="#c9cdd3").encode(y="zero:Q")
    return svg_of((zero + line + spans + dots + logged).properties(width=640, height=340))


def _kind(one: Point, best: Point | None) -> str:
    if best is not None and one.name == best.name:
        return "chosen"
    return "frontier" if one.best_for_its_sends else "other"
