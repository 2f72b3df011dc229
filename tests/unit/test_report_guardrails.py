"""Guardrails: files that are right, bounds that hold, exit codes a CI job can act on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from serve_app.errors import InvalidInput
from simulators.estimators import IPS, SNIPS, Suite, checked_rows
from simulators.replay.rewards import METRICS
from simulators.replay.spec import CONTROL
from simulators.report.guardrails import Found, Guardrail, Outcome, judge_guardrails, load_guardrails, placed, worst

USERS = 4_000
ORDER = {"new": ("cells", "snips")}


def _volumes(sends: float, reach: float = 0.5) -> dict[str, dict[str, float]]:
    return {"logged": {"sends": 2.0, "reach": 0.5}, "new": {"sends": sends, "reach": reach}}


def _suite(clicks_moved: float) -> Suite:
    """A target that sends like the log; its clicks differ by `clicks_moved` of the log's."""
    rng = np.random.default_rng(3)
    names = (CONTROL, "new")
    suite = Suite([IPS(names, METRICS), SNIPS(names, METRICS)])
    logged = np.full(USERS, 0.5)
    first = rng.random(USERS) < 0.5
    reward = np.zeros((USERS, len(METRICS)))
    reward[:, 0] = 1
    reward[:, 1] = rng.random(USERS) < np.where(first, 0.5, 0.5 - clicks_moved * 5)
    share = 0.4 if clicks_moved else 0.5
    target = np.stack([logged, np.where(first, share, 1 - share)], axis=1)
    ones = np.ones((USERS, 2))
    suite.update(
        checked_rows(np.arange(USERS, dtype=np.uint64), logged, target, reward, send=np.ones(USERS), target_send=ones)
    )
    return suite


def _outcome(rail: dict[str, object], moved: float, name: str = "clicks", sends: float = 2.0) -> Outcome:
    rails = {name: Guardrail.model_validate(rail)}
    found = judge_guardrails(rails, _suite(moved), _volumes(sends), order=ORDER)
    assert [one.policy for one in found] == ["new"]
    return found[0].outcome


@pytest.mark.parametrize(
    ("rail", "moved", "expected"),
    [
        ({"max_decrease": {"relative": 0.5}}, 0.05, Outcome.kept),
        ({"max_decrease": {"relative": 0.001}}, 0.0, Outcome.kept),
        ({"max_decrease": {"absolute": 0.025}}, 0.05, Outcome.inconclusive),
        ({"max_increase": {"absolute": 10.0}, "max_decrease": {"absolute": 0.0001}}, 0.08, Outcome.broken),
    ],
)
def test_the_whole_interval_decides(rail: dict[str, object], moved: float, expected: Outcome) -> None:
    assert _outcome(rail, moved) is expected


@pytest.mark.parametrize(("sends", "expected"), [(2.0, Outcome.kept), (1.9, Outcome.kept), (2.001, Outcome.broken)])
def test_sends_are_counted_and_never_inconclusive(sends: float, expected: Outcome) -> None:
    assert _outcome({"max_increase": {"relative": 0.0}}, 0.0, "sends", sends) is expected


def test_a_number_the_log_cannot_give_is_refused_not_guessed() -> None:
    suite = Suite([IPS((CONTROL, "new"), METRICS)])
    few = np.full(50, 0.5)
    suite.update(checked_rows(np.arange(50, dtype=np.uint64), few, np.stack([few, few], 1), np.zeros((50, len(METRICS)))))
    rail = Guardrail.model_validate({"max_decrease": {"relative": 0.1}, "estimator": "ips"})
    found = judge_guardrails({"clicks": rail}, suite, _volumes(1.0), order=ORDER)[0]
    assert found.outcome is Outcome.refused
    assert found.low is None
    assert "sample size" in found.why


