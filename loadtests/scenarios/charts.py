"""Charts of a run, as SVG that needs no script and no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import pandas as pd
import vl_convert

__all__ = ["flow_chart", "latency_chart", "percentile_chart"]

_FONT = "Arial, Helvetica, sans-serif"
_WIDTH = 760
_MOST_SPANS = 1_000
_FLOW = {"planned": "#8a8f98", "ok": "#1b6ca8", "refused": "#b08a00", "failed": "#c8553d"}
_COLOURS = ["#1b6ca8", "#c8553d", "#4d8b31", "#7b4fa3", "#b08a00", "#2a9d8f", "#8a8f98", "#d17a9c", "#5b5f97"]
Rows = Sequence[Mapping[str, Any]]


def _in_spans(rows: Rows, value: str, how: Mapping[str, str]) -> tuple[pd.DataFrame, int]:
    """Rows (second, what, value) in spans of so many seconds that a picture can show them; how: pandas' name of what becomes
    of the values of a span, by `what`. A day has more seconds than a chart takes."""
    frame = pd.DataFrame(rows, columns=["second", "what", value])
    span = 1 if frame.empty else 1 + int(frame["second"].max() - frame["second"].min()) // _MOST_SPANS
    if span == 1:
        return frame, span
    first = frame["second"].min()
    frame["second"] = first + (frame["second"] - first) // span * span
    parts = [
        frame[frame["what"] == what].groupby(["second", "what"]).agg({value: name}).reset_index()
        for what, name in how.items()
    ]
    return pd.concat(parts, ignore_index=True), span


def _of(what: str, span: int) -> str:
    """A title's words."""
    return what if span == 1 else f"{what}, in spans of {span} s"


def _svg(chart: Any) -> str:
    styled = (
        chart.configure_view(stroke=None)
        .configure_axis(gridColor="#eef0f3", labelFont=_FONT, titleFont=_FONT, labelFontSize=12, titleFontSize=12)
        .configure_legend(labelFont=_FONT, titleFont=_FONT, labelFontSize=12, orient="top", title=None, labelLimit=320)
    )
    text: str = vl_convert.vegalite_to_svg(styled.to_json())
    return text


def _bands(phases: Rows) -> Any:
    """Where one phase ends and the next begins."""
    frame = pd.DataFrame([{"at": one["start_s"]} for one in phases[1:]], columns=["at"])
    return alt.Chart(frame).mark_rule(strokeDash=[4, 4], color="#8a8f98").encode(x="at:Q")


def flow_chart(seconds: Rows, phases: Rows) -> str:
    """Requests planned for each second, and what became of them."""
    shown = ["planned", "ok", *(name for name in ("refused", "failed") if any(one[name] for one in seconds))]
    rows = [{"second": one["second"], "what": name, "requests": one[name]} for one in seconds for name in shown]
    scale = alt.Scale(domain=shown, range=[_FLOW[name] for name in shown])
    frame, span = _in_spans(rows, "requests", dict.fromkeys(shown, "mean"))
    base = alt.Chart(frame).encode(
        x=alt.X("second:Q", title=_of("second of the run", span)),
        y=alt.Y("requests:Q", title="requests a second", stack=None),
        color=alt.Color("what:N", scale=scale, title=None),
    )  # fmt: skip
    planned = base.transform_filter("datum.what == 'planned'").mark_area(interpolate="step-after", opacity=0.35)
    came = base.transform_filter("datum.what != 'planned'").mark_line(interpolate="step-after")
    return _svg((planned + came + _bands(phases)).properties(width=_WIDTH, height=220))


def latency_chart(seconds: Rows, phases: Rows) -> str:
    """Median and p99 of the results of each second; of spans of a long run the median of medians, and the largest p99."""
    names = {"p50_ms": "median", "p99_ms": "p99"}
    rows = [
        {"second": one["second"], "what": words, "ms": one[name]}
        for one in seconds for name, words in names.items() if one[name]
    ]  # fmt: skip
    scale = alt.Scale(domain=list(names.values()), range=["#1b6ca8", "#c8553d"])
    frame, span = _in_spans(rows, "ms", {"median": "median", "p99": "max"})
    lines = alt.Chart(frame).mark_line().encode(
        x=alt.X("second:Q", title=_of("second of the run", span)),
        y=alt.Y("ms:Q", title="milliseconds, from the intended start", scale=alt.Scale(type="log")),
        color=alt.Color("what:N", scale=scale, title=None),
    )  # fmt: skip
    return _svg((lines + _bands(phases)).properties(width=_WIDTH, height=220))


def percentile_chart(curves: Mapping[str, Mapping[float, float]]) -> str:
    """Latency over percentile, by route; every nine to the right is as wide as the one before. curves: percent -> ms."""
    rows = [
        {"route": route, "nines": 1 / (1 - percent / 100), "ms": ms}
        for route, curve in curves.items() for percent, ms in curve.items() if percent < 100
    ]  # fmt: skip
    label = "datum.value <= 1 ? '0 %' : format(100 * (1 - 1 / datum.value), '.6~g') + ' %'"
    ticks = [1, 2, 10, 100, 1000, 10000]
    lines = alt.Chart(pd.DataFrame(rows, columns=["route", "nines", "ms"])).mark_line(point=True).encode(
        x=alt.X("nines:Q", title="share of requests that took no longer", scale=alt.Scale(type="log"),
                axis=alt.Axis(values=ticks, labelExpr=label)),
        y=alt.Y("ms:Q", title="milliseconds, from the intended start", scale=alt.Scale(type="log")),
        color=alt.Color("route:N", scale=alt.Scale(range=_COLOURS), title=None, legend=alt.Legend(columns=2)),
    )  # fmt: skip
    return _svg(lines.properties(width=_WIDTH, height=280))
