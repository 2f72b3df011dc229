"""The coverage study as one picture: clustered against row-level intervals, and cells against per-decision IPS."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import altair as alt
import pandas as pd
from scipy import stats

if TYPE_CHECKING:
    from simulators.estimators.coverage import Summary

__all__ = ["draw"]

_NAMES = {"ips": "IPS, user-clustered", "ips by rows": "IPS, row-level", "cells": "cells", "myopic ips": "per-decision IPS"}
_COLOURS = {
    "IPS, user-clustered": "#1b6ca8", "IPS, row-level": "#c8553d", "cells": "#1b6ca8", "per-decision IPS": "#c8553d"
}  # fmt: skip


def draw(summaries: Sequence[Summary], path: Path) -> None:
    """Write the picture (.svg or .png) of summaries by world."""
    left = _frame(summaries, ("ips", "ips by rows"))
    right = _frame(summaries, ("cells", "myopic ips"))
    x = alt.X(
        "design effect:Q", title="design effect (variance by users / by rows)", scale=alt.Scale(type="log", domain=[1, 30])
    )
    y = alt.Y("world:N", title=None, sort=None)
    clicks = _panel(left, x, "95 % intervals by how alike a user's rows are")
    cells = _across(right, y, "Cap, threshold and quiet hours: coverage of the true value")
    chart = alt.vconcat(clicks, cells).configure_view(stroke=None).configure_axis(grid=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    chart.save(str(path))


def _frame(summaries: Sequence[Summary], names: tuple[str, ...]) -> pd.DataFrame:
    rows = []
    for one in summaries:
        if one.estimator in names and one.metric == "click":
            hits = round(one.coverage * one.worlds)
            low, high = stats.beta.ppf([0.025, 0.975], [hits, hits + 1], [one.worlds - hits + 1, one.worlds - hits])
            rows.append({
                "interval": _NAMES[one.estimator], "world": one.world, "coverage": one.coverage,
                "low": 0.0 if hits == 0 else low, "high": 1.0 if hits == one.worlds else high,
                "design effect": one.design_effect,
            })  # fmt: skip
    return pd.DataFrame(rows)


def _colour() -> Any:
    return alt.Color("interval:N", title=None, scale=alt.Scale(domain=list(_COLOURS), range=list(_COLOURS.values())))


def _panel(frame: pd.DataFrame, x: Any, title: str) -> Any:
    scale = alt.Scale(domain=[0.2, 1.0])
    band = alt.Chart(pd.DataFrame({"from": [0.93], "to": [0.97]})).mark_rect(color="#dce8d5").encode(
        y=alt.Y("from:Q", scale=scale, title="coverage", axis=alt.Axis(format="%")), y2="to:Q"
    )  # fmt: skip
    base = alt.Chart(frame).encode(x=x, color=_colour())
    bars = base.mark_rule().encode(y=alt.Y("low:Q", scale=scale, title="coverage"), y2="high:Q")
    points = base.mark_point(filled=True, size=70).encode(y=alt.Y("coverage:Q", scale=scale))
    return (band + bars + points).properties(width=520, height=240, title=title)


def _across(frame: pd.DataFrame, y: Any, title: str) -> Any:
    scale = alt.Scale(domain=[0.0, 1.0])
    band = alt.Chart(pd.DataFrame({"from": [0.93], "to": [0.97]})).mark_rect(color="#dce8d5").encode(
        x=alt.X("from:Q", scale=scale, title="coverage", axis=alt.Axis(format="%")), x2="to:Q"
    )  # fmt: skip
    base = alt.Chart(frame).encode(y=y, color=_colour())
    bars = base.mark_rule().encode(x=alt.X("low:Q", scale=scale, title="coverage"), x2="high:Q")
    points = base.mark_point(filled=True, size=70).encode(x=alt.X("coverage:Q", scale=scale))
    return (band + bars + points).properties(width=400, height=110, title=title)
