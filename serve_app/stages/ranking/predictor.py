"""Prediction with a booster: as flat trees where its kind allows and they are proved to agree, else by XGBoost itself."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import xgboost

from serve_app.errors import InvalidInput
from serve_app.stages.ranking.trees import Trees, pack_trees

__all__ = ["Predictor"]

F32 = npt.NDArray[np.float32]

_PROBES = 69  # rows: sixty-four that go through the trees together, and a few one by one, so that both ways are tried


class Predictor:
    """A booster that predicts matrices, on one thread; safe to share between threads.

    When built, the flat trees predict rows made of the model's own thresholds; unless every margin has XGBoost's bits,
    XGBoost predicts (`flat` says which it is).
    """

    def __init__(self, booster: xgboost.Booster) -> None:
        booster.set_param({"nthread": 1})
        self._booster = booster
        self.features: int = booster.num_features()
        trees = pack_trees(booster)
        self._trees = trees if trees is not None and self._agrees(trees) else None

    @property
    def flat(self) -> bool:
        """Whether the flat trees predict."""
        return self._trees is not None

    def __call__(self, matrix: F32, *, margin: bool = False) -> F32:
        """f32[n, F], NaN for missing -> f32[n, outputs]. A row's bits do not depend on n. InvalidInput for another width."""
        if matrix.dtype != np.float32 or matrix.ndim != 2 or matrix.shape[1] != self.features:
            raise InvalidInput(
                f"matrix is {matrix.dtype}{list(matrix.shape)}, the model reads f32[n, {self.features}]", field="features"
            )
        if self._trees is not None:
            return self._trees.predict(np.require(matrix, requirements=["C", "W"]), margin=margin)
        return self._by_xgboost(matrix, margin)

    def _by_xgboost(self, matrix: F32, margin: bool) -> F32:
        if len(matrix) == 0:
            return np.empty((0, 1), np.float32)
        kind = "margin" if margin else "value"
        raw: F32 = self._booster.inplace_predict(np.ascontiguousarray(matrix), predict_type=kind)
        return raw.reshape(len(matrix), -1)

    def _agrees(self, trees: Trees) -> bool:
        probes = _probes(trees, self.features)
        return trees.predict(probes, margin=True).tobytes() == self._by_xgboost(probes, True).tobytes()


def _probes(trees: Trees, features: int) -> F32:
    """f32[69, F]: for each feature its own thresholds, exactly and a little to either side, and missing values."""
    rng = np.random.default_rng(0)
    rows = np.zeros((_PROBES, features), np.float32)
    feature, threshold = (trees.splits >> np.uint32(1)).ravel(), trees.thresholds.ravel()
    for column in range(features):
        own = threshold[feature == column]
        if len(own):
            values = own[rng.integers(0, len(own), _PROBES)]
            rows[:, column] = np.nextafter(values, values + rng.integers(-1, 2, _PROBES).astype(np.float32))
    rows[rng.random(rows.shape) < 0.1] = np.nan
    return rows
