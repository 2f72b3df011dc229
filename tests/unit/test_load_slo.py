"""Objectives: read strictly, judged plainly."""

from __future__ import annotations

from pathlib import Path

import pytest

import loadtests
from hindcast.commands.load import _judged
from loadtests.scenarios.errors import LoadError
from loadtests.scenarios.plan import read_plan
from loadtests.scenarios.recording import CAPS, Recording
from loadtests.scenarios.report import holds_until, write_report
from loadtests.scenarios.results import result_of
from loadtests.scenarios.slo import BROKEN, NO_MEASUREMENT, PASSED, Limits, Objectives, judge, read_objectives

OWN = sorted((Path(loadtests.__file__).parent / "slo").glob("*.yaml"))


def run(scenario: str = "baseline", *, late_s: float = 0.001, slow_until: float = 0, **changes) -> dict:
    """A run of twenty seconds at ten a second; a spike from 5 to 15."""
    recording = Recording()
    for number in range(200):
        at = number / 10
        slow = 15 <= at < slow_until
        phase = "steady" if scenario == "baseline" else "before" if at < 5 else "spike" if at < 15 else "after"
        recording.health.planned += 1
        recording.second(at).planned += 1
        recording.left(late_s)
        recording.answered(
            phase, "POST /a", at, outcome="ok", status="200", response_s=2.0 if slow else 0.02, service_s=0.02, size=1,
            degraded=number < 20,
        )  # fmt: skip
    plan = read_plan(scenario=scenario, rate=10, duration_s=20 if scenario == "baseline" else 10, spike_s=10, audience="a")
    facts = {"release": "r", "policy": "p", "topology": "fused"}
    said = {"missing": 0, "started_at": 0.0, "before": facts, "after": facts, "host": "h", **changes}
    return result_of(plan, recording, **said)


def objectives(**said) -> Objectives:
    return Objectives.model_validate({"format": 1, **said})


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ({"all": {"p99_ms": 25}}, PASSED),
        ({"all": {"p99_ms": 15}}, BROKEN),
        ({"all": {"degraded_rate": 0.05}}, BROKEN),
        ({"all": {"throughput": 9.9}}, PASSED),
        ({"all": {"throughput": 10.1}}, BROKEN),
        ({"routes": {"POST /a": {"p999_ms": 25}}}, PASSED),
        ({"routes": {"POST /b": {"p999_ms": 25}}}, BROKEN),  # nothing was asked there: not kept
        ({"phases": {"steady": {"all": {"p50_ms": 1}}}}, PASSED),  # the only phase is the whole
    ],
)
def test_a_run_is_judged_by_each_objective(said, code) -> None:
    if "phases" in said:
        code = BROKEN
    assert judge(run(), objectives(**said)).code == code


def test_a_run_whose_generator_lagged_is_no_measurement() -> None:
    verdict = judge(run(late_s=0.2), objectives(all={"p99_ms": 25}, generator={"lateness_p99_ms": 50}))
    assert verdict.code == NO_MEASUREMENT
    assert "could not keep up" in verdict.invalid[0]
    assert judge(run(missing=1), objectives()).code == NO_MEASUREMENT


def test_wrong_answers_are_wrong_however_late_they_were_asked_for() -> None:
    result = run(late_s=0.2)
    result["violations"]["total"] = 1
    assert judge(result, objectives()).code == BROKEN


def failing(unsent: int, *, failed: int = 100, late_s: float = 0.001) -> dict:
    """A hundred requests, so many of which failed; others found no connection."""
    recording = Recording()
    for number in range(100):
        recording.left(late_s)
        recording.answered(
            "steady", "POST /a", number / 10, outcome="failed" if number < failed else "ok", status="timed out",
            response_s=30.0, service_s=30.0, size=0, degraded=False,
        )  # fmt: skip
    recording.health.planned, recording.health.unsent = 100 + unsent, unsent
    plan = read_plan(scenario="baseline", rate=10, duration_s=10, audience="a")
    return result_of(plan, recording, missing=0, started_at=0.0, before={}, after={}, host="h")


@pytest.mark.parametrize(
    ("result", "code"),
    [
        (failing(900), BROKEN),
        (failing(900, failed=2), BROKEN),
        (failing(900, failed=1), NO_MEASUREMENT),  # one of a thousand is allowed: the others might have been well
        (failing(900, late_s=0.2), NO_MEASUREMENT),  # a generator that lags can make its own time-outs
    ],
)
def test_errors_that_unsent_requests_do_not_explain_break_the_run(result, code) -> None:
    verdict = judge(result, objectives(all={"error_rate": 0.001, "p99_ms": 100}))
    assert verdict.code == code
    assert "900 of 1000 requests were never sent" in verdict.invalid[0]


