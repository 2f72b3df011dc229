"""The judgement of a spike: every promise can be broken."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest

from loadtests.growth import Series
from loadtests.scenarios.plan import read_plan
from loadtests.scenarios.recording import Recording
from loadtests.scenarios.results import result_of
from loadtests.spike_report import Limits, judged, memory_of, told

CAPACITY = 10.0
ROUTE = "POST /v1/recommendations/related"


def spike() -> dict[str, Any]:
    """Eight a second, a hundred a second from second 5 to 15, eight a second; nine a second answered in the spike."""
    recording = Recording()
    for second in range(20):
        phase = "before" if second < 5 else "spike" if second < 15 else "after"
        offered, answered = (100, 9) if phase == "spike" else (8, 8)
        for n in range(offered):
            at, good = second + n / offered, n < answered
            recording.health.planned += 1
            recording.second(at).planned += 1
            recording.left(0.001)
            recording.answered(
                phase, ROUTE, at, outcome="ok" if good else "refused", status="200" if good else "503 overloaded",
                response_s=0.5 if phase == "spike" and good else 0.02, service_s=0.02, size=1, degraded=False,
            )  # fmt: skip
    plan = read_plan(scenario="spike", rate=8, factor=12.5, duration_s=10, spike_s=10, audience="a")
    facts = {"release": "r", "policy": "p", "topology": "chain"}
    result = result_of(plan, recording, missing=0, started_at=1_000.0, before=facts, after=facts, host="h")
    return {**result, "exit_code": 0}


def measured() -> dict[str, Any]:
    refusal = {"connections": 8, "refused_per_s": 900.0, "not_refused_properly": 0}
    memory = [{"process": "Ingress 7", "before": 400.0, "most": 420.0, "after": 405.0}]
    return {
        "topology": "chain", "set_capacity_per_s": CAPACITY, "measured_capacity_per_s": 10.1, "spike": spike(),
        "memory": memory, "refusals": [refusal],
    }  # fmt: skip


def broken(found: dict[str, Any]) -> set[str]:
    return {one["what"] for one in judged(found, Limits()) if not one["kept"]}


def test_a_spike_that_bends_and_does_not_break_keeps_everything() -> None:
    assert broken(measured()) == set()


def _slow(found: dict[str, Any]) -> None:
    for row in found["spike"]["rows"]:
        row["max_ms"] = 1_400.0


def _idle(found: dict[str, Any]) -> None:
    for row in found["spike"]["rows"]:
        row["ok_per_s"] = 7.9


def _failing(found: dict[str, Any]) -> None:
    found["spike"]["seconds"][7]["failed"] = 1


def _long_ill(found: dict[str, Any]) -> None:
    found["spike"]["seconds"][-1].update(ok=1, refused=7)
    found["spike"]["seconds"] += [{**found["spike"]["seconds"][-1], "second": second} for second in (20, 21)]


def _growing(found: dict[str, Any]) -> None:
    found["memory"][0]["after"] = 440.0


def _lagging(found: dict[str, Any]) -> None:
    found["spike"]["exit_code"] = 12


def _mild(found: dict[str, Any]) -> None:
    found["set_capacity_per_s"] = 12.0


def _improper(found: dict[str, Any]) -> None:
    found["refusals"][0]["not_refused_properly"] = 1


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (_slow, "every answer came by its deadline"),
        (_idle, "goodput is 80% of the capacity"),
        (_failing, "every answer is a result or a proper refusal"),
        (_improper, "every answer is a result or a proper refusal"),
        (_long_ill, "as before soon after"),
        (_growing, "memory is flat"),
        (_lagging, "the generator kept up"),
        (_mild, "ten times the capacity was offered"),
    ],
)
def test_what_is_broken_is_named(spoil: Callable[[dict[str, Any]], None], what: str) -> None:
    found = deepcopy(measured())
    spoil(found)
    assert what in broken(found)


def test_a_call_that_was_never_answered_has_no_slowest_answer() -> None:
    found = measured()
    for row in found["spike"]["rows"]:
        row["max_ms"] = None
    assert "every answer came by its deadline" not in broken(found)


def test_figures_of_a_refusal_are_told() -> None:
    rows = {(row["phase"], row["route"]): row for row in told(measured())["rows"]}
    assert rows["spike", ROUTE]["refusal_p99_ms"] == pytest.approx(20, rel=0.02)
    assert rows["spike", ROUTE]["refused_rate"] == pytest.approx(0.91)


def test_memory_is_that_before_the_most_during_and_that_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    series = {("Ingress 7", "memory"): Series(), ("Ingress 7", "handles"): Series(), ("short 8", "memory"): Series()}
    watched: Any = SimpleNamespace(began=100.0, series=series)
    for second in range(25):  # the run starts three seconds after the watch
        value = 10.0 if second < 8 else 50.0 if second < 18 else 12.0
        series["Ingress 7", "memory"].add(second, value)
    series["short 8", "memory"].add(9, 1.0)
    monkeypatch.setattr("loadtests.spike_report.time.time", lambda: 2_000.0)
    monkeypatch.setattr("loadtests.spike_report.time.monotonic", lambda: 1_103.0)
    assert memory_of(watched, spike()) == [{"process": "Ingress 7", "before": 10.0, "most": 50.0, "after": 12.0}]
