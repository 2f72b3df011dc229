"""Training: position de-bias, calibration, uplift, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss as independent_log_loss
from sklearn.metrics import roc_auc_score

from serve_app.errors import InvalidInput
from serve_app.stages.ranking.calibration import fit_calibration
from serve_app.stages.ranking.metrics import area_under_curve, calibration_error, log_loss
from serve_app.stages.ranking.training import TrainSettings, train_heads, train_uplift

SMALL = TrainSettings(trees=40, depth=3)


def logistic(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def shown(rows: int = 20_000, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Features (quality, noise), position, click, user. Good items were shown first, and upper slots are clicked more."""
    rng = np.random.default_rng(seed)
    quality = rng.normal(size=rows)
    position = np.clip(np.round(3 - 1.5 * quality + 2 * rng.normal(size=rows)), 0, 9).astype(np.int64)
    p = logistic(-1.5 + 0.7 * quality) * 0.8**position
    features = np.stack([quality, rng.normal(size=rows)], axis=1).astype(np.float32)
    return features, position, (rng.random(rows) < p).astype(np.float32), rng.integers(0, 4_000, rows).astype(np.uint64)


def test_training_with_position_recovers_the_effect_of_quality_that_the_slot_confounds() -> None:
    features, position, click, users = shown()
    probe = np.array([[-1, 0], [1, 0]], np.float32)
    truth = logistic(-1.5 + 0.7 * probe[:, 0])

    def ratio(heads_position: np.ndarray | None) -> float:
        heads = train_heads(
            features, ("quality", "noise"), {"p_click": click}, users=users, seed=1, position=heads_position, settings=SMALL
        )
        served = probe
        if heads_position is not None:
            assert heads.features == ("quality", "noise", "position")
            served = np.concatenate([probe, np.full((2, 1), heads.position, np.float32)], axis=1)
        low, high = heads.predict(served)[:, 0]
        return float(high / low)

    wanted = float(truth[1] / truth[0])
    assert abs(ratio(position) - wanted) < abs(ratio(None) - wanted)
    assert ratio(position) == pytest.approx(wanted, rel=0.35)


def test_calibrated_heads_say_what_happens() -> None:
    features, _, click, users = shown(40_000)
    heads = train_heads(features, ("quality", "noise"), {"p_click": click}, users=users, seed=2, settings=SMALL)
    metrics = heads.metrics["p_click"]
    assert metrics["auc"] > 0.7
    assert metrics["calibration_error"] < 0.03, "a decile of 600 rows alone is off by .012"
    assert metrics["rows"] == pytest.approx(6_000, rel=0.1)


def test_the_same_arguments_give_the_same_model() -> None:
    features, position, click, users = shown(3_000)
    one, two = (
        train_heads(features, ("q", "n"), {"p_click": click}, users=users, seed=5, position=position, settings=SMALL)
        for _ in range(2)
    )
    probe = np.concatenate([features, position[:, None].astype(np.float32)], axis=1)
    assert one.predict(probe).tobytes() == two.predict(probe).tobytes()
    assert one.metrics == two.metrics


@pytest.mark.parametrize("shared_trees", [False, True])
def test_heads_seen_on_the_same_rows_share_a_booster(shared_trees: bool) -> None:
    features, _, click, users = shown(3_000)
    other = np.where(np.arange(3_000) % 2, click, np.nan)
    labels = {"p_click": click, "p_sent": other, "p_convert": click * 0}
    heads = train_heads(
        features, ("q", "n"), labels, users=users, seed=5, settings=TrainSettings(trees=5, shared_trees=shared_trees)
    )
    assert heads.names == ("p_click", "p_convert", "p_sent")
    assert [head.booster for head in heads.heads] == [0, 0, 1]
    predicted = heads.predict(features)
    assert ((predicted >= 0) & (predicted <= 1)).all()
    assert predicted[:, 1].max() < 0.01, "a head that never happened"


