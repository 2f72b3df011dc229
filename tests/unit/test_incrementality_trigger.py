"""Users enter at their first would-send; what counts is inside the window, in both arms alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from serve_app.errors import InvalidInput
from simulators.estimators import Trial, TrialRows, trial_rows

DAY = 86_400_000_000


def rows(**changes: Any) -> TrialRows:
    """User 5 held out on day 10, user 3 sent on day 12, user 9 sent on day 29."""
    events = [
        (3, 11, 0, 1.0), (3, 12, 0, 1.0), (3, 18, 1, 30.0), (3, 19, 1, 99.0), (5, 9, 1, 5.0), (5, 10, 0, 1.0),
        (5, 10.5, 0, 1.0), (4, 12, 0, 1.0), (5, 11, -1, 1.0), (5, 1, 0, 1.0), (9, 29, 0, 1.0),
    ]  # fmt: skip
    user, at, kind, amount = zip(*events, strict=True)
    arguments = {
        "event_user": np.array(user, np.uint64), "event_at": (np.array(at) * DAY).astype(np.int64), "event_kind": kind,
        "event_amount": amount, "kinds": 2, "window_us": 7 * DAY, "before_us": 7 * DAY, "log_from": 0,
        "complete_to": 30 * DAY, "user": np.array([5, 9, 3], np.uint64), "at": np.array([10, 29, 12]) * DAY,
        "held": [True, False, False],
    }  # fmt: skip
    return trial_rows(**{**arguments, **changes})


def test_outcomes_lie_in_the_window_and_covariates_before_it() -> None:
    found = rows()
    assert found.user.tolist() == [3, 5]
    assert found.arm.tolist() == [1, 0]
    assert found.outcome.tolist() == [[1.0, 30.0], [2.0, 0.0]]  # the window is [t, t + 7 days)
    assert found.covariate.tolist() == [[1.0, 0.0], [0.0, 5.0]]
    assert found.too_young == 1
    assert found.short_history == 0


def test_users_whose_past_is_cut_off_are_counted() -> None:
    assert rows(log_from=4 * DAY).short_history == 1


def test_event_order_and_company_do_not_matter() -> None:
    found, order = rows(), np.random.default_rng(0).permutation(11)
    plain = rows()
    assert (found.outcome == plain.outcome).all()
    events = {name: np.array(value)[order] for name, value in {
        "event_user": [3, 3, 3, 3, 5, 5, 5, 4, 5, 5, 9], "event_kind": [0, 0, 1, 1, 1, 0, 0, 0, -1, 0, 0],
        "event_amount": [1.0, 1, 30, 99, 5, 1, 1, 1, 1, 1, 1],
    }.items()}  # fmt: skip
    at = (np.array([11, 12, 18, 19, 9, 10, 10.5, 12, 11, 1, 29]) * DAY).astype(np.int64)[order]
    shuffled = rows(**{**events, "event_at": at})
    assert (shuffled.outcome == plain.outcome).all()
    assert (shuffled.covariate == plain.covariate).all()


def test_a_user_with_two_first_would_sends_is_an_error() -> None:
    with pytest.raises(InvalidInput, match="two first would-sends"):
        rows(user=np.array([5, 5, 3], np.uint64))


def test_ghosts_and_sends_make_an_unbiased_trial() -> None:
    """A planted effect is recovered although only the active would have been sent to."""
    rng = np.random.default_rng(3)
    n = 6000
    active = rng.gamma(2.0, size=n)
    held = rng.random(n) < 0.3
    triggered = rng.random(n) < 1 - np.exp(-active)
    user = np.flatnonzero(triggered)
    orders = rng.poisson(0.2 * active + np.where(held, 0.0, 0.3))
    buyers = np.repeat(np.arange(n), orders)
    found = trial_rows(
        user, np.full(len(user), 10 * DAY), held[user], event_user=buyers, event_at=np.full(len(buyers), 11 * DAY),
        event_kind=np.zeros(len(buyers)), event_amount=np.ones(len(buyers)), kinds=1, window_us=7 * DAY, before_us=DAY,
        log_from=0, complete_to=30 * DAY,
    )  # fmt: skip
    trial = Trial(["held out", "sent"], ["orders"])
    trial.update(found.user, found.arm, found.outcome)
    assert trial.effect("sent", "orders").interval.covers(0.3)
    assert trial.sample_ratio([0.3, 0.7]).matches
