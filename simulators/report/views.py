"""From a report's content to the rows of its top: guardrails, the table at a glance, what was left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from simulators.report.charts import bullet, forest
from simulators.report.guardrails import METRICS, VOLUMES
from simulators.report.words import Measure, change, figure, measure, reason_text, spaced, span

__all__ = ["glance", "glance_chart", "guardrail_rows", "left_out_lines", "missing_line", "sends_check"]

Content = Mapping[str, Any]
Row = dict[str, Any]


def guardrail_rows(found: Sequence[Mapping[str, Any]]) -> list[Row]:
    """As the verdict's table shows them."""
    return [_guardrail(one) for one in found]


def _guardrail(one: Mapping[str, Any]) -> Row:
    said = _guarded(one["metric"])
    row = {"text": said.text, **{key: one[key] for key in ("policy", "outcome", "standing", "estimator", "why")}}
    if one["low"] is None:
        return {**row, "standing": "no number", "allowed": "–", "found": "–", "bullet": ""}
    base = one["logged"] if one["of"] == "change" else None
    allowed, ends = (one["allowed_low"], one["allowed_high"]), (one["low"], one["high"])
    return {
        **row,
        "allowed": _bounds(allowed, said, base),
        "found": _interval(ends, said, base),
        "bullet": bullet(ends, allowed, one["outcome"]),
    }


def _guarded(name: str) -> Measure:
    if name == "reach":
        return Measure("share of users reached", 1.0)
    if name in VOLUMES:
        return measure(name, "user")
    metric, per = METRICS[name]
    return measure(metric, per.value)


def _bounds(allowed: tuple[float | None, float | None], said: Measure, base: float | None) -> str:
    """`at most +5.0 %`; of levels, in the measure's unit."""
    low, high = (None if one is None else _value(one, said, base) for one in allowed)
    if low is None or high is None:
        return f"at most {high}" if low is None else f"at least {low}"
    return f"{low} … {high}"


def _interval(ends: tuple[float, float], said: Measure, base: float | None) -> str:
    low, high = (_value(one, said, base) for one in ends)
    return low if ends[0] == ends[1] else f"{low} … {high}"


def _value(value: float, said: Measure, base: float | None) -> str:
    if base is None:
        return figure(value * said.scale)
    return change(value / base) if base > 0 else figure(value * said.scale, signed=True)


def glance(content: Content) -> Row:
    """columns: measures with the log's value; rows: a policy's change in each."""
    found: Mapping[str, Mapping[str, Row]] = content["headline"]
    metrics = list(dict.fromkeys(name for one in found.values() for name in one))
    columns = []
    for metric in metrics:
        said = measure(metric, "user")
        logged = next((one[metric]["logged"] for one in found.values() if "logged" in one[metric]), None)
        columns.append({"text": said.text, "logged": figure(logged * said.scale) if logged is not None else "–"})
    rows = [
        {"policy": name, "cells": [_cell(one[metric], measure(metric, "user")) for metric in metrics]}
        for name, one in found.items()
    ]
    return {"columns": columns, "rows": rows}


def _cell(one: Row, said: Measure) -> Row:
    cell = {"standing": one["standing"], "why": "; ".join(one["reasons"]), "value": "", "span": "", "estimator": ""}
    if "difference" not in one:
        return cell
    if one["estimator"] != "counted":
        cell["estimator"] = one["estimator"]
    if "relative" in one:
        ends = one["relative_low"], one["relative_high"]
        cell["value"] = change(one["relative"])
        cell["span"] = f"{change(ends[0])} … {change(ends[1])}" if ends[0] != ends[1] else ""
    else:
        cell["value"] = figure(one["difference"] * said.scale, signed=True)
        cell["span"] = span(one["low"], one["high"], scale=said.scale)
    return cell


def glance_chart(content: Content) -> str:
    """The same as a picture, where anything can be drawn."""
    policies = content["policies"]
    rows = [
        {"name": measure(metric, "user").text, "policy": name, "value": one["relative"], "low": one["relative_low"],
         "high": one["relative_high"]}
        for name, found in content["headline"].items() for metric, one in found.items() if "relative" in one
    ]  # fmt: skip
    order = [one.text for one in _measures(content)]
    rows.sort(key=lambda row: order.index(row["name"]))
    return forest(rows, policies, what="change from the log", percent=True)


def _measures(content: Content) -> list[Measure]:
    metrics = dict.fromkeys(name for one in content["headline"].values() for name in one)
    return [measure(name, "user") for name in metrics]


def sends_check(content: Content) -> list[Row]:
    """Sends a user move by so much when counted; do the estimators come to the same? Off: the interval misses it by more
    than a twentieth of the log's sends."""
    out = []
    for name, found in content["headline"].items():
        counted = found["sends"]
        estimated = [
            {
                "estimator": one["estimator"],
                "span": span(one["low"], one["high"]),
                "agrees": _near(counted["difference"], one, 0.05 * counted["logged"]),
            }
            for one in content["outcomes"]
            if (one["policy"], one["metric"], one["per"]) == (name, "sends", "user") and one.get("low") is not None
        ]
        if estimated:
            off = any(not one["agrees"] for one in estimated)
            out.append(
                {
                    "policy": name,
                    "counted": figure(counted["difference"], signed=True),
                    "estimated": estimated,
                    "off": off,
                }
            )
    return out


def _near(value: float, one: Mapping[str, Any], slack: float) -> bool:
    return bool(one["low"] - slack <= value <= one["high"] + slack)


def missing_line(one: Mapping[str, Any]) -> str:
    """Rows the log has lost, of one table and day."""
    gone = spaced(one["written"] - one["found"])
    return f"{gone} of {spaced(one['written'])} {one['table']} of {one['day']} are not in the log any more"


def left_out_lines(content: Content) -> list[str]:
    """Whom and what no number holds, in words."""
    left, hours = content["left_out"], content["made"]["attribution_hours"]
    lines = [
        f"{spaced(left['bots'])} users known as bots with {spaced(left['decisions_of_bots'])} decisions",
        f"{spaced(left['unfinished'])} decisions less than {hours:g} h old at the log's end, from the estimates (their "
        "rewards are not in yet) but not from the volume",
    ]
    aside = [f"{spaced(count)} {reason_text(name)}" for name, count in left["set_aside"].items()]
    if aside:
        lines.append(
            f"requests that no policy decided, such as retries answered with an earlier decision: {', '.join(aside)}"
        )
    if left["excluded"]:
        faults = ", ".join(f"{spaced(count)} {name.replace('_', ' ')}" for name, count in left["excluded"].items())
        lines.append(f"rows of the estimates with faults: {faults}")
    if left["copies_of_events"]:
        lines.append(f"{spaced(left['copies_of_events'])} events that stood twice, counted once")
    lines += [missing_line(one) for one in left["missing"]]
    return lines