def test_broken_outranks_the_rest_and_parity_comes_next() -> None:
    found = judge_guardrails(
        {"sends": Guardrail.model_validate({"max_increase": {"relative": 0.0}})}, _suite(0.0), _volumes(3.0), order=ORDER
    )
    assert worst(found, parity=False) is Outcome.broken
    assert worst([], parity=False) is Outcome.parity
    assert worst([], parity=True) is Outcome.kept
    assert {one.name: int(one) for one in Outcome} == {
        "kept": 0, "broken": 10, "inconclusive": 11, "refused": 12, "parity": 13,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no guardrails"),
        ("clikcs: {max_increase: {relative: 0.1}}", "guardrails.clikcs"),
        ("clicks: {max_rise: {relative: 0.1}}", "guardrails.clicks.max_rise"),
        ("clicks: {max_increase: {relative: 0.1, absolute: 1}}", "either relative or absolute"),
        ("clicks: {max_increase: {}}", "either relative or absolute"),
        ("clicks: {}", "max_increase, max_decrease, min or max"),
        ("clicks: {max_increase: {relative: -1}}", "guardrails.clicks.max_increase.relative"),
        ("clicks: [1", "cannot be read"),
        ("clicks: {min: 2, max: 1}", "min is above max"),
        ("clicks: {min: .nan}", "guardrails.clicks.min"),
        ("sends: {max: 3, estimator: ips}", "counted, not estimated"),
        ("click_rates: {min: 0.1}", "one of sends, reach, clicks"),
        ("clicks: {max_rise: {relative: 0.1}}", "keys are max_increase"),
    ],
)
def test_a_malformed_file_names_the_key_and_the_fix(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "rails.yaml"
    path.write_text(text)
    with pytest.raises(InvalidInput, match=said):
        load_guardrails(path)


def test_an_estimator_that_did_not_run_is_named() -> None:
    rail = Guardrail.model_validate({"max_increase": {"relative": 0.1}, "estimator": "cells"})
    with pytest.raises(InvalidInput, match=r"cells.*ips, snips"):
        judge_guardrails({"clicks": rail}, _suite(0.0), _volumes(1.0), order=ORDER)


def test_the_estimator_is_settled_before_any_number_is_looked_at() -> None:
    suite = _suite(0.05)
    rail = Guardrail.model_validate({"max_decrease": {"relative": 0.5}})
    (found,) = judge_guardrails({"clicks": rail}, suite, _volumes(2.0), order=ORDER)
    assert found.estimator == "snips", "cells did not run; the next in order speaks"
    with pytest.raises(InvalidInput, match="no estimator"):
        judge_guardrails({"clicks": rail}, suite, _volumes(2.0), order={"new": ("cells",)})


def test_bounds_of_the_policys_own_value_look_at_its_own_interval() -> None:
    suite = _suite(0.05)
    value, interval = suite["snips"].interval("new", "clicks")
    rail = {"min": interval.low - 1e-6, "max": interval.high + 1e-6}
    assert _outcome(rail, 0.05) is Outcome.kept
    assert _outcome({"min": value}, 0.05) is Outcome.inconclusive
    assert _outcome({"max": interval.low - 1e-6}, 0.05) is Outcome.broken
    assert _outcome({"max": 3.0}, 0.0, "sends", sends=3.0) is Outcome.kept
    assert _outcome({"min": 0.6}, 0.0, "reach") is Outcome.broken


def test_bounds_of_change_and_of_level_are_two_verdicts() -> None:
    rail = Guardrail.model_validate({"max_increase": {"absolute": 5.0}, "max": 2.5})
    found = judge_guardrails({"sends": rail}, _suite(0.0), _volumes(3.0), order=ORDER)
    assert [(one.of, one.outcome) for one in found] == [("change", Outcome.kept), ("level", Outcome.broken)]


_ENDS = st.floats(-100, 100)
_BOUNDS = st.none() | _ENDS


@given(st.tuples(_ENDS, _ENDS).map(sorted), st.tuples(_BOUNDS, _BOUNDS))
def test_where_the_interval_lies_is_the_outcome(ends: list[float], allowed: tuple[float | None, float | None]) -> None:
    low, high = ends
    least = -np.inf if allowed[0] is None else allowed[0]
    most = np.inf if allowed[1] is None else allowed[1]
    assume(least <= most)
    outcome = placed((low, high), allowed)
    within = [least <= value <= most for value in np.linspace(low, high, 101)]
    if outcome is Outcome.kept:
        assert all(within)
    elif outcome is Outcome.broken:
        assert not any(within)
    else:
        assert least > low or most < high
        assert high >= least
        assert low <= most
    wider = placed((low - 1, high + 1), allowed)
    assert outcome is Outcome.kept or wider is not Outcome.kept, "a wider interval keeps nothing that a narrower one did not"
    assert outcome is not Outcome.inconclusive or wider is Outcome.inconclusive


@given(st.lists(st.sampled_from([one for one in Outcome if one is not Outcome.parity])), st.booleans())
def test_the_exit_code_is_the_worst_outcomes(outcomes: list[Outcome], parity: bool) -> None:
    blank = dict.fromkeys(("low", "high", "allowed_low", "allowed_high", "logged"))
    texts = {"metric": "clicks", "policy": "new", "of": "change", "estimator": "", "standing": "", "why": ""}
    code = worst([Found.model_validate({**blank, **texts, "outcome": one}) for one in outcomes], parity=parity)
    every = {*outcomes, *(() if parity else (Outcome.parity,))}
    assert code in (every or {Outcome.kept})
    if Outcome.broken in every:
        assert code is Outcome.broken
    elif not parity:
        assert code is Outcome.parity
    assert (int(code) == 0) == (every <= {Outcome.kept})
