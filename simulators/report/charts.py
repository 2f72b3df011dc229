"""Charts of a report, drawn once as SVG that needs no script and no network.

Colours are Okabe and Ito's (2008), told apart by readers of any colour vision; grey is the log, everywhere.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import pandas as pd
import vl_convert

__all__ = [
    "POLICY_COLOURS",
    "bars_by_policy",
    "bullet",
    "changes",
    "forest",
    "lines_by_day",
    "qini_curve",
    "svg_of",
    "waterfall",
]

_GREY, _BLUE, _ORANGE = "#7d838c", "#0072b2", "#d55e00"
POLICY_COLOURS = (_GREY, _BLUE, _ORANGE, "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_FONT = "Arial, Helvetica, sans-serif"
_BARS_APART = 16
_WIDE = 860
_COUNTED = re.compile(r"\b(?:clip|gradient_)\d+\b")
_STEPS = 9  # of a waterfall, before the rest is said together

Row = Mapping[str, Any]


def _room(names: Sequence[str]) -> float:
    """Pixels that the longest name needs, whatever sans-serif the reader's machine has."""
    return min(7.2 * max((len(name) for name in names), default=0), 260.0)


def svg_of(chart: Any) -> str:
    """Styled alike. Equal charts give equal text: the converter counts the ids in it over the life of the process, so they
    are named by the chart's own content instead, which keeps them apart on a page of many."""
    styled = (
        chart.configure_view(stroke=None)
        .configure_axis(
            grid=True, gridColor="#eceef1", domainColor="#9aa1ab", tickColor="#9aa1ab", labelFont=_FONT, titleFont=_FONT,
            labelFontSize=12, titleFontSize=12, titleFontWeight="normal", labelColor="#33383f", titleColor="#5b6470",
        )
        .configure_legend(labelFont=_FONT, titleFont=_FONT, labelFontSize=12, orient="top", title=None, labelLimit=320)
        .configure_text(font=_FONT, fontSize=11)
    )  # fmt: skip
    text: str = vl_convert.vegalite_to_svg(styled.to_json())
    counted = {one: str(number) for number, one in enumerate(dict.fromkeys(_COUNTED.findall(text)))}
    own = hashlib.sha256(_COUNTED.sub(lambda found: counted[found.group()], text).encode()).hexdigest()[:12]
    return _COUNTED.sub(lambda found: f"c{own}-{counted[found.group()]}", text)


def _colour(policies: Sequence[str], *, shown: Sequence[str] | None = None) -> Any:
    """The first of `policies` is grey. shown: those in the legend (default: all)."""
    scale = alt.Scale(domain=list(policies), range=[POLICY_COLOURS[i % len(POLICY_COLOURS)] for i in range(len(policies))])
    legend = alt.Legend(title=None, values=list(policies if shown is None else shown))
    return alt.Color("policy:N", scale=scale, title=None, legend=legend)


def _names_axis(names: Sequence[str]) -> Any:
    return alt.Axis(labelLimit=260, minExtent=_room(names), grid=False, ticks=False, domain=False)


def bars_by_policy(rows: Sequence[Row], policies: Sequence[str], *, what: str, along: str) -> str:
    """Upright grouped bars; rows are {name, policy: value}. what, along: titles of the axes."""
    long = [{"name": row["name"], "policy": name, "value": row[name]} for row in rows for name in policies]
    frame, order = pd.DataFrame(long, columns=["name", "policy", "value"]), [row["name"] for row in rows]
    chart = alt.Chart(frame).mark_bar().encode(
        x=alt.X("name:N", sort=order, title=along, axis=alt.Axis(labelAngle=0, grid=False)),
        xOffset=alt.XOffset("policy:N", sort=list(policies)),
        y=alt.Y("value:Q", axis=alt.Axis(title=what, format="~s", tickCount=5)), color=_colour(policies),
    ).properties(width=_WIDE, height=220)  # fmt: skip
    return svg_of(chart)


def lines_by_day(days: Mapping[str, Mapping[str, int]], *, what: str) -> str:
    """One line a policy, from 0."""
    rows = [{"day": day, "policy": name, "value": count} for name, by_day in days.items() for day, count in by_day.items()]
    frame = pd.DataFrame(rows, columns=["day", "policy", "value"])
    frame["day"] = pd.to_datetime(frame["day"])
    chart = alt.Chart(frame).mark_line(point={"filled": True, "size": 34}, strokeWidth=2).encode(
        x=alt.X("day:T", title=None, axis=alt.Axis(format="%b %e", grid=False, labelAngle=0, labelOverlap=True)),
        y=alt.Y("value:Q", title=what, axis=alt.Axis(format="~s", tickCount=5)), color=_colour(list(days)),
    ).properties(width=_WIDE, height=220)  # fmt: skip
    return svg_of(chart)


