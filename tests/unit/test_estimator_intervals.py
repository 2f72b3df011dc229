"""Intervals against known values and against each other."""

from __future__ import annotations

import numpy as np
import pytest

from serve_app.errors import InvalidInput
from simulators.estimators import (
    IPS,
    SNIPS,
    Per,
    clopper_pearson,
    clustered,
    confidence_sequence,
    empirical_bernstein,
    spent_level,
)
from simulators.estimators.bootstrap import poisson_counts
from tests.unit.estimator_support import METRICS, POLICIES, columns, rows_of


def test_clopper_pearson_has_its_textbook_values() -> None:
    found = clopper_pearson(4, 20)
    assert (found.low, found.high) == pytest.approx((0.0573340, 0.4366140), abs=1e-6)
    assert clopper_pearson(0, 10).low == 0
    assert clopper_pearson(0, 10).high == pytest.approx(0.3084971, abs=1e-6)
    assert clopper_pearson(10, 10).high == 1
    with pytest.raises(InvalidInput):
        clopper_pearson(3, 2)


def test_few_users_widen_the_interval() -> None:
    assert clustered(0.0, 1.0, 3).half_width == pytest.approx(4.302653, abs=1e-5)
    assert clustered(0.0, 1.0, 10_000).half_width == pytest.approx(1.960, abs=1e-3)
    assert clustered(0.0, 1.0, 1).half_width == np.inf


def test_empirical_bernstein_is_valid_and_wider() -> None:
    rng = np.random.default_rng(0)
    misses = 0
    for _ in range(300):
        x = rng.binomial(1, 0.1, 400)
        found = empirical_bernstein(float(x.mean()), float(x.var(ddof=1)), 400, 0.0, 1.0)
        misses += not found.covers(0.1)
        assert found.half_width > clustered(float(x.mean()), float(x.var(ddof=1)) / 400, 400).half_width
    assert misses <= 15


def test_a_confidence_sequence_holds_at_every_look() -> None:
    rng = np.random.default_rng(1)
    missed_once, missed_fixed = 0, 0
    looks = np.arange(200, 4001, 200)
    for _ in range(200):
        x = rng.exponential(size=4000)
        means, variances = [x[:k].mean() for k in looks], [x[:k].var(ddof=1) / k for k in looks]
        pairs = list(zip(means, variances, looks.tolist(), strict=True))
        missed_once += any(not confidence_sequence(m, v, k, tightest_at=1000).covers(1.0) for m, v, k in pairs)
        missed_fixed += any(not clustered(m, v, k).covers(1.0) for m, v, k in pairs)
    assert missed_once <= 14
    assert missed_fixed > 25  # looking often with a fixed-time interval is what it protects against


def test_levels_spent_on_repeated_reports_sum_to_alpha() -> None:
    assert sum(1 - spent_level(look) for look in range(1, 20_000)) == pytest.approx(0.05, abs=1e-4)
    assert spent_level(1) < spent_level(2)
    with pytest.raises(InvalidInput):
        spent_level(0)


def test_the_bootstrap_agrees_with_linearisation() -> None:
    rows = rows_of(columns(21, 1500))
    for kind, per in ((IPS, Per.user), (SNIPS, Per.send)):
        estimator = kind(POLICIES, METRICS, replicates=400)
        estimator.update(rows)
        for versus in (None, "bold"):
            linear = estimator.interval("quiet", "click", per, versus=versus)[1]
            bootstrap = estimator.bootstrap("quiet", "click", per, versus=versus)
            assert bootstrap.standard_error == pytest.approx(linear.standard_error, rel=0.12)
            assert bootstrap.low == pytest.approx(linear.low, abs=0.5 * linear.standard_error)
    with pytest.raises(InvalidInput, match="replicates"):
        IPS(POLICIES, METRICS).bootstrap("quiet", "click")


def test_bootstrap_counts_are_poisson_and_a_function_of_the_user() -> None:
    users = np.arange(200_000, dtype=np.uint64)
    first, second = np.empty(len(users)), np.empty(len(users))
    poisson_counts(users, 0, first)
    poisson_counts(users, 1, second)
    assert first.mean() == pytest.approx(1, abs=0.01)
    assert first.var() == pytest.approx(1, abs=0.02)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.01
    again = np.empty(100)
    poisson_counts(users[::-1][:100].copy(), 0, again)
    assert (again == first[::-1][:100]).all()


def test_estimators_give_their_other_intervals() -> None:
    ips, snips = IPS(POLICIES, METRICS), SNIPS(POLICIES, METRICS)
    rows = rows_of(columns(22, 2000))
    for one in (ips, snips):
        one.update(rows)
        value, plain = one.interval("bold", "click", versus="quiet")
        anytime = one.anytime("bold", "click", versus="quiet")
        assert anytime.covers(value)
        assert anytime.half_width > plain.half_width
    bounded = ips.bernstein("bold", "click", 0.0, 60.0)
    assert bounded.half_width > ips.interval("bold", "click")[1].half_width
    totals = np.bincount(np.unique(rows.user, return_inverse=True)[1], rows.weight[:, 2] * rows.reward[:, 0])
    expected = empirical_bernstein(float(totals.mean()), float(totals.var(ddof=1)), len(totals), 0.0, 60.0)
    assert (bounded.low, bounded.high) == pytest.approx((expected.low, expected.high), rel=1e-9)
    with pytest.raises(InvalidInput, match="not a mean over users"):
        snips.bernstein("bold", "click", 0.0, 60.0)
