"""Qini and AUUC: a random score's interval covers 0, a good score's does not; merging is exact."""

from __future__ import annotations

import numpy as np
import pytest

from serve_app.errors import DamagedArtifact, InvalidInput
from simulators.estimators import Qini, score_edges

RNG = np.random.default_rng(5)
N = 20_000
USER = np.arange(N, dtype=np.uint64)
GAIN = RNG.random(N)
TREATED = RNG.random(N) < 0.8
OUTCOME = (RNG.random(N) < 0.1 + 0.3 * GAIN * TREATED).astype(float)


def of(score: np.ndarray, *, replicates: int = 60, bins: int = 100) -> Qini:
    out = Qini(score_edges(score, bins), replicates=replicates)
    out.update(USER, score, TREATED, OUTCOME)
    return out


def test_a_random_scores_intervals_cover_zero_and_a_good_ones_do_not() -> None:
    random, good, reversed_ = (of(one).result() for one in (RNG.random(N), GAIN, -GAIN))
    assert random.coefficient_interval.covers(0.0)
    assert random.auuc_excess_interval.covers(0.0)
    assert good.coefficient_interval.low > 0
    assert good.auuc_excess_interval.low > 0
    assert reversed_.coefficient_interval.high < 0
    assert good.users == N


def test_the_curve_ends_at_the_average_effect_and_has_its_closed_form() -> None:
    found = of(GAIN, replicates=20).result()
    effect = OUTCOME[TREATED].mean() - OUTCOME[~TREATED].mean()
    assert found.qini[-1] == pytest.approx(effect, abs=1e-6)
    assert found.share[0] == 0
    assert found.share[-1] == 1
    # Gain of the best share phi: integral of .3 g from 1 - phi to 1; area between it and the line: .3 / 12.
    assert found.coefficient == pytest.approx(0.3 / 12, abs=0.006)
    assert found.auuc - found.auuc_excess == pytest.approx(effect / 2, abs=1e-6)


def test_random_scores_cover_zero_as_often_as_they_say() -> None:
    covered = sum(of(np.random.default_rng(seed).random(N), replicates=40).result().coefficient_interval.covers(0.0)
                  for seed in range(20))  # fmt: skip
    assert covered >= 15


def test_merging_is_exact_and_saved_sums_come_back() -> None:
    whole = of(GAIN, replicates=10)
    half = np.arange(N) % 2 == 0
    parts = []
    for rows in (~half, half):
        part = Qini(whole.edges, replicates=10)
        part.update(USER[rows], GAIN[rows], TREATED[rows], OUTCOME[rows])
        parts.append(part)
    merged = parts[0] + parts[1]
    assert merged.to_arrays()["sums"].tobytes() == whole.to_arrays()["sums"].tobytes()
    again = Qini(whole.edges, replicates=10).load(whole.to_arrays())
    assert again.result().coefficient == whole.result().coefficient
    with pytest.raises(DamagedArtifact):
        Qini(whole.edges, replicates=11).load(whole.to_arrays())
    with pytest.raises(InvalidInput):
        whole + of(-GAIN, replicates=10)


def test_bad_input_is_named() -> None:
    qini = Qini(score_edges(GAIN, 10), replicates=0)
    with pytest.raises(InvalidInput, match="outcome"):
        qini.update(USER[:1], GAIN[:1], TREATED[:1], np.array([1e9]))
    with pytest.raises(InvalidInput, match="scores"):
        score_edges(np.array([np.nan, 1.0]))
    with pytest.raises(InvalidInput, match="arm"):
        qini.result()
    with pytest.raises(InvalidInput, match="edges"):
        Qini(np.array([0.1, 0.2]))
