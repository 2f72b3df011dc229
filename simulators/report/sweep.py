"""A sweep's result as files: sweep.html with the frontier, sweep.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import altair as alt
import orjson
import pandas as pd

from serve_app.release.manifest import write_text_atomically
from simulators.replay.sweep import Half, Point, SweepPlan
from simulators.report.charts import svg_of
from simulators.report.page import templates
from simulators.report.words import about, change, figure, measure, named, span

__all__ = ["SCHEMA", "frontier_chart", "write_sweep"]

SCHEMA = {"name": "hindcast-sweep", "version": 1}
_KINDS = {"chosen": "#d55e00", "on the frontier": "#0072b2", "other": "#a7adb6", "the log": "#1d2127"}


def write_sweep(
    points: Sequence[Point], best: Point | None, plan: SweepPlan, out: Path, command: str = ""
) -> dict[str, Any]:
    """Write both files to `out`; returns the content of the JSON. command: that asked for it."""
    content = {
        "schema": SCHEMA,
        "plan": plan.model_dump(),
        "chosen": best.name if best else None,
        "points": [asdict(one) for one in points],
        "command": command,
    }
    write_text_atomically(out / "sweep.json", orjson.dumps(content, option=orjson.OPT_INDENT_2).decode())
    page = templates().get_template("sweep.html.j2").render(
        rows=[_row(number, one, best, plan) for number, one in enumerate(points, start=1)], best=best, plan=plan,
        chart=frontier_chart(points, best, plan.metric), figure=figure, command=command, metric=named(plan.metric),
        told=_told(best, plan) if best else {}, about=about(plan.estimator, "estimator"),
    )  # fmt: skip
    write_text_atomically(out / "sweep.html", page)
    return content


def _row(number: int, one: Point, best: Point | None, plan: SweepPlan) -> dict[str, Any]:
    sends, logged = one.judge.sends, one.judge.logged_sends
    return {
        "number": number, "name": one.name, "chosen": best is not None and one.name == best.name,
        "frontier": one.best_for_its_sends, "sends": figure(sends),
        "change": change(sends / logged - 1) if logged > 0 else "",
        "choose": _half(one.choose, plan), "judge": _half(one.judge, plan), "standing": one.judge.standing,
    }  # fmt: skip


def _half(one: Half, plan: SweepPlan) -> dict[str, str]:
    scale = measure(plan.metric, "user").scale
    if one.difference is None:
        return {"value": "", "span": ""}
    return {"value": figure(one.difference * scale, signed=True), "span": span(one.low, one.high, scale=scale)}


def _told(best: Point, plan: SweepPlan) -> dict[str, str]:
    choose, judge = _half(best.choose, plan), _half(best.judge, plan)
    return {
        "unit": measure(plan.metric, "user").text,
        "choose": choose["value"],
        "judge": judge["value"],
        "span": judge["span"],
    }


def frontier_chart(points: Sequence[Point], best: Point | None, metric: str) -> str:
    """SVG: sends against the metric's difference from the log, on the half that judges, with each setting's number; the
    frontier of the other half is joined by a line."""
    said = measure(metric, "user")
    rows = [
        {"number": str(number), "sends": one.judge.sends, "value": one.judge.difference * said.scale,
         "low": (one.judge.low or 0.0) * said.scale, "high": (one.judge.high or 0.0) * said.scale, "kind": _kind(one, best)}
        for number, one in enumerate(points, start=1) if one.judge.difference is not None
    ]  # fmt: skip
    if not rows:
        return ""
    frame = pd.DataFrame(rows)
    logged = pd.DataFrame([{"number": "the log", "sends": points[0].judge.logged_sends, "value": 0.0, "kind": "the log"}])
    kinds = [one for one in _KINDS if one == "the log" or (frame["kind"] == one).any()]
    scale = alt.Scale(domain=kinds, range=[_KINDS[one] for one in kinds])
    x = alt.X("sends:Q", title="sends per user, counted", scale=alt.Scale(zero=False, nice=True))
    colour = alt.Color("kind:N", scale=scale, title=None)
    title = f"{said.text}, change from the log"
    spans = alt.Chart(frame).mark_rule(opacity=0.45, strokeWidth=2).encode(
        x=x, y=alt.Y("low:Q", title=title), y2="high:Q", color=colour
    )  # fmt: skip
    dots = alt.Chart(frame).mark_point(filled=True, size=100, opacity=1).encode(x=x, y="value:Q", color=colour)
    texts = alt.Chart(frame).mark_text(dx=11, align="left", fontWeight="bold").encode(x=x, y="value:Q", text="number:N")
    line = alt.Chart(frame[frame["kind"] != "other"]).mark_line(color="#0072b2", opacity=0.4).encode(x=x, y="value:Q")
    cross = alt.Chart(logged).mark_point(shape="cross", size=140, filled=True, opacity=1).encode(
        x="sends:Q", y="value:Q", color=colour
    )  # fmt: skip
    zero = alt.Chart(pd.DataFrame([{"zero": 0.0}])).mark_rule(color="#9aa1ab").encode(y="zero:Q")
    return svg_of((zero + line + spans + dots + texts + cross).properties(width=820, height=380))


def _kind(one: Point, best: Point | None) -> str:
    if best is not None and one.name == best.name:
        return "chosen"
    return "on the frontier" if one.best_for_its_sends else "other"
