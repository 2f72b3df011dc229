"""The outcome model: cross-fitted by user, blind to the future, saved with checksums."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from serve_app.errors import DamagedArtifact, InvalidInput
from simulators.estimators.outcome_model import (
    OutcomeModel,
    OutcomeSettings,
    fit_outcome_model,
    fold_of,
    load_outcome_model,
    sampled_users,
)

RNG = np.random.default_rng(0)
N = 6000
USERS = np.repeat(np.arange(N // 3), 3).astype(np.uint64)
X = RNG.normal(size=(N, 2)).astype(np.float32)
P = 1 / (1 + np.exp(-(-1 + X[:, 0])))
REWARD = np.stack([RNG.random(N) < P, X[:, 1] * 2 + 1], axis=1).astype(np.float64)
NAMES = {"feature_names": ["a", "b"], "metrics": ["click", "revenue"]}


def fitted(kind: str, **settings: float) -> OutcomeModel:
    return fit_outcome_model(USERS, X, REWARD, **NAMES, settings=OutcomeSettings(kind=kind, **settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["trees", "logistic"])
def test_it_learns_probabilities_and_amounts(kind: str) -> None:
    found = fitted(kind).predict(USERS, X)
    assert np.corrcoef(found[:, 0], P)[0, 1] > 0.93
    assert np.abs(found[:, 1] - REWARD[:, 1]).mean() < 0.25
    assert ((found[:, 0] > 0) & (found[:, 0] < 1)).all()


@pytest.mark.parametrize("kind", ["trees", "logistic"])
def test_a_users_own_rewards_never_enter_what_is_predicted_for_them(kind: str) -> None:
    model = fitted(kind)
    fold = fold_of(USERS, model.settings)
    assert np.bincount(fold).min() > N / 3 * 0.85
    changed = REWARD.copy()
    changed[fold == 1] = 1.0
    other = fit_outcome_model(USERS, X, changed, **NAMES, settings=model.settings)  # type: ignore[arg-type]
    before, after = model.predict(USERS, X), other.predict(USERS, X)
    assert (before[fold == 1] == after[fold == 1]).all()
    assert (before[fold == 0] != after[fold == 0]).any()


def test_a_seeded_sample_of_users_is_enough() -> None:
    settings = OutcomeSettings(kind="logistic", sample=0.4, seed=5)
    seen = sampled_users(USERS, settings)
    assert seen.mean() == pytest.approx(0.4, abs=0.05)
    assert all(len(set(seen[user == USERS])) == 1 for user in USERS[:30])
    changed = np.where(seen[:, None], REWARD, 1 - REWARD)
    one, other = (fit_outcome_model(USERS, X, y, **NAMES, settings=settings) for y in (REWARD, changed))  # type: ignore[arg-type]
    assert (one.predict(USERS, X) == other.predict(USERS, X)).all()


def test_what_was_known_later_is_an_error_that_names_the_feature() -> None:
    decided = np.full(N, 1000)
    known = np.full((N, 2), 900)
    fit_outcome_model(USERS, X, REWARD, **NAMES, known_at=known, decided_at=decided,  # type: ignore[arg-type]
                      settings=OutcomeSettings(kind="logistic"))  # fmt: skip
    known[17, 1] = 1001
    with pytest.raises(InvalidInput, match="b: was known only after"):
        fit_outcome_model(USERS, X, REWARD, **NAMES, known_at=known, decided_at=decided)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["trees", "logistic"])
def test_a_saved_model_predicts_the_same_bits_and_damage_is_found(kind: str, tmp_path: Path) -> None:
    model = fitted(kind, trees=10)
    checksum = model.save(tmp_path)
    assert checksum == fitted(kind, trees=10).save(tmp_path / "again")
    again = load_outcome_model(tmp_path)
    assert (again.predict(USERS, X) == model.predict(USERS, X)).all()
    victim = sorted(tmp_path.glob("fold-0*"))[0]
    victim.write_bytes(victim.read_bytes()[:-3])
    with pytest.raises(DamagedArtifact, match="fold-0"):
        load_outcome_model(tmp_path)
    with pytest.raises(DamagedArtifact):
        load_outcome_model(tmp_path / "nowhere")


def test_settings_and_shapes_are_checked() -> None:
    with pytest.raises(InvalidInput, match="folds"):
        OutcomeSettings(folds=1)
    with pytest.raises(InvalidInput, match="kind"):
        OutcomeSettings(kind="forest")
    with pytest.raises(InvalidInput, match="features"):
        fit_outcome_model(USERS, X[:, :1], REWARD, **NAMES)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="no row"):
        fit_outcome_model(USERS[:0], X[:0], REWARD[:0], **NAMES)  # type: ignore[arg-type]
