"""The report as one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from simulators.report.charts import POLICY_COLOURS, bars_by_policy, changes, lines_by_day, qini_curve, waterfall
from simulators.report.items_view import surface_view
from simulators.report.tables import (
    attribution_tables,
    effect_rows,
    group_tables,
    model_tables,
    outcome_tables,
    roll_out_tables,
)
from simulators.report.views import glance, glance_chart, guardrail_rows, left_out_lines, sends_check
from simulators.report.words import about, change, figure, named, reason_text, spaced, span

__all__ = ["page_of", "templates"]

_WORDS = {
    "kept": "All guardrails are kept.",
    "broken": "A guardrail is broken.",
    "inconclusive": "The data cannot tell whether a guardrail is kept.",
    "refused": "A guardrail needs a number that this log cannot give.",
    "parity": "The log's own policy does not reproduce the log: nothing below should be relied on.",
}
_SHOWN = 12  # campaigns and categories of a chart


def templates() -> jinja2.Environment:
    """Of this package; what a template names and does not get is an error."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip


def page_of(content: Mapping[str, Any]) -> str:
    """From the content of `content_of`. Equal contents give equal bytes."""
    policies: Sequence[str] = content["policies"]
    outcome = content["verdict"]["outcome"]
    words = _WORDS[outcome] if content["verdict"]["guardrails"] or outcome != "kept" else "No guardrail was asked about."
    faults = [f"{one['estimator']} of {named(one['metric'])}" for one in content["control"] if one["clean"] is False]
    windows, hours = attribution_tables(content)
    rolled, assumed = roll_out_tables(content)
    modelled, factors = model_tables(content["simulated"])
    return templates().get_template("page.html.j2").render(
        content, title=f"Hindcast: {', '.join(policies[1:])} against the log", verdict_words=words,
        guardrails=guardrail_rows(content["verdict"]["guardrails"]), glance=glance(content), colours=POLICY_COLOURS,
        sends_check=sends_check(content), left_out_lines=left_out_lines(content), control_faults=faults,
        comparisons=_comparisons(content), carried=any(one["carried"] for one in content["volume"]),
        triggered=any(one["share_triggered"] for one in content["volume"]),
        started=any(one["start"]["users"] for one in content["volume"]),
        charts=_charts(content, policies), by_policy=[_by_policy(content, name) for name in policies[1:]],
        outcomes_by_policy=outcome_tables(content), measures=_measures(content), attribution_tables=windows,
        attribution_hours=hours, simulated_tables=modelled, simulated_fatigue=factors,
        roll_out_rows=rolled, roll_out_assumed=assumed,
        **group_tables(content["outcomes_by"]),
        list_views=[surface_view(one) for one in content.get("lists", ())], waived=content["parity"].get("waived", False),
        effect_rows=effect_rows, qini_chart=_qini_chart, number=spaced, percent=_percent, share=_share, span=span,
        figure=figure, reason_text=reason_text,
    )  # fmt: skip


def _comparisons(content: Mapping[str, Any]) -> dict[str, int]:
    """Intervals on the page: at a glance, and in all."""
    first = sum(len(one) - 1 for one in content["headline"].values())
    kinds = ("outcomes", "outcomes_by", "attribution")
    printed = sum(one.get("low") is not None for kind in kinds for one in content[kind])
    return {"headline": first, "all": printed + sum(len(one["effects"]) for one in content["incrementality"])}


def _measures(content: Mapping[str, Any]) -> list[dict[str, str]]:
    metrics = dict.fromkeys(one["metric"] for one in content["outcomes"])
    return [{"text": named(name), "about": about(name)} for name in metrics]


def _charts(content: Mapping[str, Any], policies: Sequence[str]) -> dict[str, str]:
    """Those that show all policies beside each other."""
    hours = [{"name": str(hour), **{one: content["hours"][one].get(str(hour), 0) for one in policies}} for hour in range(24)]
    most = sorted({key for one in policies for key in content["sends_per_user"][one]}, key=lambda key: int(key.rstrip("+")))
    users = [{"name": key, **{one: content["sends_per_user"][one].get(key, 0) for one in policies}} for key in most]
    return {
        "glance": glance_chart(content),
        "sends_per_user": bars_by_policy(users, policies, what="users", along="sends in the window"),
        "days": lines_by_day(_same_days(content["days"]), what="sends"),
        "hours": bars_by_policy(hours, policies, what="sends", along="hour"),
    }


def _same_days(days: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    """Of the log's days: deferrals of the last one may come due after it."""
    return {name: {day: by_day.get(day, 0) for day in days["logged"]} for name, by_day in days.items()}


def _by_policy(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    """One target's waterfall, winners and losers."""
    reasons = [{**one, "name": reason_text(one["name"])} for one in content["reasons"]]
    parts = {by: changes(_moved(rows, name), name) for by, rows in content["by"].items() if rows}
    return {"policy": name, "waterfall": waterfall(reasons, name), "changes": parts}


def _moved(rows: Sequence[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
    return sorted(rows, key=lambda row: (-abs(row[name] - row["logged"]), row["name"]))[:_SHOWN]


def _qini_chart(uplift: Mapping[str, Any]) -> str:
    return qini_curve(uplift["share"], uplift["gained"], what=f"{uplift['outcome']} gained a user")


def _percent(value: int, of: int) -> str:
    return change((value - of) / of) if of else ""


def _share(value: int, of: int) -> str:
    return f"{100 * value / of:.1f} %" if of else "–"
