"""What a spike must keep, and the figures that are told of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from loadtests.scenarios.results import ALL
from loadtests.scenarios.slo import recovery_seconds
from serve_app.settings_requests import BudgetSettings

if TYPE_CHECKING:
    from loadtests.soak import Watch

__all__ = ["LIMITED", "Limits", "judged", "memory_of", "told"]

_BUDGETS = BudgetSettings()
LIMITED = {
    "POST /v1/recommendations/related": float(_BUDGETS.request_ms),
    "POST /v1/recommendations/gateway": float(_BUDGETS.request_ms),
    "POST /v1/widgets/rank": float(_BUDGETS.request_ms),
    "POST /v1/reviews/rank": float(_BUDGETS.request_ms),
    "POST /v1/notifications/decide": float(_BUDGETS.decide_ms),
}
"""Calls whose capacity the test sets, and their deadlines, ms."""
_SETTLED_S = 5.0


@dataclass(frozen=True)
class Limits:
    """on_the_way_ms: from the deadline in the server to the answer in the client's hands, its own queue included."""

    goodput: float = 0.8
    recovery_s: float = 5.0
    memory_mb: float = 32.0
    on_the_way_ms: float = 250.0


def memory_of(watch: Watch, spike: Mapping[str, Any]) -> list[dict[str, Any]]:
    """MB of every process before the spike, at most during it, and at the end."""
    start = spike["started_at"] - (time.time() - (time.monotonic() - watch.began))
    phase = next(one for one in spike["phases"] if one["name"] == "spike")
    begins = start + phase["start_s"]
    ends = begins + phase["seconds"]
    out = []
    for (name, what), series in sorted(watch.series.items()):
        samples = list(zip(series.times, series.values, strict=True))
        before = [value for at, value in samples if begins - _SETTLED_S <= at < begins]
        during = [value for at, value in samples if begins <= at < ends]
        after = [value for at, value in samples if at >= ends][-int(_SETTLED_S) :]
        if what == "memory" and before and during and after:
            out.append({"process": name, "before": median(before), "most": max(during), "after": median(after)})
    return out


def judged(measured: Mapping[str, Any], limits: Limits) -> list[dict[str, Any]]:
    """Every promise, what was measured, and whether it was kept."""
    spike, capacity = measured["spike"], measured["set_capacity_per_s"]
    rows = {(row["phase"], row["route"]): row for row in spike["rows"]}
    offered, recovery = rows["spike", ALL], recovery_seconds(spike)
    goodput = sum(rows["spike", route]["ok_per_s"] for route in LIMITED if ("spike", route) in rows)
    late = {
        route: round(row["max_ms"])
        for route, most in LIMITED.items()
        if (row := rows.get((ALL, route))) and (row["max_ms"] or 0) > most + limits.on_the_way_ms
    }
    grown = {
        one["process"]: round(one["after"] - one["before"], 1)
        for one in measured["memory"]
        if one["after"] - one["before"] > limits.memory_mb
    }
    generator, improper = spike["generator"], sum(one["not_refused_properly"] for one in measured["refusals"])
    failed = sum(one["failed"] for one in spike["seconds"])
    return [
        _check("the generator kept up", spike["exit_code"] != 12, f"{generator['lateness_p99_ms']:.1f} ms late at p99"),
        _check("ten times the capacity was offered", offered["per_s"] >= 9 * capacity, f"{offered['per_s']:.0f} a second"),
        _check("every answer is a result or a proper refusal", not failed and not improper, f"{failed + improper} are not"),
        _check("what answers say is right", not spike["violations"]["total"], f"{spike['violations']['total']} are not"),
        _check("every answer came by its deadline", not late, late or f"slowest {_slowest(rows):.0f} ms"),
        _check(
            f"goodput is {limits.goodput:.0%} of the capacity", goodput >= limits.goodput * capacity,
            f"{goodput:.1f} of {capacity:g} a second ({goodput / capacity:.0%})",
        ),
        _check("as before soon after", recovery is not None and recovery <= limits.recovery_s, f"{recovery} s"),
        _check("memory is flat", not grown, grown or f"at most {_most(measured):+.1f} MB"),
    ]  # fmt: skip


def _check(what: str, kept: bool, measured: Any) -> dict[str, Any]:
    return {"what": what, "kept": bool(kept), "measured": measured}


def _slowest(rows: Mapping[tuple[str, str], Mapping[str, Any]]) -> float:
    return max((rows[ALL, route]["max_ms"] or 0.0 for route in LIMITED if (ALL, route) in rows), default=0.0)


def _most(measured: Mapping[str, Any]) -> float:
    return max((one["after"] - one["before"] for one in measured["memory"]), default=0.0)


def told(measured: Mapping[str, Any]) -> dict[str, Any]:
    """The report's figures: of the spike, the rows of routes by phase."""
    spike = measured["spike"]
    kept = (
        "phase",
        "route",
        "requests",
        "per_s",
        "ok_per_s",
        "p50_ms",
        "p99_ms",
        "max_ms",
        "refusal_p50_ms",
        "refusal_p99_ms",
    )
    rows = [{name: row[name] for name in (*kept, "refused_rate", "error_rate", "statuses")} for row in spike["rows"]]
    names = ("topology", "set_capacity_per_s", "measured_capacity_per_s", "memory", "refusals")
    return {
        **{name: measured[name] for name in names},
        "rows": rows,
        "most_refused_per_s": spike["most_refused_per_s"],
        "recovery_s": recovery_seconds(spike),
        "seconds": spike["seconds"],
        "generator": spike["generator"],
    }
