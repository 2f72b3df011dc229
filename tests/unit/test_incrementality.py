"""Effects from holdouts: against textbook tests, with covariates, ratios, lift, net value and the sample ratio."""

from __future__ import annotations

from functools import reduce
from operator import add

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from serve_app.errors import DamagedArtifact, InvalidInput
from simulators.estimators import Trial, sample_ratio

RNG = np.random.default_rng(7)
N = 8000
USER = np.arange(N, dtype=np.uint64)
ARM = (RNG.random(N) < 0.9).astype(int)
BEFORE = RNG.gamma(2.0, size=N)
ORDERS = RNG.poisson(0.3 + 0.2 * BEFORE + 0.1 * ARM)
VISITS = ORDERS + 1 + RNG.poisson(1.0, N)
OUTCOMES = np.stack([ORDERS, VISITS], axis=1).astype(float)


def trial() -> Trial:
    return Trial(["held out", "sent"], ["orders", "visits"], ["orders before"])


@pytest.fixture(scope="module")
def found() -> Trial:
    out = trial()
    out.update(USER, ARM, OUTCOMES, BEFORE)
    return out


def test_the_effect_is_welchs_difference_with_normal_quantiles(found: Trial) -> None:
    sent, held = ORDERS[ARM == 1], ORDERS[ARM == 0]
    effect = found.effect("sent", "orders")
    error = np.sqrt(sent.var(ddof=1) / len(sent) + held.var(ddof=1) / len(held))
    assert effect.value == pytest.approx(sent.mean() - held.mean(), rel=1e-12)
    assert effect.interval.standard_error == pytest.approx(error, rel=1e-10)
    assert effect.interval.low == pytest.approx(effect.value - 1.959963985 * error, rel=1e-8)
    welch = stats.ttest_ind(sent, held, equal_var=False)
    assert effect.p_value == pytest.approx(welch.pvalue, rel=0.05)
    assert (effect.treated_users, effect.control_users) == (len(sent), len(held))


def test_cuped_takes_away_what_the_past_explains_and_moves_the_value_little(found: Trial) -> None:
    plain, adjusted = found.effect("sent", "orders"), found.cuped("sent", "orders")
    assert 0.05 < adjusted.variance_removed < 0.6
    assert adjusted.effect.interval.half_width < plain.interval.half_width
    assert adjusted.effect.interval.covers(0.1)
    y, x = ORDERS.astype(float), BEFORE
    within = [np.cov(y[arm == ARM], x[arm == ARM], ddof=0) * (arm == ARM).sum() for arm in (0, 1)]
    theta = sum(w[0, 1] for w in within) / sum(w[1, 1] for w in within)
    assert adjusted.theta == pytest.approx([theta])
    residual = y - theta * x
    expected = residual[ARM == 1].mean() - residual[ARM == 0].mean()
    assert adjusted.effect.value == pytest.approx(expected)


def test_ratios_and_lifts_use_the_delta_method(found: Trial) -> None:
    ratio, lift = found.ratio("sent", "orders", "visits"), found.lift("sent", "orders")
    sent, held = ARM == 1, ARM == 0
    assert ratio.value == pytest.approx(ORDERS[sent].sum() / VISITS[sent].sum() - ORDERS[held].sum() / VISITS[held].sum())
    assert lift.value == pytest.approx(ORDERS[sent].mean() / ORDERS[held].mean() - 1)
    draws = []
    rng = np.random.default_rng(0)
    for _ in range(300):
        pick = rng.integers(0, N, N)
        s, h = pick[sent[pick]], pick[held[pick]]
        draws.append([
            ORDERS[s].sum() / VISITS[s].sum() - ORDERS[h].sum() / VISITS[h].sum(), ORDERS[s].mean() / ORDERS[h].mean() - 1
        ])  # fmt: skip
    assert [ratio.interval.standard_error, lift.interval.standard_error] == pytest.approx(np.std(draws, axis=0), rel=0.15)


def test_net_value_is_the_effect_on_a_weighted_sum(found: Trial) -> None:
    worth = found.combined("sent", {"orders": 5.0, "visits": -0.1})
    table = Trial(["held out", "sent"], ["net"])
    table.update(USER, ARM, 5.0 * ORDERS - 0.1 * VISITS)
    assert worth.value == pytest.approx(table.effect("sent", "net").value)
    assert worth.interval.standard_error == pytest.approx(table.effect("sent", "net").interval.standard_error)


def test_the_sample_ratio_is_pearsons(found: Trial) -> None:
    counts = np.bincount(ARM)
    good = found.sample_ratio([0.1, 0.9])
    assert good.p_value == pytest.approx(stats.chisquare(counts, counts.sum() * np.array([0.1, 0.9])).pvalue)
    assert good.matches
    assert not found.sample_ratio([0.15, 0.85]).matches
    for shares in ([0.5], [0.5, 0.6], [1.0, 0.0]):
        with pytest.raises(InvalidInput):
            sample_ratio([5, 5], shares)
    with pytest.raises(InvalidInput):
        sample_ratio([0, 0], [0.5, 0.5])


@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(0, 500), max_size=4), order=st.randoms())
def test_trials_merge_to_the_same_bytes(cuts: list[int], order: object) -> None:
    whole, rows = trial(), np.arange(500)
    whole.update(USER[rows], ARM[rows], OUTCOMES[rows], BEFORE[rows])
    parts = []
    for piece in np.split(rows, sorted(cuts)):
        part = trial()
        part.update(USER[piece], ARM[piece], OUTCOMES[piece], BEFORE[piece])
        parts.append(part)
    order.shuffle(parts)  # type: ignore[attr-defined]
    merged = reduce(add, parts).to_arrays()
    assert all(array.tobytes() == merged[name].tobytes() for name, array in whole.to_arrays().items())
    again = trial().load(merged)
    assert again.effect("sent", "orders") == whole.effect("sent", "orders")
    with pytest.raises(DamagedArtifact):
        Trial(["held out", "sent"], ["orders"]).load(merged)


def test_bad_trials_are_named() -> None:
    for arguments, field in (
        ((USER[:2], [0, 2], OUTCOMES[:2], BEFORE[:2]), "arm"),
        ((USER[[1, 1]], [0, 1], OUTCOMES[:2], BEFORE[:2]), "user"),
        ((USER[:2], [0, 1], [[1, np.nan], [1, 1]], BEFORE[:2]), "outcome"),
        ((USER[:2], [0, 1], [[1], [1]], BEFORE[:2]), "outcome"),
    ):
        with pytest.raises(InvalidInput, match=field):
            trial().update(*arguments)  # type: ignore[arg-type]
    empty = trial()
    with pytest.raises(InvalidInput, match="two in each arm"):
        empty.effect("sent", "orders")
    with pytest.raises(InvalidInput, match="'sold' is not among"):
        empty.effect("sent", "sold")
    with pytest.raises(InvalidInput):
        Trial(["only"], ["orders"])
    with pytest.raises(InvalidInput, match="different settings"):
        trial() + Trial(["held out", "sent"], ["orders"])