def test_what_left_and_was_never_answered_has_failed(tmp_path, capsys) -> None:
    """However good the few answers are."""
    recording = Recording()
    for number in range(6000):
        recording.health.planned += 1
        recording.left(0.001)
        if number < 100:
            recording.answered(
                "steady", "POST /a", number / 100, outcome="ok", status="200", response_s=0.02, service_s=0.02, size=1,
                degraded=False,
            )  # fmt: skip
        elif number < 200:
            recording.lost("steady", "POST /b", number / 100)
    plan = read_plan(scenario="baseline", rate=100, duration_s=60, audience="a")
    facts = {"release": "r", "policy": "p", "topology": "fused"}
    result = result_of(plan, recording, missing=0, started_at=0.0, before=facts, after=facts, host="h")
    assert result["rows"][0]["error_rate"] == pytest.approx(5900 / 6000)
    assert _judged(result, tmp_path, next(path for path in OWN if path.stem == "default")) == BROKEN
    for told in (capsys.readouterr().out, (tmp_path / "report.html").read_text()):
        assert "5900 of 6000 requests left and no answer to them was read" in told


@pytest.mark.parametrize(("checks", "told"), [({}, True), ({CAPS: 0}, False)])
def test_a_run_that_knew_no_caps_says_so(tmp_path, capsys, checks, told) -> None:
    _judged({**run(), "checks": checks}, tmp_path, None)
    for page in (capsys.readouterr().out, (tmp_path / "report.html").read_text()):
        assert ("caps were not judged" in page) is told


@pytest.mark.parametrize(("slow_until", "seconds"), [(0, 0), (17, 2), (20, 5)])
def test_recovery_counts_from_the_end_of_the_spike(slow_until, seconds) -> None:
    verdict = judge(run("spike", slow_until=slow_until), objectives(recovery_s=3))
    assert verdict.recovery_s == seconds
    assert verdict.code == (PASSED if seconds <= 3 else BROKEN)


def test_a_ramp_says_which_step_was_the_last_to_hold() -> None:
    recording = Recording()
    for step in range(1, 11):
        for number in range(10 * step):
            recording.answered(
                f"step {step}", "POST /a", step - 1 + number / (10 * step), outcome="ok", status="200",
                response_s=0.02 if step < 7 or step == 9 else 2.0, service_s=0.02, size=1, degraded=False,
            )  # fmt: skip
    plan = read_plan(scenario="ramp", rate=100, duration_s=10, audience="a")
    result = result_of(plan, recording, missing=0, started_at=0.0, before={}, after={}, host="h")
    assert holds_until(result, Limits(p99_ms=100)) == {"step": "step 6", "ok_per_s": 60.0}
    assert holds_until(result, Limits(p99_ms=1)) == {"step": "none", "ok_per_s": 0.0}
    assert holds_until(run(), Limits(p99_ms=1)) is None


def test_goodput_of_a_spike_is_held_against_the_phase_before() -> None:
    limits = {"phases": {"spike": {"goodput_of_before": 0.9}}}
    assert judge(run("spike"), objectives(**limits)).code == PASSED
    assert judge(run("spike"), objectives(phases={"spike": {"goodput_of_before": 1.1}})).code == BROKEN


def test_a_phase_that_the_run_did_not_have_is_an_error() -> None:
    with pytest.raises(LoadError, match="spike"):
        judge(run(), objectives(phases={"spike": {}}))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("format: 1\nal: {p99_ms: 5}", "al: unknown key"),
        ("format: 1\nall: {p99: 5}", "all.p99: unknown key"),
        ("format: 1\nall: {error_rate: 2}", "all.error_rate"),
        ("format: 2", "format"),
        ("a: [", "no YAML"),
    ],
)
def test_a_misspelt_objective_is_an_error(tmp_path, text, words) -> None:
    path = tmp_path / "slo.yaml"
    path.write_text(text)
    with pytest.raises(LoadError, match=words):
        read_objectives(path)


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.stem)
def test_objectives_that_come_with_the_project_can_be_read(path) -> None:
    assert read_objectives(path).format == 1


@pytest.mark.parametrize("scenario", ["baseline", "spike"])
def test_the_report_is_one_file_that_asks_no_network(tmp_path, scenario) -> None:
    result = run(scenario, slow_until=17)
    result["violations"] = {"total": 1, "kept": [{"route": "POST /a", "what": "<b>", "request": "r", "answer": "a"}]}
    limits = objectives(all={"p99_ms": 5})
    write_report(tmp_path, result, limits, judge(result, limits))
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 3
    assert "&lt;b&gt;" in page
    assert "<script" not in page
    assert "http://" not in page.replace("http://www.w3.org/", "")
