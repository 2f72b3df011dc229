"""The report as one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from simulators.report.charts import bars_by_policy, differences, lines_by_day, waterfall
from simulators.report.details import groups_of

__all__ = ["page_of"]

_WORDS = {
    "kept": "All guardrails are kept.",
    "broken": "A guardrail is broken.",
    "inconclusive": "The data cannot tell whether a guardrail is kept.",
    "refused": "A guardrail needs a number that this log cannot give.",
    "parity": "The log's own policy does not reproduce the log: nothing below should be relied on.",
}


def page_of(content: Mapping[str, Any], *, title: str, made: Mapping[str, Any]) -> str:
    """made: window and requests (texts), bots (number), lines (how it was computed)."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    policies: Sequence[str] = content["policies"]
    outcome = content["verdict"]["outcome"]
    words = _WORDS[outcome] if content["verdict"]["guardrails"] or outcome != "kept" else "No guardrail was asked about."
    faults = [f"{one['estimator']} of {one['metric']}" for one in content["control"] if one["clean"] is False]
    return environment.get_template("page.html.j2").render(
        **content, title=title, made=made, targets=policies[1:], verdict_words=words, charts=_charts(content, policies),
        control_faults=faults, counted=_counted(content["volume"]),
        comparisons=max((one["comparisons"] for one in content["outcomes"]), default=0),
        number=lambda value: f"{value:,}", percent=_percent, span=_span, signed=lambda value: f"{value:+.4g}",
        short=lambda value: f"{value:.4g}",
        **_groups(content["outcomes_by"]),
    )  # fmt: skip


def _charts(content: Mapping[str, Any], policies: Sequence[str]) -> dict[str, Any]:
    hours = [{"name": str(hour), **{one: content["hours"][one].get(str(hour), 0) for one in policies}} for hour in range(24)]
    most = sorted({key for one in policies for key in content["sends_per_user"][one]}, key=lambda key: int(key.rstrip("+")))
    users = [{"name": key, **{one: content["sends_per_user"][one].get(key, 0) for one in policies}} for key in most]
    return {
        "waterfall": {name: waterfall(content["reasons"], name) for name in policies[1:]},
        "sends_per_user": bars_by_policy(users, policies, what="users", upright=True),
        "days": lines_by_day(content["days"], what="sends"),
        "hours": bars_by_policy(hours, policies, what="sends", upright=True),
        "by": {name: bars_by_policy(rows, policies, what="sends") for name, rows in content["by"].items() if rows},
        "outcomes": {
            metric: differences([one for one in content["outcomes"] if one["per"] == "user"], metric)
            for metric in dict.fromkeys(one["metric"] for one in content["outcomes"])
        },
    }


def _counted(volume: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Sends a user beside the log's, by target."""
    rates = [one["sends"] / max(one["users"], 1) for one in volume]
    return {one["policy"]: rate - rates[0] for one, rate in zip(volume[1:], rates[1:], strict=True)}


def _groups(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Breakdowns as tables, and how many comparisons they are."""
    shown = sum("difference" in one for one in rows)
    said = {"compared": f"{shown:,}", "by_chance": f"{0.05 * shown:.0f}"}
    return {"outcome_groups": groups_of(rows), "group_metrics": list(dict.fromkeys(one["metric"] for one in rows)), **said}


def _percent(value: int, of: int) -> str:
    return f"{100 * (value - of) / of:+.1f} %" if of and value != of else ""


def _span(low: float | None, high: float | None) -> str:
    left = "−∞" if low is None else f"{low:+.4g}"
    right = "∞" if high is None else f"{high:+.4g}"
    return f"{left} … {right}"
