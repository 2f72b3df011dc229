"""Assignment by salted hash: exact shares over many salts, stable, and independent of every other assignment."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from scipy.stats import chi2, chi2_contingency, kstest

from serve_app.ledger.columns import Histories
from serve_app.policy.assign import assign
from serve_app.policy.holdouts import held_out_by
from serve_app.stages.decision import Decision
from serve_app.stages.stage import Context
from tests.unit.decision_support import DAY, at, batch_of, candidate, compiled, request

NOW = at("2026-03-10T12:00:00")
USERS = np.arange(1, 200_001).astype(np.uint64)  # the worst ids for a weak hash: consecutive


def held(salt: str, percent: float, users: Any = USERS) -> Any:
    """bool: held out of everything."""
    holdouts = compiled(holdouts=[{"id": "h", "scope": "global", "percent": percent, "salt": salt}]).holdouts
    n = len(users)
    rows = np.ones(n, np.uint64), np.full(n, 2, np.int8)
    return held_out_by(holdouts, np.arange(n + 1), users, np.full(n, NOW), *rows)[0] >= 0


def arms(salt: str, percents: list[float], users: Any = USERS, when: int = NOW) -> Any:
    """Arm of each user, from 0."""
    own = [{"id": f"a{i}", "percent": percent} for i, percent in enumerate(percents)]
    trials = compiled(experiments=[{"id": "e", "salt": salt, "arms": own}]).trials
    return (assign(trials, users, np.full(len(users), when)).arms & np.uint64(15)).astype(np.int64) - 1


def cells(salt: str, when: int = NOW) -> Any:
    """Cell of each user."""
    variants = [{"id": "a", "probability": 0.3}, {"id": "b", "probability": 0.7}]
    trials = compiled(cells={"salt": salt, "epoch_hours": 24, "variants": variants}).trials
    return assign(trials, USERS, np.full(len(USERS), when)).cell.astype(np.int64)


def flips(salt: str) -> Any:
    """Was each user's choice flipped?"""
    policy = compiled(flips={"probability": 0.3, "to": "none", "salt": salt})
    batch = batch_of([request([candidate()])]).take(np.zeros(len(USERS), np.int64))
    batch.requests["user"] = batch.requests["root_id"] = batch.requests["request_id"] = USERS
    return Decision().run(batch, Context((policy,), {"histories": Histories.empty(len(USERS))})).requests["explored"]


@pytest.mark.parametrize("percent", [0.01, 1.0, 2.5, 33.33, 50.0])
def test_shares_are_exact_in_expectation_over_many_salts(percent: float) -> None:
    users, p = USERS[:20_000], percent / 100
    counts = np.array([held(f"salt {i}", percent, users).sum() for i in range(100)])
    assert abs(counts.sum() - 2_000_000 * p) < 4.5 * (2_000_000 * p * (1 - p)) ** 0.5
    if percent >= 1:  # and they spread as a fair draw's do, no more and no less
        statistic = ((counts - 20_000 * p) ** 2 / (20_000 * p * (1 - p))).sum()
        assert 1e-5 < chi2.sf(statistic, 100) < 1 - 1e-5
        assert kstest((counts - 20_000 * p) / (20_000 * p * (1 - p)) ** 0.5, "norm").pvalue > 1e-5


def test_arms_are_as_large_as_stated_to_a_hundredth_of_a_percent() -> None:
    percents = [0.01, 10.25, 39.74, 50.0]
    counts = sum(np.bincount(arms(f"salt {i}", percents), minlength=4) for i in range(10))
    expected = np.array(percents) * 20_000
    assert chi2.sf(((counts - expected) ** 2 / expected).sum(), 3) > 1e-5


def test_no_assignment_tells_anything_of_another() -> None:
    marks = {
        "holdout 1": held("g", 30), "holdout 2": held("h", 30), "holdout of 5 %": held("i", 5),
        "experiment 1": arms("g2", [50, 25, 25]), "experiment 2": arms("h2", [50, 50]),
        "cell": cells("c"), "cell tomorrow": cells("c", NOW + DAY), "cells of another salt": cells("d"),
        "flip": flips("f"), "flip of another salt": flips("g"),
        # One salt says nothing of another kind of assignment either.
        "flip of a cell's salt": flips("c"),
        "user": USERS % np.uint64(7), "high bits of the user": USERS >> np.uint64(15),
    }  # fmt: skip
    pairs = [(a, b) for a, b in combinations(marks, 2) if not a.endswith("user") or not b.endswith("user")]
    for a, b in pairs:
        one, other = (np.unique(marks[name], return_inverse=True)[1] for name in (a, b))
        table = np.bincount(one * (other.max() + 1) + other, minlength=(one.max() + 1) * (other.max() + 1))
        p = chi2_contingency(table.reshape(one.max() + 1, other.max() + 1)).pvalue
        assert p > 1e-3 / len(pairs), f"{a} and {b}: p = {p}"


def test_an_assignment_stays_as_the_rest_of_the_document_changes_and_as_a_share_grows() -> None:
    small, large = held("s", 5), held("s", 20)
    assert (large | ~small).all()  # who was held out stays held out
    caps = [{"id": "c", "scope": "global", "limit": 1, "window": {"calendar": "day"}}]
    experiment = {"id": "e", "salt": "e", "arms": [{"id": "a", "percent": 50}, {"id": "b", "percent": 50}]}
    before = assign(compiled(experiments=[experiment]).trials, USERS, np.full(len(USERS), NOW)).arms
    renamed = experiment | {"id": "renamed"}
    after = assign(compiled(caps=caps, experiments=[renamed]).trials, USERS, np.full(len(USERS), NOW + 90 * DAY)).arms
    assert np.array_equal(before, after)
