"""Charts of a report, drawn once as SVG that needs no script and no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import pandas as pd
import vl_convert

__all__ = ["bars_by_policy", "differences", "lines_by_day", "svg_of", "waterfall"]

_COLOURS = ("#8a8f98", "#1b6ca8", "#c8553d", "#4d8b31", "#7b4fa3", "#b08a00")
_FONT = "Arial, Helvetica, sans-serif"
_BARS_APART = 16


def _room(names: Sequence[str]) -> float:
    """Pixels that the longest name needs, whatever sans-serif the reader's machine has."""
    return min(7.5 * max((len(name) for name in names), default=0), 220.0)


def svg_of(chart: Any) -> str:
    styled = (
        chart.configure_view(stroke=None)
        .configure_axis(grid=True, gridColor="#eef0f3", labelFont=_FONT, titleFont=_FONT, labelFontSize=12, titleFontSize=12)
        .configure_legend(labelFont=_FONT, titleFont=_FONT, labelFontSize=12, orient="top", title=None)
    )
    text: str = vl_convert.vegalite_to_svg(styled.to_json())
    return text


def _colour(policies: Sequence[str]) -> Any:
    scale = alt.Scale(domain=list(policies), range=[_COLOURS[i % len(_COLOURS)] for i in range(len(policies))])
    return alt.Color("policy:N", scale=scale, title=None)


def _long(rows: Sequence[Mapping[str, Any]], policies: Sequence[str]) -> pd.DataFrame:
    return pd.DataFrame(
        [{"name": row["name"], "policy": name, "value": row[name]} for row in rows for name in policies],
        columns=["name", "policy", "value"],
    )


def bars_by_policy(rows: Sequence[Mapping[str, Any]], policies: Sequence[str], *, what: str, upright: bool = False) -> str:
    """Grouped bars; rows are {name, policy: value}. upright: for short names in an order that matters."""
    frame, order = _long(rows, policies), [row["name"] for row in rows]
    value, names = alt.Axis(title=what, format="~s"), alt.Axis(labelLimit=220, labelAngle=0)
    beside = alt.Axis(labelLimit=220, minExtent=_room(order))
    base = alt.Chart(frame).mark_bar().encode(color=_colour(policies))
    if upright:
        placed = base.encode(
            x=alt.X("name:N", sort=order, title=None, axis=names), xOffset=alt.XOffset("policy:N", sort=list(policies)),
            y=alt.Y("value:Q", axis=value),
        ).properties(width=680, height=240)  # fmt: skip
    else:
        height = max(60, len(rows) * (_BARS_APART * len(policies) + 6))
        placed = base.encode(
            y=alt.Y("name:N", sort=order, title=None, axis=beside), yOffset=alt.YOffset("policy:N", sort=list(policies)),
            x=alt.X("value:Q", axis=value),
        ).properties(width=560, height=height)  # fmt: skip
    return svg_of(placed)


def lines_by_day(days: Mapping[str, Mapping[str, int]], *, what: str) -> str:
    """One line a policy."""
    rows = [{"day": day, "policy": name, "value": count} for name, by_day in days.items() for day, count in by_day.items()]
    frame = pd.DataFrame(rows, columns=["day", "policy", "value"])
    chart = alt.Chart(frame).mark_line(point=True).encode(
        x=alt.X("day:T", title=None), y=alt.Y("value:Q", title=what, axis=alt.Axis(format="~s")), color=_colour(list(days))
    ).properties(width=680, height=220)  # fmt: skip
    return svg_of(chart)


def waterfall(rows: Sequence[Mapping[str, Any]], policy: str) -> str:
    """How sends went from the log's to a policy's: what each reason took and gave back."""
    changes = [(row["name"], row[policy] - row["logged"]) for row in rows if row["name"] not in ("chosen", "none")]
    changes = sorted(((name, -change) for name, change in changes if change), key=lambda one: (-abs(one[1]), one[0]))
    sends = next((row for row in rows if row["name"] == "chosen"), {"logged": 0, policy: 0})
    level, steps = sends["logged"], [{"name": "logged sends", "from": 0, "to": sends["logged"], "kind": "total"}]
    for name, change in changes:
        steps.append({"name": name, "from": level, "to": level + change, "kind": "more" if change > 0 else "fewer"})
        level += change
    if level != sends[policy]:
        kind = "more" if sends[policy] > level else "fewer"
        steps.append({"name": "asked otherwise", "from": level, "to": sends[policy], "kind": kind})
    steps.append({"name": "its sends", "from": 0, "to": sends[policy], "kind": "total"})
    colours = alt.Scale(domain=["total", "more", "fewer"], range=["#8a8f98", "#4d8b31", "#c8553d"])
    order = [str(one["name"]) for one in steps]
    chart = alt.Chart(pd.DataFrame(steps)).mark_bar().encode(
        y=alt.Y("name:N", sort=order, title=None, axis=alt.Axis(labelLimit=220, minExtent=_room(order))),
        x=alt.X("from:Q", title="sends", axis=alt.Axis(format="~s")), x2="to:Q",
        color=alt.Color("kind:N", scale=colours, title=None),
    ).properties(width=560, height=26 * len(steps))  # fmt: skip
    return svg_of(chart)


def differences(rows: Sequence[Mapping[str, Any]], metric: str) -> str:
    """Paired differences from the log with their intervals, one line an estimator and policy; refused ones are not drawn."""
    shown = [
        {"name": f"{row['estimator']} · {row['policy']}", "policy": row["policy"], "value": row["difference"],
         "low": row["low"], "high": row["high"]}
        for row in rows if row["metric"] == metric and "difference" in row and row["low"] is not None
    ]  # fmt: skip
    if not shown:
        return ""
    frame = pd.DataFrame(shown)
    names = list(dict.fromkeys(frame["name"]))
    y = alt.Y("name:N", title=None, sort=names, axis=alt.Axis(labelLimit=260, minExtent=_room(names)))
    colour = _colour(["logged", *dict.fromkeys(frame["policy"])])
    zero = alt.Chart(pd.DataFrame({"zero": [0]})).mark_rule(color="#444").encode(x="zero:Q")
    bars = (
        alt.Chart(frame).mark_rule(strokeWidth=2).encode(y=y, x=alt.X("low:Q", title=f"{metric}, difference"), x2="high:Q")
    )
    points = alt.Chart(frame).mark_point(filled=True, size=80).encode(y=y, x="value:Q", color=colour)
    return svg_of((zero + bars + points).properties(width=520, height=34 * len(shown)))
