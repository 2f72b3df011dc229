"""What more of a log would bring, and what no amount of it would."""

from __future__ import annotations

import dataclasses

import pytest

from serve_app.errors import InvalidInput
from simulators.estimators import VerdictSettings, minimum_detectable, plan_for
from tests.unit.test_estimator_verdicts import GOOD

LIMITS = VerdictSettings()


def test_the_detectable_difference_is_the_textbooks() -> None:
    assert minimum_detectable(1.0) == pytest.approx(2.8016, abs=1e-4)
    assert minimum_detectable(2.0, power=0.9) == pytest.approx(2 * 3.2415, abs=1e-3)
    with pytest.raises(InvalidInput):
        minimum_detectable(1.0, power=1.0)


def test_a_small_sample_needs_more_of_the_same() -> None:
    plan = plan_for(dataclasses.replace(GOOD, ess_users=50.0), LIMITS)
    assert (plan.times_for_weak, plan.times_for_usable) == (4.0, 20.0)
    assert plan_for(GOOD, LIMITS).times_for_usable == 1.0
    assert plan_for(dataclasses.replace(GOOD, largest_user=0.1), LIMITS).times_for_usable == pytest.approx(5.0)


@pytest.mark.parametrize(
    "changes",
    [{"unsupported": 0.3}, {"mean_weight_distance": 9.0}, {"ess_rows": 0.0}, {"excluded": {"propensity_zero": 90_000}}],
)
def test_some_refusals_no_amount_of_log_lifts(changes: dict[str, object]) -> None:
    plan = plan_for(dataclasses.replace(GOOD, **changes), LIMITS)  # type: ignore[arg-type]
    assert plan.times_for_weak is None
    assert plan.reason


def test_a_share_between_the_thresholds_stays_weak() -> None:
    plan = plan_for(dataclasses.replace(GOOD, unsupported=0.03), LIMITS)
    assert (plan.times_for_weak, plan.times_for_usable) == (1.0, None)
