"""Verdicts follow the thresholds, and what is refused has no number."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from serve_app.errors import InvalidInput
from simulators.estimators import (
    DM,
    IPS,
    SNIPS,
    Estimated,
    EstimateSettings,
    Grouping,
    Per,
    PolicyDiagnostics,
    Refused,
    Standing,
    Suite,
    SwitchDR,
    Trust,
    VerdictSettings,
    checked_rows,
)
from simulators.estimators.verdicts import judge, judge_change

GOOD = PolicyDiagnostics(
    rows=1e5, users=20_000, live_weight=5e4, ess_rows=9_000, ess_users=4_000, unsupported=0.0, changed=0.1,
    unsupported_change=0.0, largest_user=0.001, largest_weight=9.0, mean_weight=1.001, mean_weight_standard_error=0.002,
    mean_weight_distance=0.5, excluded={},
)  # fmt: skip
LIMITS = VerdictSettings()


def standing(**changes: Any) -> Standing:
    return judge(dataclasses.replace(GOOD, **changes), LIMITS, clean=True).standing


def test_good_weights_with_a_clean_control_are_usable() -> None:
    assert standing() == Standing.usable
    assert judge(GOOD, LIMITS).reasons == ("no A/A control was run",)
    assert judge(GOOD, LIMITS, clean=False).standing == Standing.weak
    assert judge(GOOD, LIMITS, clean=True, trust=Trust.model).standing == Standing.weak
    assert judge(GOOD, LIMITS, clean=True, trust=Trust.biased).standing == Standing.weak


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"ess_users": 200.0}, Standing.weak),
        ({"ess_users": 199.9}, Standing.refused),
        ({"ess_rows": 999.9}, Standing.weak),
        ({"ess_rows": 1000.0, "ess_users": 1000.0}, Standing.usable),
        ({"unsupported": 0.01}, Standing.usable),
        ({"unsupported": 0.05}, Standing.weak),
        ({"unsupported": 0.0501}, Standing.refused),
        ({"largest_user": 0.02}, Standing.usable),
        ({"largest_user": 0.1}, Standing.weak),
        ({"largest_user": 0.11}, Standing.refused),
        ({"mean_weight_distance": -4.0}, Standing.usable),
        ({"mean_weight_distance": 4.1}, Standing.refused),
        ({"mean_weight_distance": np.nan}, Standing.refused),
        ({"live_weight": 0.0}, Standing.refused),
        ({"rows": 0.0}, Standing.refused),
        ({"excluded": {"propensity_zero": 1_000}}, Standing.weak),
        ({"excluded": {"propensity_zero": 10_000}}, Standing.refused),
    ],
)
def test_each_threshold_stands_where_it_is_declared(changes: dict[str, Any], expected: Standing) -> None:
    assert standing(**changes) == expected


def world(users: int, *, epsilon: float, overlap: bool = True, seed: int = 0) -> dict[str, Any]:
    """Half the decisions are made well by policy A, half by B; the log is A with flips."""
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(users), 4)
    n = len(user)
    flip = rng.random(n) < epsilon
    send = (~flip if overlap else np.ones(n, bool)).astype(float)
    p = np.where(flip, epsilon, 1 - epsilon) if overlap else np.ones(n)
    click = send * (rng.random(n) < 0.2)
    quiet = np.where(send > 0, 0.3, 0.7)  # sends with probability .3
    return {
        "user": user, "propensity": p, "target": np.stack([p, quiet], axis=1), "reward": click,
        "send": send, "target_send": np.stack([np.full(n, (1 - epsilon) if overlap else 1.0), np.full(n, 0.3)], axis=1),
        "unsupported": np.stack([np.zeros(n), np.full(n, 0.0 if overlap else 0.7)], axis=1),
    }  # fmt: skip


def suite_of(found: dict[str, Any]) -> Suite:
    suite = Suite([IPS(["same", "quiet"], ["click"]), SNIPS(["same", "quiet"], ["click"])])
    suite.update(checked_rows(**found))
    return suite


def test_a_supported_policy_is_usable_and_its_value_right() -> None:
    found = list(suite_of(world(4000, epsilon=0.3)).estimates(control="same", per=[Per.decision, Per.send]))
    assert {one.verdict.standing for one in found} == {Standing.usable}
    values = [one for one in found if one.subject.policy == "quiet" and one.subject.versus is None]
    for one in values:
        assert isinstance(one, Estimated)
        assert one.interval is not None
        assert one.interval.covers(0.06 if one.subject.per is Per.decision else 0.2)
    assert len(found) == 2 * 2 * 2 * 2


def test_a_policy_without_overlap_is_refused_and_has_no_number() -> None:
    found = [one for one in suite_of(world(4000, epsilon=0.3, overlap=False)).estimates() if one.subject.policy == "quiet"]
    assert found
    for one in found:
        assert isinstance(one, Refused)
        assert not hasattr(one, "value")
        assert any("could not be logged" in reason for reason in one.verdict.reasons)


def test_a_wrong_propensity_shows_in_the_mean_weight() -> None:
    found = world(4000, epsilon=0.3)
    found["propensity"] = np.where(found["propensity"] == 0.3, 0.2, 0.8)
    suite = suite_of(found)
    assert abs(suite.weights_of("ips", "quiet").mean_weight_distance) > 4
    assert suite.verdict("ips", "quiet", "click", EstimateSettings()).standing == Standing.refused


def test_a_difference_is_no_better_than_either_policy() -> None:
    found = world(4000, epsilon=0.3)
    found["unsupported"][:, 0] = 0.4
    found["target"][:, 0] *= 0.6
    ones = list(suite_of(found).estimates(versus="same"))
    assert {type(one) for one in ones if one.subject.policy == "quiet" and one.subject.versus == "same"} == {Refused}
    assert {type(one) for one in ones if one.subject.policy == "quiet" and one.subject.versus is None} == {Estimated}


def test_a_metric_that_hardly_anybody_earned_is_weak() -> None:
    found = world(4000, epsilon=0.3)
    rare = np.zeros(len(found["reward"]))
    rare[np.flatnonzero(found["send"])[::8][:20]] = 1.0
    suite = suite_of({**found, "reward": rare})
    verdict = suite.verdict("snips", "same", "click", EstimateSettings(), control="same")
    assert verdict.standing == Standing.weak
    assert verdict.reasons == ("only about 20 users earned it",)


def test_the_control_catches_a_policy_that_does_not_reproduce_the_log() -> None:
    suite = suite_of(world(4000, epsilon=0.3))
    settings = EstimateSettings()
    assert suite.control_is_clean("ips", "same", "click", settings) is True
    assert suite.control_is_clean("ips", "quiet", "click", settings) is False
    assert suite.verdict("ips", "quiet", "click", settings, control="quiet").standing == Standing.weak


def test_structurally_silent_rows_do_not_count_as_information() -> None:
    found = world(4000, epsilon=0.3)
    found["send"][400:] = 0
    found["reward"][400:] = 0
    diagnosed = suite_of(found).weights_of("ips", "same")
    assert diagnosed.ess_rows <= 400
    assert diagnosed.users == 4000


def test_breakdowns_are_judged_by_their_own_rows_and_count_their_comparisons() -> None:
    found = world(3000, epsilon=0.3)
    code = np.where(np.arange(len(found["user"])) < 11_000, 0, 1)
    labels = Grouping("segment", ("large", "small", "empty"), "user")
    suite = Suite([SNIPS(["same", "quiet"], ["click"], grouping=labels), SNIPS(["same", "quiet"], ["click"])])
    suite.update(checked_rows(**found, groups={"segment": code}))
    by_group = {
        one.subject.group: one for one in suite.estimates(versus=None, control="same")
        if one.subject.policy == "same" and one.subject.group
    }  # fmt: skip
    assert [one.verdict.standing for one in by_group.values()] == [Standing.usable, Standing.weak, Standing.refused]
    assert {one.comparisons for one in by_group.values()} == {6}


def test_a_split_by_choice_offers_only_what_it_knows() -> None:
    channels = Grouping("channel", ("push", "email"), "choice")
    found = world(3000, epsilon=0.3)
    code = np.where(found["send"] > 0, np.arange(len(found["user"])) % 2, -1)
    suite = Suite([kind(["same", "quiet"], ["click"], grouping=channels) for kind in (IPS, SNIPS)])
    suite.update(checked_rows(**found, groups={"channel": code}))
    asked = {(one.subject.estimator, one.subject.per) for one in suite.estimates(per=list(Per))}
    assert asked == {("ips by channel", Per.user), ("snips by channel", Per.send)}
    total = IPS(["same", "quiet"], ["click"])
    total.update(checked_rows(**found))
    parts = [suite["ips by channel"].point("quiet", "click", group=g).value for g in range(2)]
    assert sum(parts) == pytest.approx(total.point("quiet", "click").value)
    with pytest.raises(InvalidInput, match="split by what was chosen"):
        DM(["same"], ["click"], grouping=channels)


def test_a_choice_over_a_grid_claims_no_interval_and_flags_its_ends() -> None:
    found = world(3000, epsilon=0.3)
    n = len(found["user"])
    found["q_logged"], found["q_target"] = np.full(n, 0.2) * found["send"], np.full((n, 2, 1), 0.06)
    suite = Suite([SwitchDR(["same", "quiet"], ["click"], grid=[0.5, 1.0, 5.0])])
    suite.update(checked_rows(**found))
    chosen = suite["switch-dr"].choice("quiet", "click")  # type: ignore[attr-defined]
    (found_one,) = [one for one in suite.estimates(versus=None) if one.subject.policy == "quiet"]
    assert isinstance(found_one, Estimated)
    assert found_one.interval is None
    assert found_one.verdict.standing == Standing.weak
    assert chosen.at_boundary == any("grid's end" in reason for reason in found_one.verdict.reasons)
    assert "no coverage" in found_one.notes[0]


@pytest.mark.parametrize(("share", "expected"), [(0.1, Standing.usable), (0.5, Standing.weak), (0.501, Standing.refused)])
def test_a_difference_rests_on_what_the_log_tried_of_the_change(share: float, expected: Standing) -> None:
    assert judge_change(dataclasses.replace(GOOD, unsupported_change=share), LIMITS).standing == expected


def _forced_log(change: float, tried: float) -> Suite:
    """5,000 users, each of whom was sent one message, a share of `tried` with probability 1/2. A target withholds a share of
    `change` of the messages; a control withholds none."""
    n = 5_000
    rng = np.random.default_rng(1)
    withheld, drawn = rng.random(n) < change, rng.random(n) < tried
    propensity = np.where(drawn, 0.5, 1.0)
    sent = ~drawn | (rng.random(n) < 0.5)
    of_target = np.where(sent, np.where(withheld, 0.0, propensity), np.where(withheld, 1.0, propensity))
    suite = Suite([IPS(["again", "withholds"], ["clicks"])])
    suite.update(
        checked_rows(
            np.arange(n, dtype=np.uint64), propensity, np.stack([propensity, of_target], axis=1),
            (sent & (rng.random(n) < 0.3)).astype(float)[:, None], send=sent.astype(float),
            target_send=np.stack([propensity, np.where(withheld, 0.0, propensity)], axis=1),
            unsupported=np.stack([np.zeros(n), np.where(withheld & ~drawn, 1.0, 0.0)], axis=1),
        )
    )  # fmt: skip
    return suite


def test_what_a_log_never_tried_has_a_value_of_its_own_but_no_difference() -> None:
    """One message in 200 would be withheld, and never was: little of the target is unsupported, but all that it changes."""
    found = {
        one.subject.versus: one
        for one in _forced_log(0.005, 0.0).estimates(control="again")
        if one.subject.policy != "again"
    }
    assert isinstance(found[None], Estimated)
    refused = found["logged"]
    assert isinstance(refused, Refused)
    assert refused.verdict.reasons == ("100% of what the policy changes could not be logged",)


def test_what_a_log_tried_has_a_difference_and_what_changes_nothing_differs_by_nothing() -> None:
    for change, tried in ((0.2, 1.0), (0.0, 0.0)):
        for one in _forced_log(change, tried).estimates(control="again"):
            assert isinstance(one, Estimated), one
    changed = _forced_log(0.2, 1.0).weights_of("ips", "withholds").changed
    assert abs(changed - 0.1) < 0.02, "half of what it withholds had been withheld anyway"