def test_predictions_do_not_depend_on_the_batch_size() -> None:
    features, _, click, users = shown(2_000)
    heads = train_heads(features, ("q", "n"), {"a": click, "b": 1 - click}, users=users, seed=5, settings=SMALL)
    whole = heads.predict(features[:1_000])
    for size in (1, 7):
        parts = [heads.predict(features[i : min(i + size, 1_000)]) for i in range(0, 1_000, size)]
        assert np.concatenate(parts).tobytes() == whole.tobytes()


def test_uplift_finds_who_is_moved_by_a_send() -> None:
    rng = np.random.default_rng(4)
    n = 40_000
    features = rng.normal(size=(n, 2)).astype(np.float32)
    p_treated = np.where(features[:, 1] > 0, 0.8, 0.6)
    treated = rng.random(n) < p_treated
    effect = np.where(features[:, 0] > 0, 0.15, 0.0)
    y = (rng.random(n) < 0.1 + 0.1 * (features[:, 1] > 0) + treated * effect).astype(np.float32)
    users = np.arange(n, dtype=np.uint64)
    heads = train_uplift(
        features, ("moved", "base"), y, treated, p_treated, users=users, seed=1, settings=TrainSettings(trees=30, depth=2)
    )
    low, high = heads.predict(np.array([[-1, 0.5], [1, 0.5]], np.float32))[:, 0]
    assert low == pytest.approx(0.0, abs=0.04)
    assert high == pytest.approx(0.15, abs=0.04)
    assert heads.metrics["uplift"]["upper_half_effect"] > heads.metrics["uplift"]["lower_half_effect"]


def test_uplift_without_chance_in_the_design_is_refused() -> None:
    features, _, y, users = shown(100)
    with pytest.raises(InvalidInput, match="p_treated"):
        train_uplift(features, ("q", "n"), y, np.ones(100, np.bool_), np.ones(100), users=users, seed=1)
    with pytest.raises(InvalidInput, match="held-out"):
        train_uplift(features, ("q", "n"), y, np.ones(100, np.bool_), np.full(100, 0.9), users=users, seed=1)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"labels": {"p_click": [2.0] * 50}}, "p_click"),
        ({"labels": {"p_click": [1.0] * 49}}, "p_click"),
        ({"labels": {"p_click": [np.nan] * 50}}, "p_click"),
        ({"feature_names": ("q",)}, "features"),
        ({"features": np.full((50, 2), np.inf, np.float32)}, "infinite"),
    ],
)
def test_bad_training_data_is_named(change: dict[str, object], says: str) -> None:
    features, _, click, users = shown(50)
    arguments = {"features": features, "feature_names": ("q", "n"), "labels": {"p_click": click}, **change}
    with pytest.raises(InvalidInput, match=says):
        train_heads(**arguments, users=users, seed=1)  # type: ignore[arg-type]


@given(st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.5, 0.7]), st.booleans()), min_size=2, max_size=60))
@settings(max_examples=60, deadline=None)
def test_our_metrics_agree_with_an_independent_implementation(rows: list[tuple[float, bool]]) -> None:
    p, y = np.array([r[0] for r in rows]), np.array([r[1] for r in rows], np.float64)
    assert log_loss(y, p) == pytest.approx(independent_log_loss(y, p, labels=[0, 1]))
    if 0 < y.sum() < len(y):
        assert area_under_curve(y, p) == pytest.approx(roc_auc_score(y, p))
    else:
        assert np.isnan(area_under_curve(y, p))


@given(st.integers(0, 2**31), st.integers(1, 400))
@settings(max_examples=60, deadline=None)
def test_calibration_is_monotone_and_keeps_probabilities_probabilities(seed: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    raw = np.round(rng.random(rows), 2)
    knots = fit_calibration(raw, rng.random(rows) < raw**2)
    out = knots(np.linspace(-0.5, 1.5, 301))
    assert (np.diff(out) >= 0).all()
    assert out[0] == 0.0
    assert out[-1] <= 1.0


def test_calibration_mends_scores_that_are_twice_too_high() -> None:
    rng = np.random.default_rng(1)
    p = rng.random(20_000) * 0.5
    y = rng.random(20_000) < p
    knots = fit_calibration(2 * p, y)
    assert calibration_error(y, 2 * p) > 0.2
    assert np.abs(knots(2 * p) - p).mean() < 0.015
