"""What workers measured adds up to what one would have measured."""

from __future__ import annotations

import json

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from loadtests.scenarios.plan import read_plan
from loadtests.scenarios.recording import Recording, percentile_ms
from loadtests.scenarios.results import result_of

measured = st.tuples(
    st.sampled_from(["before", "spike"]),
    st.sampled_from(["POST /a", "GET /b"]),
    st.floats(0, 30),
    st.sampled_from(["ok", "refused", "failed", "lost"]),
    st.floats(1e-5, 100),
    st.floats(1e-5, 10),
    st.booleans(),
)


def record(recording: Recording, one: tuple) -> None:
    phase, route, at, outcome, response, service, degraded = one
    recording.health.planned += 1
    recording.second(at).planned += 1
    recording.left(response - min(service, response))
    if outcome == "lost":
        recording.lost(phase, route, at)
        return
    recording.answered(
        phase, route, at, outcome=outcome, status="200", response_s=response, service_s=service, size=10, degraded=degraded
    )
    if outcome == "failed":
        recording.violated(route, "wrong", "request", "answer")


def told(recording: Recording) -> dict:
    plan = read_plan(scenario="spike", rate=1, duration_s=10, audience="a")
    result = result_of(plan, recording, missing=0, started_at=0, before={}, after={}, host="h")
    return {name: result[name] for name in ("rows", "seconds", "generator", "violations", "checks")}


@settings(max_examples=8, phases=(Phase.generate,))  # an example is many histograms; shrinking them takes minutes
@given(st.lists(measured, max_size=12), st.integers(1, 4))
def test_parts_that_travelled_as_json_add_up_to_the_whole(all_of_it, workers) -> None:
    whole, merged = Recording(), Recording()
    parts = [Recording() for _ in range(workers)]
    for number, one in enumerate(all_of_it):
        record(whole, one)
        record(parts[number % workers], one)
    for part in parts:
        merged.add_wire(json.loads(json.dumps(part.to_wire())))
    one, other = told(whole), told(merged)
    assert one.pop("violations")["total"] == other.pop("violations")["total"]
    order = lambda row: (row.get("phase", ""), row.get("route", ""))  # noqa: E731
    assert sorted(one.pop("rows"), key=order) == sorted(other.pop("rows"), key=order)
    assert one == other


def test_a_request_that_left_late_is_slow_by_as_much() -> None:
    """A pause of the generator, or of what it waited for, is in the response time though each request was served quickly."""
    recording = Recording()
    for number in range(1000):
        late = max(0.0, 1.0 - number * 0.01) if number < 100 else 0.0  # a pause of one second, at a request every 10 ms
        recording.left(late)
        recording.answered(
            "steady", "POST /a", number * 0.01, outcome="ok", status="200", response_s=late + 0.001, service_s=0.001, size=1,
            degraded=False,
        )  # fmt: skip
    cell = recording.cells["steady", "POST /a"]
    assert percentile_ms(cell.service, 99) < 1.1
    assert percentile_ms(cell.response, 99) > 850  # a tenth of all requests were due within the pause
    assert percentile_ms(recording.health.lateness, 99) > 850


def test_nothing_measured_has_no_percentiles() -> None:
    rows = told(Recording())["rows"]
    assert {row["p99_ms"] for row in rows} == {None}
    assert {row["requests"] for row in rows} == {0}