def waterfall(rows: Sequence[Row], policy: str) -> str:
    """How sends went from the log's to a policy's: what each reason took or gave back, the largest first. rows: decisions by
    reason, {name, logged, policy: number}; the row `sent` holds the sends."""
    steps = _steps(rows, policy)
    order = [one["name"] for one in steps]
    frame = pd.DataFrame(steps)
    colours = alt.Scale(domain=["sends", "more sends", "fewer sends"], range=[_GREY, _BLUE, _ORANGE])
    y = alt.Y("name:N", sort=order, title=None, axis=_names_axis(order))
    bars = alt.Chart(frame).mark_bar(height={"band": 0.75}).encode(
        y=y, x=alt.X("from:Q", title="sends", axis=alt.Axis(format="~s", tickCount=8)), x2="to:Q",
        color=alt.Color("kind:N", scale=colours, title=None),
    )  # fmt: skip
    texts = (
        alt.Chart(frame)
        .mark_text(align="left", dx=5, color="#33383f")
        .encode(y=y, x=alt.X("right:Q"), text=alt.Text("said:N"))
    )
    return svg_of((bars + texts).properties(width=_WIDE - 200, height=24 * len(steps)))


def _steps(rows: Sequence[Row], policy: str) -> list[dict[str, Any]]:
    sends = next((row for row in rows if row["name"] == "sent"), {"logged": 0, policy: 0})
    moved = [
        (str(row["name"]), row["logged"] - row[policy]) for row in rows if row["name"] not in ("sent", "nothing to send")
    ]
    moved = sorted(((name, by) for name, by in moved if by), key=lambda one: (-abs(one[1]), one[0]))
    rest = sends[policy] - sends["logged"] - sum(by for _, by in moved[:_STEPS])
    moved = moved[:_STEPS] + ([("all else", rest)] if rest else [])
    level = sends["logged"]
    steps = [_step("in the log", 0, level, "sends", f"{level:,}")]
    for name, by in moved:
        steps.append(_step(name, level, level + by, "more sends" if by > 0 else "fewer sends", f"{by:+,}".replace("-", "−")))
        level += by
    return [*steps, _step("under the policy", 0, level, "sends", f"{level:,}")]


def _step(name: str, start: int, end: int, kind: str, said: str) -> dict[str, Any]:
    return {"name": name, "from": start, "to": end, "right": max(start, end), "kind": kind, "said": said}


def changes(rows: Sequence[Row], policy: str, *, what: str = "sends") -> str:
    """Who gets more or fewer of `what`, most moved first: bars about 0, with change and share. Empty: nothing moved."""
    moved = [{"name": row["name"], "by": row[policy] - row["logged"], "of": row["logged"]} for row in rows]
    moved = sorted((one for one in moved if one["by"]), key=lambda one: (-abs(one["by"]), one["name"]))
    if not moved:
        return ""
    for one in moved:
        share = f" ({100 * one['by'] / one['of']:+.0f} %)" if one["of"] else " (new)"
        one["said"] = f"{one['by']:+,}{share}".replace("-", "−")
        one["kind"] = "more sends" if one["by"] > 0 else "fewer sends"
    frame, order = pd.DataFrame(moved), [one["name"] for one in moved]
    reach = max(abs(one["by"]) for one in moved)
    low, high = min(0, *frame["by"]), max(0, *frame["by"])
    scale = alt.Scale(domain=[low - (0.32 * reach if low < 0 else 0), high + (0.32 * reach if high > 0 else 0)], nice=False)
    x = alt.X("by:Q", title=f"{what}, change from the log", scale=scale, axis=alt.Axis(format="~s", tickCount=6))
    y = alt.Y("name:N", sort=order, title=None, axis=_names_axis(order))
    colours = alt.Scale(domain=["more sends", "fewer sends"], range=[_BLUE, _ORANGE])
    base = alt.Chart(frame)
    bars = base.mark_bar(height={"band": 0.7}).encode(y=y, x=x, color=alt.Color("kind:N", scale=colours, legend=None))
    layers = bars
    for sign, align, dx in ((1, "left", 4), (-1, "right", -4)):
        some = frame[frame["by"] * sign > 0]
        if len(some):
            layers += alt.Chart(some).mark_text(align=align, dx=dx, color="#33383f").encode(y=y, x="by:Q", text="said:N")
    return svg_of(layers.properties(width=_WIDE - 260, height=22 * len(moved)))


