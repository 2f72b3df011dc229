"""From a report's content to the rows of its tables below the top: estimators, breakdowns, windows, effects, the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from simulators.report.charts import forest
from simulators.report.details import groups_of
from simulators.report.words import Measure, about, change, figure, measure, named, span

__all__ = ["attribution_tables", "effect_rows", "group_tables", "model_tables", "outcome_tables", "roll_out_tables"]

Content = Mapping[str, Any]
Row = dict[str, Any]
_SHARED = 2  # of a policy's metrics that must give a reason before it is said of the estimator


def outcome_tables(content: Content) -> list[Row]:
    """One entry a target: estimators with their standing, all numbers, a chart."""
    out = []
    for name in content["policies"][1:]:
        rows = [one for one in content["outcomes"] if one["policy"] == name]
        first = {one["estimator"] for metric, one in content["headline"][name].items() if metric != "sends"}
        estimators = [
            _estimator(label, [one for one in rows if one["estimator"] == label], label in first)
            for label in dict.fromkeys(one["estimator"] for one in rows)
        ]
        shared = {one["name"]: set(one["reasons"]) for one in estimators}
        out.append({"policy": name, "estimators": estimators, "rows": _numbers(rows, shared), "chart": _chart(rows)})
    return out


def _estimator(label: str, rows: Sequence[Row], first: bool) -> Row:
    """Its usual standing and the reasons most of its numbers share."""
    standings = [one["standing"] for one in rows]
    every = list(dict.fromkeys(reason for one in rows for reason in one["reasons"]))
    shared = [one for one in every if sum(one in row["reasons"] for row in rows) * _SHARED > len(rows)]
    plans = list(dict.fromkeys(one["plan"] for one in rows if one["plan"]))
    return {
        "name": label, "about": about(label, "estimator"), "standing": max(set(standings), key=standings.count),
        "reasons": shared, "plan": plans[0] if plans else "", "first": first,
    }  # fmt: skip


def _numbers(rows: Sequence[Row], shared: Mapping[str, set[str]]) -> list[Row]:
    """By measure, then estimator."""
    out: list[Row] = []
    keys = list(dict.fromkeys((one["metric"], one["per"]) for one in rows))
    for metric, per in keys:
        said = measure(metric, per)
        mine = [one for one in rows if (one["metric"], one["per"]) == (metric, per)]
        for place, one in enumerate(mine):
            why = [reason for reason in one["reasons"] if reason not in shared[one["estimator"]]]
            row = {"text": said.text, "first": place == 0, "estimator": one["estimator"], "standing": one["standing"]}
            out.append({**row, "why": "; ".join(why), "difference": "", **_printed(one, said)})
    return out


def _printed(one: Row, said: Measure) -> Row:
    if "difference" not in one:
        return {}
    logged = one["logged"]
    return {
        "logged": figure(logged * said.scale),
        "difference": figure(one["difference"] * said.scale, signed=True),
        "span": span(one["low"], one["high"], scale=said.scale) if one["low"] is not None else "none claimed",
        "bootstrap": span(one["bootstrap_low"], one["bootstrap_high"], scale=said.scale) if "bootstrap_low" in one else "",
        "anytime": span(one["anytime_low"], one["anytime_high"], scale=said.scale) if "anytime_low" in one else "",
        "relative": change(one["difference"] / logged) if logged > 0 else "",
        "detectable": figure(one["detectable"] * said.scale) if "detectable" in one else "–",
    }


def _chart(rows: Sequence[Row]) -> str:
    """Per user, every estimator as a colour."""
    shown = [
        {"name": measure(one["metric"], "user").text, "policy": one["estimator"], "value": one["difference"] / one["logged"],
         "low": one["low"] / one["logged"], "high": one["high"] / one["logged"]}
        for one in rows if one["per"] == "user" and one.get("low") is not None and one["logged"] > 0
    ]  # fmt: skip
    order = list(dict.fromkeys(str(one["name"]) for one in shown))
    shown.sort(key=lambda one: order.index(str(one["name"])))
    labels = list(dict.fromkeys(one["policy"] for one in shown))
    return forest(shown, ["the log", *labels] if labels else [], what="change from the log", percent=True)


def attribution_tables(content: Content) -> tuple[list[Row], list[float]]:
    """Rows (policy, measure, a cell a window), and the windows in hours."""
    return _across(content["attribution"], "hours")


def roll_out_tables(content: Content) -> tuple[list[Row], list[float]]:
    """Rows (policy, measure, a cell an assumption), and the assumed effects."""
    return _across(content["roll_out"], "tiring")


def _across(rows: Sequence[Row], column: str) -> tuple[list[Row], list[float]]:
    """A row a policy and measure, with a cell for each value of `column`; and those values."""
    values = list(dict.fromkeys(one[column] for one in rows))
    out: list[Row] = []
    for policy in dict.fromkeys(one["policy"] for one in rows):
        for place, metric in enumerate(dict.fromkeys(one["metric"] for one in rows)):
            said = measure(metric, "user")
            mine = {one[column]: one for one in rows if (one["policy"], one["metric"]) == (policy, metric)}
            cells = [_small(mine[one], said) for one in values if one in mine]
            out.append({"policy": policy, "text": said.text, "first": place == 0, "cells": cells})
    return out, values


def _small(one: Row, said: Measure) -> Row:
    """A cell: value, interval, share of the log's; why, where refused."""
    if one.get("low") is None:
        return {"value": "", "why": "; ".join(one["reasons"])}
    logged = one["logged"]
    return {
        "value": figure(one["difference"] * said.scale, signed=True),
        "span": span(one["low"], one["high"], scale=said.scale),
        "relative": change(one["difference"] / logged) if logged > 0 else "",
        "differs": not one["low"] <= 0 <= one["high"],
    }


