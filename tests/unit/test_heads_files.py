"""Heads on disk: the same bits back, or a clear refusal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from serve_app.errors import DamagedArtifact, InvalidInput
from serve_app.stages.features import Entity, FeatureSpec
from serve_app.stages.ranking.heads import HeadSet, Models
from serve_app.stages.ranking.training import TrainSettings, train_heads
from serve_app.vocabulary import Surface

NAMES = ("price", "clicks", "stars")


@pytest.fixture(scope="module")
def trained() -> HeadSet:
    rng = np.random.default_rng(3)
    features = rng.normal(size=(600, 3)).astype(np.float32)
    click = (rng.random(600) < 1 / (1 + np.exp(-features[:, 0]))).astype(np.float32)
    labels = {"p_click": click, "p_convert": click * (rng.random(600) < 0.5)}
    users = rng.integers(0, 200, 600).astype(np.uint64)
    return train_heads(
        features,
        NAMES,
        labels,
        users=users,
        seed=1,
        position=rng.integers(0, 5, 600),
        settings=TrainSettings(trees=5, depth=2),
    )


def matrix(heads: HeadSet, rows: int = 50) -> np.ndarray:
    values = np.random.default_rng(9).normal(size=(rows, len(heads.features))).astype(np.float32)
    values[::7, 1] = np.nan
    return values


def test_saved_models_predict_the_same_bits_from_a_moved_folder(trained: HeadSet, tmp_path: Path) -> None:
    reviews = HeadSet.of_feature("p_helpful", "review_quality")
    Models({Surface.related: trained, Surface.gateway: trained, Surface.reviews: reviews}).save(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    back = Models.load(tmp_path / "b")
    assert back[Surface.related] is back[Surface.gateway]
    assert back[Surface.related].predict(matrix(trained)).tobytes() == trained.predict(matrix(trained)).tobytes()
    assert back[Surface.related].position == trained.position
    assert back.head_names()["reviews"] == ("p_helpful",)
    assert not list((tmp_path / "b").rglob("*.pkl"))


def _truncate(path: Path) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2])


def _flip_a_bit(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(bytes(raw))


@pytest.mark.parametrize("damage", [_truncate, _flip_a_bit, Path.unlink], ids=["truncated", "one bit", "gone"])
def test_a_damaged_booster_is_refused_and_named(trained: HeadSet, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    trained.save(tmp_path)
    damage(tmp_path / "booster-0.ubj")
    with pytest.raises(DamagedArtifact, match=r"booster-0\.ubj"):
        HeadSet.load(tmp_path)


@pytest.mark.parametrize("damage", [_truncate, Path.unlink], ids=["truncated", "gone"])
@pytest.mark.parametrize("name", ["models.json", "related/heads.json"])
def test_a_damaged_description_is_refused_and_named(
    trained: HeadSet, tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    Models({Surface.related: trained}).save(tmp_path)
    damage(tmp_path / name)
    with pytest.raises(DamagedArtifact, match=name):
        Models.load(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("schema_version", 99),
        ("features", ["price"]),
        ("position", "first"),
        ("heads", [{"name": "p_click", "booster": 5, "output": 0, "feature": "", "x": [0, 1], "y": [0, 1]}]),
        ("heads", [{"name": "p_click", "booster": 0, "output": 0, "feature": "", "x": [1, 0], "y": [0, 1]}]),
        ("heads", [{"name": "p_click", "booster": 0, "output": 0, "feature": "", "x": [0, 1], "y": [1, 0]}]),
        ("heads", [{"name": "p_click"}]),
    ],
)
def test_a_description_that_does_not_fit_is_refused(trained: HeadSet, tmp_path: Path, key: str, value: object) -> None:
    trained.save(tmp_path)
    text = json.loads((tmp_path / "heads.json").read_text())
    (tmp_path / "heads.json").write_text(json.dumps({**text, key: value}))
    with pytest.raises(DamagedArtifact):
        HeadSet.load(tmp_path)


def test_a_model_that_asks_for_a_feature_nobody_provides_fails_to_load_naming_it(trained: HeadSet) -> None:
    provided = [FeatureSpec(name, Entity.item) for name in ("price", "clicks")]
    with pytest.raises(InvalidInput, match="stars"):
        Models({Surface.related: trained}).plans(provided)


def test_a_folder_name_cannot_lead_outside(trained: HeadSet, tmp_path: Path) -> None:
    Models({Surface.related: trained}).save(tmp_path)
    (tmp_path / "models.json").write_text(json.dumps({"schema_version": 1, "surfaces": {"related": "../elsewhere"}}))
    with pytest.raises(DamagedArtifact):
        Models.load(tmp_path)


def test_a_surface_without_model_is_named(trained: HeadSet) -> None:
    with pytest.raises(InvalidInput, match="widgets"):
        Models({Surface.related: trained})[Surface.widgets]


def test_a_stored_score_that_is_missing_is_the_least_and_not_nothing() -> None:
    """Features may fail: a list whose head is a constant, or retrieval's score, must not come out empty."""
    scores = HeadSet.of_feature("p_helpful", "helpfulness").predict(np.array([[0.5], [np.nan]], np.float32))
    assert scores.tolist() == [[0.5], [0.0]]