def forest(rows: Sequence[Row], policies: Sequence[str], *, what: str, percent: bool) -> str:
    """Differences with intervals about 0. rows: {name, policy, value, low, high}, drawn in their order; percent: values are
    shares. Intervals that are far wider than the rest run off the edge. Empty without rows."""
    if not rows:
        return ""
    frame = pd.DataFrame([{**row, "order": n} for n, row in enumerate(rows)])
    low, high = _domain(frame)
    shape = "%" if percent else "~g"
    scale = alt.Scale(domain=[low, high], nice=True)
    x = alt.X("low:Q", title=what, scale=scale, axis=alt.Axis(format=shape, tickCount=8))
    names = list(dict.fromkeys(frame["name"]))
    y = alt.Y("name:N", title=None, sort=names, axis=_names_axis(names))
    beside = alt.YOffset("policy:N", sort=list(policies))
    colour = _colour(policies, shown=[name for name in policies if (frame["policy"] == name).any()])
    zero = alt.Chart(pd.DataFrame({"zero": [0.0]})).mark_rule(color="#33383f").encode(x="zero:Q")
    spans = alt.Chart(frame).mark_rule(strokeWidth=3, clip=True, opacity=0.55).encode(
        y=y, yOffset=beside, x=x, x2="high:Q", color=colour
    )  # fmt: skip
    dots = alt.Chart(frame).mark_point(filled=True, size=70, clip=True, opacity=1).encode(
        y=y, yOffset=beside, x=alt.X("value:Q", scale=scale), color=colour
    )  # fmt: skip
    height = len(names) * (14 * frame["policy"].nunique() + 12)
    return svg_of((zero + spans + dots).properties(width=_WIDE - 160, height=height))


def _domain(frame: pd.DataFrame) -> tuple[float, float]:
    """All points, and intervals as far as they are not three times as wide as the median one beyond them."""
    reach = 3 * float((frame["high"] - frame["low"]).median())
    low = min(0.0, max(float(frame["low"].min()), float(frame["value"].min()) - reach))
    high = max(0.0, min(float(frame["high"].max()), float(frame["value"].max()) + reach))
    return (low, high) if low < high else (-1.0, 1.0)


def qini_curve(share: Sequence[float], gained: Sequence[float], *, what: str) -> str:
    """What messages gain among the best-scored share of the users, beside a random order's straight line."""
    frame = pd.DataFrame({"share": share, "gained": gained})
    ends = pd.DataFrame({"share": [0.0, share[-1]], "gained": [0.0, gained[-1]]})
    x = alt.X("share:Q", title="share of users, best scores first", axis=alt.Axis(format="%"))
    y = alt.Y("gained:Q", title=what)
    curve = alt.Chart(frame).mark_line(color=_BLUE, strokeWidth=2).encode(x=x, y=y)
    random = alt.Chart(ends).mark_line(color=_GREY, strokeDash=[5, 4]).encode(x=x, y=y)
    return svg_of((random + curve).properties(width=520, height=240))


def bullet(ends: tuple[float, float], allowed: tuple[float | None, float | None], outcome: str) -> str:
    """A guardrail in one line: what is allowed as a band, what was found as a line across it."""
    known = [*ends, *(one for one in allowed if one is not None)]
    low, high = min(known), max(known)
    pad = 0.15 * ((high - low) or abs(high) or 1.0)
    low, high = low - pad, high + pad

    def at(value: float) -> float:
        return round(180 * (value - low) / (high - low), 1)

    left = 0.0 if allowed[0] is None else at(allowed[0])
    right = 180.0 if allowed[1] is None else at(allowed[1])
    colour = {"kept": _BLUE, "broken": _ORANGE}.get(outcome, "#e69f00")
    first, last = at(ends[0]), at(ends[1])
    last = max(last, first + 3)
    return (
        '<svg width="180" height="16" role="img" aria-label="allowed band and found interval">'
        f'<rect x="{left}" y="2" width="{round(right - left, 1)}" height="12" fill="#dfe3e8"/>'
        f'<rect x="{first}" y="5.5" width="{round(last - first, 1)}" height="5" fill="{colour}"/></svg>'
    )
