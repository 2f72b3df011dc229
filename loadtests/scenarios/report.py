"""A run's report: one HTML file that needs nothing else, and the same as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2

from loadtests.scenarios.charts import flow_chart, latency_chart, percentile_chart
from loadtests.scenarios.recording import CAPS, Recording
from loadtests.scenarios.results import ALL
from loadtests.scenarios.slo import BROKEN, PASSED, Finding, Limits, Objectives, Verdict

__all__ = ["holds_until", "remarks", "verdict_words", "write_report"]

_PERCENTS = (0.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95, 99.99)
_LEAST_BEYOND = 5  # a percentile is drawn where so many requests lie beyond it


def verdict_words(verdict: Verdict) -> str:
    """One sentence."""
    if verdict.code == PASSED:
        return "Every objective is kept."
    if verdict.code == BROKEN:
        broken = sum(one.kept is False for one in verdict.findings)
        unknown = sum(one.kept is None for one in verdict.findings)
        return f"{broken} of {len(verdict.findings)} objectives are not kept" + (
            f", {unknown} could not be judged: nothing was asked there." if unknown else "."
        )
    return "This run is no measurement."


def remarks(result: Mapping[str, Any]) -> list[str]:
    """What to know beside the verdict."""
    generator, out = result["generator"], []
    if lost := generator.get("unanswered", 0):
        out.append(f"{lost} of {generator['sent']} requests left and no answer to them was read: they count as failed")
    if CAPS not in result["checks"]:
        out.append("caps were not judged: no file of the policy tells them")
    return out


def holds_until(result: Mapping[str, Any], limits: Limits) -> dict[str, Any] | None:
    """Of a ramp: the last step before the first that broke `all` limits, with its rate; None of other shapes."""
    if result["plan"]["scenario"] != "ramp":
        return None
    rows = {row["phase"]: row for row in result["rows"] if row["route"] == ALL}
    last = None
    for phase in result["phases"]:
        row = rows.get(phase["name"])
        said = limits.model_dump(exclude_none=True, exclude={"throughput"})
        if row is None or any(row[name] is None or row[name] > limit for name, limit in said.items()):
            break
        last = {"step": phase["name"], "ok_per_s": row["ok_per_s"]}
    return last or {"step": "none", "ok_per_s": 0.0}


def write_report(out: Path, result: Mapping[str, Any], objectives: Objectives, verdict: Verdict) -> None:
    """OUT/report.json and OUT/report.html."""
    content = {
        **{name: value for name, value in result.items() if name != "wire"},
        "verdict": {
            "code": verdict.code,
            "words": verdict_words(verdict),
            "invalid": list(verdict.invalid),
            "remarks": remarks(result),
            "recovery_s": verdict.recovery_s,
            "holds_until": holds_until(result, objectives.all),
            "findings": [_told(one) for one in verdict.findings],
        },
    }
    (out / "report.json").write_text(json.dumps(content, indent=1))
    (out / "report.html").write_text(_page(content, _curves(result)), encoding="utf-8")


def _told(one: Finding) -> dict[str, Any]:
    bound = "at least" if one.floor else "at most"
    return {"where": one.where, "what": one.what, "bound": bound, "limit": one.limit, "measured": one.measured,
            "kept": one.kept}  # fmt: skip


def _curves(result: Mapping[str, Any]) -> dict[str, dict[float, float]]:
    whole = Recording()
    whole.add_wire(result["wire"])
    out = {}
    for route in sorted({route for _, route in whole.cells}):
        parts = [cell.response for (_, own), cell in whole.cells.items() if own == route]
        one = parts[0]
        for other in parts[1:]:
            one.add(other)
        count = one.get_total_count()
        if not count:  # nothing was answered there
            continue
        fits = [p for p in _PERCENTS if p < 100 and (p <= 50 or count * (1 - p / 100) >= _LEAST_BEYOND)]
        out[route] = {p: one.get_value_at_percentile(p) / 1e3 for p in fits}
    return out


def _page(content: Mapping[str, Any], curves: Mapping[str, Mapping[float, float]]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    seconds, phases = content["seconds"], content["phases"]
    return environment.get_template("report.html.j2").render(
        **content,
        at=datetime.fromtimestamp(content["started_at"], UTC).strftime("%Y-%m-%d %H:%M UTC"),
        flow=flow_chart(seconds, phases),
        latency=latency_chart(seconds, phases),
        percentiles=percentile_chart(curves),
        ms=_ms, percent=_percent, number=_number, statuses=_statuses,
        load=_load_words(content["plan"]),
        ALL=ALL,
    )  # fmt: skip


def _load_words(plan: Mapping[str, Any]) -> str:
    if plan["scenario"] == "replay":
        return f"a trace, {plan['speed']:g} times its own speed (open loop)"
    if plan["rate"] is not None:
        return f"{plan['rate']:g} requests/s (open loop, {plan['arrivals']} arrivals)"
    return f"{plan['users']} users who wait for answers (closed loop)"


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def _percent(value: float) -> str:
    return f"{100 * value:.3g} %" if value else "0"


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:,.4g}"


def _statuses(row: Mapping[str, int]) -> Sequence[tuple[str, int]]:
    return sorted(row.items(), key=lambda one: -one[1])