def group_tables(rows: Sequence[Row]) -> dict[str, Any]:
    """Breakdowns as tables, and how many comparisons they are."""
    shown = sum(one.get("low") is not None for one in rows)
    metrics = list(dict.fromkeys(one["metric"] for one in rows))
    measures = [measure(one, "user") for one in metrics]
    tables = {
        key: {
            name: [_small(cells[metric], said) for metric, said in zip(metrics, measures, strict=True)]
            for name, cells in groups.items()
        }
        for key, groups in groups_of(rows).items()
    }
    said = {"compared": f"{shown:,}", "by_chance": f"{0.05 * shown:.0f}"}
    return {"outcome_groups": tables, "group_measures": measures, **said}


def effect_rows(effects: Sequence[Row]) -> list[Row]:
    """Of one holdout."""
    out = []
    for one in effects:
        name, relative = one["outcome"].removesuffix(", relative"), one["outcome"].endswith(", relative")
        said = measure(name, "user")
        removed = f" ({100 * one['variance_removed']:.1f} % of variance removed)" if "variance_removed" in one else ""
        row = {"method": one["method"] + removed, "p": f"{one['p_value']:.3f}" if one["p_value"] >= 0.001 else "< 0.001"}
        row["differs"] = not one["low"] <= 0 <= one["high"]
        if relative:
            text = f"{named(name)}, as a share of the held out's"
            ends = f"{change(one['low'])} … {change(one['high'])}"
            row |= {"text": text, "held_out": "", "sent": "", "value": change(one["value"]), "span": ends}
        else:
            arms = {key: figure(one[key] * said.scale) for key in ("held_out", "sent")}
            ends = span(one["low"], one["high"], scale=said.scale)
            row |= {"text": said.text, **arms, "value": figure(one["value"] * said.scale, signed=True), "span": ends}
        out.append(row)
    return out


def model_tables(simulated: Mapping[str, Any] | None) -> tuple[dict[str, list[Row]], list[float]]:
    """Tables by policy of what `hindcast simulate` found, and the fatigue factors."""
    if simulated is None:
        return {}, []
    rows = simulated["differences"]
    factors = list(dict.fromkeys(one["fatigue"] for one in rows))
    tables: dict[str, list[Row]] = {}
    for policy in dict.fromkeys(one["policy"] for one in rows):
        for metric in dict.fromkeys(one["metric"] for one in rows):
            said = measure(metric, "user")
            mine = {one["fatigue"]: one for one in rows if (one["policy"], one["metric"]) == (policy, metric)}
            cells = [_modelled(mine.get(factor), said) for factor in factors]
            tables.setdefault(policy, []).append({"text": said.text, "cells": cells})
    return tables, factors


def _modelled(one: Row | None, said: Measure) -> Row | None:
    if one is None:
        return None
    share = f" ({change(one['difference'] / one['baseline'])})" if one["baseline"] > 0 else ""
    value = figure(one["difference"] * said.scale, signed=True) + share
    return {"value": value, "span": span(one["low"], one["high"], scale=said.scale)}
