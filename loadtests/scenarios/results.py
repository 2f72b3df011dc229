"""A run's recording as the numbers people read: one table of routes, one of phases, one of seconds."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping
from typing import Any

from loadtests.scenarios.plan import Phase, Plan, Scenario, phases_of
from loadtests.scenarios.recording import Cell, Recording, percentile_ms

__all__ = ["ALL", "result_of"]

ALL = "all"
_PERCENTS = {"p50_ms": 50, "p90_ms": 90, "p99_ms": 99, "p999_ms": 99.9, "max_ms": 100}


def result_of(
    plan: Plan,
    recording: Recording,
    *,
    missing: int,
    started_at: float,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    host: str,
) -> dict[str, Any]:
    """Everything of result.json. missing: workers whose measurements never came."""
    phases = _phases(plan, recording)
    # Whatever left and stands in no cell has no result.
    nowhere = max(0, recording.health.sent - sum(sum(one.outcomes.values()) for one in recording.cells.values()))
    rows = [
        {"phase": ALL, "route": ALL, **_row(recording.cells.values(), sum(one.seconds for one in phases), nowhere)},
        *_rows_of(recording, phases),
    ]
    return {
        "format": 1,
        "plan": plan.model_dump(mode="json"),
        "phases": [{"name": one.name, "start_s": one.start_s, "seconds": one.seconds} for one in phases],
        "started_at": started_at,
        "host": host,
        "server": {"before": dict(before), "after": dict(after)},
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "python": platform.python_version()},
        "rows": rows,
        "seconds": _seconds(recording),
        "most_refused_per_s": max((one.outcomes["refused"] for one in recording.seconds.values()), default=0),
        "generator": _generator(recording, missing, nowhere),
        "violations": {"total": recording.violations_total, "kept": recording.violations},
        "checks": dict(recording.checks),
        "wire": recording.to_wire(),
    }


def _phases(plan: Plan, recording: Recording) -> tuple[Phase, ...]:
    if plan.scenario is not Scenario.replay:
        return phases_of(plan)
    last = max(recording.seconds, default=0) + 1
    return (Phase(phases_of(plan)[0].name, 0.0, float(last), 1.0, 1.0),)


def _rows_of(recording: Recording, phases: tuple[Phase, ...]) -> list[dict[str, Any]]:
    seconds = {phase.name: phase.seconds for phase in phases}
    routes = sorted({route for _, route in recording.cells})
    out = []
    for route in routes:
        cells = [cell for (_, own), cell in recording.cells.items() if own == route]
        out.append({"phase": ALL, "route": route, **_row(cells, sum(seconds.values()))})
    for name in seconds if len(seconds) > 1 else ():
        own = {route: cell for (phase, route), cell in recording.cells.items() if phase == name}
        out.append({"phase": name, "route": ALL, **_row(own.values(), seconds[name])})
        out += [{"phase": name, "route": route, **_row([own[route]], seconds[name])} for route in sorted(own)]
    return out


def _row(cells: Iterable[Cell], seconds: float, nowhere: int = 0) -> dict[str, Any]:
    whole = Cell()
    for one in cells:
        whole += one
    whole.outcomes["failed"] += nowhere
    count = sum(whole.outcomes.values())
    share = (lambda n: n / count) if count else (lambda _: 0.0)
    return {
        "requests": count,
        "per_s": count / seconds,
        "ok_per_s": whole.outcomes["ok"] / seconds,
        **{name: percentile_ms(whole.response, percent) for name, percent in _PERCENTS.items()},
        "service_p50_ms": percentile_ms(whole.service, 50),
        "service_p99_ms": percentile_ms(whole.service, 99),
        "refusal_p50_ms": percentile_ms(whole.refusal, 50),
        "refusal_p99_ms": percentile_ms(whole.refusal, 99),
        "error_rate": share(whole.outcomes["failed"]),
        "refused_rate": share(whole.outcomes["refused"]),
        "degraded_rate": share(whole.degraded),
        "violations": whole.violations,
        "statuses": dict(whole.statuses),
    }


def _seconds(recording: Recording) -> list[dict[str, Any]]:
    return [
        {
            "second": at,
            "planned": one.planned,
            **{name: one.outcomes[name] for name in ("ok", "refused", "failed")},
            "p50_ms": percentile_ms(one.response, 50),
            "p99_ms": percentile_ms(one.response, 99),
        }
        for at, one in sorted(recording.seconds.items())
    ]


def _generator(recording: Recording, missing: int, nowhere: int) -> dict[str, Any]:
    health = recording.health
    return {
        "planned": health.planned,
        "sent": health.sent,
        "unsent": health.unsent,
        "unanswered": health.unanswered + nowhere,
        "lateness_p50_ms": percentile_ms(health.lateness, 50),
        "lateness_p99_ms": percentile_ms(health.lateness, 99),
        "lateness_max_ms": percentile_ms(health.lateness, 100),
        "workers": health.workers,
        "workers_missing": missing,
    }


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
