"""Guardrails: files that are right, bounds that hold, exit codes a CI job can act on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from serve_app.errors import InvalidInput
from simulators.estimators import IPS, SNIPS, Suite, checked_rows
from simulators.replay.rewards import METRICS
from simulators.replay.spec import CONTROL
from simulators.report.guardrails import Guardrail, Outcome, judge_guardrails, load_guardrails, worst

USERS = 4_000


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
    found = judge_guardrails(rails, _suite(moved), {"logged": 2.0, "new": sends})
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
    found = judge_guardrails({"clicks": rail}, suite, {"logged": 1.0, "new": 1.0})[0]
    assert found.outcome is Outcome.refused
    assert found.low is None
    assert "sample size" in found.why


def test_broken_outranks_the_rest_and_parity_comes_next() -> None:
    found = judge_guardrails(
        {"sends": Guardrail.model_validate({"max_increase": {"relative": 0.0}})}, _suite(0.0), {"logged": 2.0, "new": 3.0}
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
        ("clicks: {}", "max_increase, max_decrease or both"),
        ("clicks: {max_increase: {relative: -1}}", "guardrails.clicks.max_increase.relative"),
        ("clicks: [1", "cannot be read"),
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
        judge_guardrails({"clicks": rail}, _suite(0.0), {"logged": 1.0, "new": 1.0})
