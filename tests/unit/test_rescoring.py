"""New scores from logged features: the same bits for the models that served, by name for others, or a clear refusal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from serve_app.errors import InvalidInput, UnknownIdentifier
from serve_app.stages.ranking.heads import HeadSet
from serve_app.stages.ranking.training import TrainSettings, train_heads
from simulators.replay.rescoring import lacking, opened_release, rescored

NAMES = ("price", "clicks", "stars", "position")


@pytest.fixture(scope="module")
def heads() -> HeadSet:
    rng = np.random.default_rng(3)
    features = rng.normal(size=(500, 4)).astype(np.float32)
    click = (rng.random(500) < 1 / (1 + np.exp(-features[:, 0]))).astype(np.float32)
    made = train_heads(
        features, NAMES, {"p_click": click}, users=rng.integers(0, 200, 500).astype(np.uint64), seed=1,
        position=rng.integers(0, 5, 500), settings=TrainSettings(trees=5, depth=3),
    )  # fmt: skip
    return replace(made, features=NAMES, position=2.0) if made.features != NAMES else replace(made, position=2.0)


def _logged(rows: int = 40) -> np.ndarray:
    values = np.random.default_rng(9).normal(size=(rows, 4)).astype(np.float32)
    values[::5, 1], values[:, 3] = np.nan, 2.0
    return values


def test_the_models_that_served_give_the_same_bits(heads: HeadSet) -> None:
    logged = _logged()
    assert rescored(heads, logged, NAMES).tobytes() == heads.predict(logged).tobytes()


def test_features_are_found_by_name_whatever_else_was_logged(heads: HeadSet) -> None:
    logged = _logged()
    wider = np.concatenate([np.full((len(logged), 1), 7.0, np.float32), logged[:, ::-1]], axis=1)
    again = rescored(heads, wider, ("colour", *NAMES[::-1]))
    assert again.tobytes() == heads.predict(logged).tobytes()


def test_each_release_has_its_own_position(heads: HeadSet) -> None:
    logged = _logged()
    logged[:, 3] = 99.0  # what another release served with
    expected = logged.copy()
    expected[:, 3] = heads.position
    assert rescored(heads, logged, NAMES).tobytes() == heads.predict(expected).tobytes()
    assert rescored(heads, logged[:, :3], NAMES[:3]).tobytes() == heads.predict(expected).tobytes()


def test_features_that_were_not_logged_are_named(heads: HeadSet) -> None:
    assert lacking(heads, ("price",)) == ("clicks", "stars")
    with pytest.raises(InvalidInput, match=r"clicks, stars.*--retrieval"):
        rescored(heads, _logged()[:, :1], ("price",))


def test_a_release_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UnknownIdentifier, match="no release 'next'"):
        opened_release(tmp_path, "next", ("models",))
