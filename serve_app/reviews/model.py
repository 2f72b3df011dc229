"""The review-quality model: the probability that readers find a review helpful.

Half a logistic regression over standardised features, half a small XGBoost model, averaged as log-odds: with few voted
reviews, the first generalises where the second sees interactions. Calibrated on predictions for reviewers it had not seen.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xgboost

from serve_app.errors import DamagedArtifact, InvalidInput
from serve_app.noise import hash_key, salt_of, uniform
from serve_app.reviews.features import AGE_FEATURES, FEATURES, review_features
from serve_app.reviews.logistic import Logistic, fit_logistic
from serve_app.reviews.table import ReviewTable
from serve_app.stages.ranking.calibration import Calibration, fit_calibration
from serve_app.stages.ranking.heads import load_booster
from serve_app.stages.ranking.metrics import head_metrics

__all__ = ["ReviewModel", "out_of_fold", "train_review_model"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

_SCHEMA = 1
_FOLDS = 5
_LEAST_VOTED = 20
_TREES = 150
_PARAMETERS = {
    "objective": "binary:logistic",
    "tree_method": "hist",
    "max_depth": 4,
    "eta": 0.04,
    "subsample": 0.6,
    "colsample_bytree": 0.3,
    "min_child_weight": 1.5,
    "lambda": 3.0,
    "nthread": 1,
}


@dataclass(frozen=True)
class ReviewModel:
    """Scores reviews by how likely a helpful vote is. with_age: whether dates are features (in a score that orders reviews
    they are not: older reviews had longer to be voted for)."""

    with_age: bool
    logistic: Logistic
    booster: xgboost.Booster
    calibration: Calibration
    metrics: Mapping[str, Any] = field(default_factory=dict)

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the columns it reads."""
        return FEATURES + AGE_FEATURES if self.with_age else FEATURES

    def score(self, reviews: ReviewTable) -> F64:
        """f64[n] probabilities. Give the whole catalogue's reviews: ranks and item statistics are over the table."""
        return self.calibration(_raw(self.logistic, self.booster, review_features(reviews, with_age=self.with_age)))

    def save(self, folder: Path) -> None:
        """Write `review_model.json` and `booster.ubj`."""
        folder.mkdir(parents=True, exist_ok=True)
        raw = bytes(self.booster.save_raw("ubj"))
        (folder / "booster.ubj").write_bytes(raw)
        text = {
            "schema_version": _SCHEMA,
            "with_age": self.with_age,
            "features": self.features,
            "booster": hashlib.sha256(raw).hexdigest(),
            "logistic": self.logistic.to_json(),
            "calibration": {"x": self.calibration.x.tolist(), "y": self.calibration.y.tolist()},
            "metrics": self.metrics,
        }
        (folder / "review_model.json").write_text(json.dumps(text, indent=1, allow_nan=False))

    @classmethod
    def load(cls, folder: Path) -> ReviewModel:
        """Read a saved model; DamagedArtifact names what is missing, cut short, changed or of another version."""
        path, hint = folder / "review_model.json", "build the release again"
        try:
            text = json.loads(path.read_text())
            if text["schema_version"] != _SCHEMA:
                raise DamagedArtifact(f"is not schema version {_SCHEMA}", field=str(path), hint=hint)
            knots = Calibration(*(np.array(text["calibration"][axis], np.float64) for axis in "xy"))
            logistic = Logistic.from_json(text["logistic"])
            booster = load_booster(folder / "booster.ubj", text["booster"])
            model = cls(bool(text["with_age"]), logistic, booster, knots, text["metrics"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DamagedArtifact(f"cannot be read: {error}", field=str(path), hint=hint) from error
        width = len(model.features)
        if tuple(text["features"]) != model.features or len(logistic.weight) != width or booster.num_features() != width:
            raise DamagedArtifact("was trained on other features than this version computes", field=str(path), hint=hint)
        return model


def train_review_model(reviews: ReviewTable, *, seed: int, with_age: bool = False) -> ReviewModel:
    """Train on each distinct text once, label: it has a helpful vote. Metrics and calibration come from five folds by
    reviewer. InvalidInput where fewer than 20 texts were voted for, or all were."""
    rows = reviews.distinct_texts()
    helpful = reviews.votes[rows] > 0
    if min(int(helpful.sum()), int((~helpful).sum())) < _LEAST_VOTED:
        raise InvalidInput(
            f"{int(helpful.sum())} of {len(rows)} texts have helpful votes; {_LEAST_VOTED} with and without are needed",
            field="helpful_votes",
        )
    matrix = review_features(reviews, with_age=with_age)[rows]
    users = reviews.user[rows]
    raw = out_of_fold(matrix, helpful, users, seed=seed)
    knots = fit_calibration(raw, helpful, bins=int(np.clip(helpful.sum() / 20, 1, 32)))
    logistic, booster = _fit(matrix, helpful, seed)
    metrics = head_metrics(helpful, raw)
    return ReviewModel(with_age, logistic, booster, knots, metrics)


def out_of_fold(matrix: F32, helpful: npt.NDArray[np.bool_], users: npt.NDArray[np.uint64], *, seed: int) -> F64:
    """f64[n]: each row's uncalibrated probability from a model that saw none of its reviewer's rows (5 folds by hash)."""
    fold = (uniform(hash_key(salt_of("review folds"), seed, users)) * _FOLDS).astype(np.int64)
    out = np.full(len(matrix), float(np.mean(helpful)))
    for k in range(_FOLDS):
        inside, outside = fold == k, fold != k
        if inside.any() and 0 < helpful[outside].sum() < outside.sum():
            out[inside] = _raw(*_fit(matrix[outside], helpful[outside], seed), matrix[inside])
    return out


def _fit(matrix: F32, helpful: npt.NDArray[np.bool_], seed: int) -> tuple[Logistic, xgboost.Booster]:
    logistic = fit_logistic(matrix, helpful)
    data = xgboost.DMatrix(matrix, helpful.astype(np.float32), nthread=1)
    booster = xgboost.train({**_PARAMETERS, "seed": seed & 0x7FFFFFFF}, data, _TREES)
    return logistic, booster


def _raw(logistic: Logistic, booster: xgboost.Booster, matrix: F32) -> F64:
    if len(matrix) == 0:
        return np.empty(0)
    margin = booster.inplace_predict(matrix, predict_type="margin").astype(np.float64)
    return 1.0 / (1.0 + np.exp(-(logistic.margin(matrix) + margin) / 2.0))
