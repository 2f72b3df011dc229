"""Uplift scores: found where there is one to find, not where there is none; samples of a trial are the same however cut."""

from __future__ import annotations

import numpy as np
import pytest

from serve_app.errors import DamagedArtifact
from simulators.replay import uplift as samples
from simulators.replay.trials import OUTCOMES
from simulators.replay.uplift import TrialSample
from simulators.report.uplift import crossed_scores, uplift_of

USERS = 6_000


def trial(moved: float, users: int = USERS, seed: int = 5) -> TrialSample:
    """Two features; messages raise conversions by `moved` x the first, where it is above 0."""
    rng = np.random.default_rng(seed)
    known = rng.normal(size=(users, 2))
    sent = rng.random(users) < 0.5
    p = 0.2 + moved * np.clip(known[:, 0], 0, 1) * sent
    outcome = np.zeros((users, len(OUTCOMES)))
    outcome[:, OUTCOMES.index("conversions")] = rng.random(users) < p
    return TrialSample.of(rng.integers(1, 2**63, users).astype(np.uint64), sent, known, outcome)


def test_a_score_finds_users_whom_messages_move() -> None:
    found = uplift_of(trial(0.4), ("first", "second"))
    assert found["refused"] == ""
    assert found["coefficient"]["low"] > 0
    assert found["excess"]["low"] > 0
    assert found["random"]["low"] <= 0 <= found["random"]["high"]
    assert found["share"][0] == 0
    assert found["share"][-1] == 1


def test_where_nobody_is_moved_nothing_is_found_and_chance_covers_zero() -> None:
    results = [uplift_of(trial(0.0, seed=seed), ("first", "second")) for seed in range(8)]
    assert sum(one["coefficient"]["low"] > 0 for one in results) <= 2
    assert sum(one["random"]["low"] <= 0 <= one["random"]["high"] for one in results) >= 7


def test_no_user_is_scored_by_a_model_that_saw_it() -> None:
    sample = trial(0.4)
    outcome = sample.outcome[:, OUTCOMES.index("conversions")].astype(np.float64)
    before = crossed_scores(sample, outcome)
    other = outcome.copy()
    other[7] += 1000.0
    from serve_app.noise import hash_key
    from simulators.report.uplift import _FOLD, _FOLDS

    fold = hash_key(_FOLD, sample.user) % np.uint64(_FOLDS)
    after = crossed_scores(sample, other)
    assert np.array_equal(before[fold == fold[7]], after[fold == fold[7]])
    assert not np.array_equal(before, after)


def test_too_few_users_are_refused() -> None:
    assert "smaller arm" in uplift_of(trial(0.4, users=400), ("first", "second"))["refused"]
    nobody = trial(0.4)
    nobody.outcome[:] = 0
    assert "had any conversions" in uplift_of(nobody, ("first", "second"))["refused"]


def test_a_sample_is_the_same_however_the_users_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trial(0.4)
    monkeypatch.setattr(samples, "MOST", 500)
    parts = [
        TrialSample.of(*(getattr(whole, name)[some] for name in ("user", "sent", "known", "outcome")))
        for some in np.array_split(np.random.default_rng(1).permutation(USERS), 7)
    ]
    forward, backward = TrialSample.empty(2, len(OUTCOMES)), TrialSample.empty(2, len(OUTCOMES))
    for one in parts:
        forward = forward + one
    for one in reversed(parts):
        backward = backward + one
    assert len(forward.user) == 500
    assert forward.users == backward.users == USERS
    for name, values in forward.to_arrays().items():
        assert np.array_equal(values, backward.to_arrays()[name]), name
    again = TrialSample.empty(2, len(OUTCOMES)).load(forward.to_arrays())
    assert np.array_equal(again.known, forward.known)
    with pytest.raises(DamagedArtifact, match="other settings"):
        TrialSample.empty(3, len(OUTCOMES)).load(forward.to_arrays())
