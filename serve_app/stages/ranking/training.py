"""Training heads: boosters on some users, calibration on others, metrics on the rest.

Position de-bias (as metarank and others do): the slot a candidate was shown in is a feature while training and a constant
while serving, so that the trees credit the slot, not the item, with what the slot brought.

Uplift is learned by the R-learner (Nie and Wager 2021, "Quasi-oracle estimation of heterogeneous treatment effects"): the
treatment probability is known from the holdout's design, the mean response is cross-fitted over users, and the effect is a
regression of the residual response on the residual treatment. A line, fitted on held-out users by the same loss,
calibrates it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xgboost

from serve_app.errors import InvalidInput
from serve_app.noise import hash_key, salt_of, uniform
from serve_app.stages.ranking.calibration import Calibration, fit_calibration, fit_line, identity_calibration
from serve_app.stages.ranking.heads import Head, HeadSet
from serve_app.stages.ranking.metrics import head_metrics
from serve_app.stages.ranking.predictor import Predictor

__all__ = ["TrainSettings", "train_heads", "train_uplift"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Bool = npt.NDArray[np.bool_]

_TRAIN, _CALIBRATE, _TEST = 0, 1, 2


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """Of one head set. calibrate_share, test_share: of the users, by hash. shared_trees: one tree serves all heads of a
    booster (vector leaves): half the serving time of two heads, at some cost to rare ones."""

    trees: int = 100
    depth: int = 6
    learning_rate: float = 0.1
    min_child_weight: float = 5.0
    row_share: float = 0.8
    column_share: float = 0.8
    l2: float = 2.0
    calibrate_share: float = 0.15
    test_share: float = 0.15
    position: float = 0.0
    shared_trees: bool = False
    min_calibration_positives: int = 20
    threads: int = 1


def train_heads(
    features: F32,
    feature_names: Sequence[str],
    labels: Mapping[str, npt.ArrayLike],
    *,
    users: U64,
    seed: int,
    position: npt.ArrayLike | None = None,
    weight: npt.ArrayLike | None = None,
    settings: TrainSettings | None = None,
) -> HeadSet:
    """Train probability heads.

    features f32[n, F]; labels: head -> f[n] of 0 / 1, NaN where not observed (heads observed on the same rows share one
    booster). users u64[n]: rows of a user stay together in one split. position i[n]: slot shown in; adds (or overwrites)
    the feature `position`. weight f[n]: of rows. Same arguments, same model. InvalidInput names a head without rows.
    """
    settings = settings or TrainSettings()
    matrix, names = _with_position(features, tuple(feature_names), position)
    split = _split(users, seed, settings)
    mass = np.ones(len(matrix), np.float32) if weight is None else np.asarray(weight, np.float32)
    heads: list[Head] = []
    boosters: list[xgboost.Booster] = []
    metrics: dict[str, object] = {}
    for group in _groups_of(labels, len(matrix)):
        y = np.stack([np.asarray(labels[name], np.float32) for name in group], axis=1)
        seen = ~np.isnan(y[:, 0])
        if not (seen & (split == _TRAIN)).any():
            raise InvalidInput("has no observed row to train on", field=f"head {group[0]}")
        train = seen & (split == _TRAIN)
        booster = _boost(matrix[train], y[train], mass[train], seed, settings)
        raw = _predict(booster, matrix)
        for output, name in enumerate(group):
            knots = _calibrate(raw[:, output], y[:, output], mass, seen & (split == _CALIBRATE), settings)
            test = seen & (split == _TEST)
            metrics[name] = head_metrics(y[test, output], knots(raw[test, output]))
            heads.append(Head(name, len(boosters), output, knots))
        boosters.append(booster)
    return HeadSet(names, tuple(heads), tuple(boosters), settings.position, metrics)


def train_uplift(
    features: F32,
    feature_names: Sequence[str],
    outcome: npt.ArrayLike,
    treated: Bool,
    p_treated: npt.ArrayLike,
    *,
    users: U64,
    seed: int,
    name: str = "uplift",
    position: npt.ArrayLike | None = None,
    settings: TrainSettings | None = None,
) -> HeadSet:
    """Train the head `uplift`: what a send adds to the probability (or amount) of `outcome`.

    Rows are would-sends of a holdout's trial: sent (treated) or held out, outcome f[n] any user outcome within the window,
    p_treated f[n] the design's probability of having been sent. InvalidInput where one arm is empty or a probability is
    not inside (0, 1).
    """
    settings = settings or TrainSettings()
    matrix, names = _with_position(features, tuple(feature_names), position)
    y, p, t = np.asarray(outcome, np.float64), np.asarray(p_treated, np.float64), np.asarray(treated, np.float64)
    if not ((p > 0) & (p < 1)).all():
        raise InvalidInput(
            "must lie inside (0, 1): without chance in the design there is no effect to learn", field="p_treated"
        )
    split = _split(users, seed, settings)
    train, held, test = split == _TRAIN, split == _CALIBRATE, split == _TEST
    if not (0 < t[train].sum() < train.sum()):
        raise InvalidInput("needs both sent and held-out rows", field="treated")
    mean = _cross_fitted_mean(matrix, y, users, seed, settings)
    residual = t - p
    target, mass = (y - mean) / residual, residual**2
    booster = _boost(matrix[train], target[train], mass[train], seed, settings, objective="reg:squarederror")
    raw = _predict(booster, matrix)[:, 0].astype(np.float64)
    knots = fit_line(raw[held], target[held], mass[held]) if held.any() else fit_line(raw, raw, mass)
    # Inverse-probability-weighted effect of each row: its mean over any group is the group's effect.
    effect = (y - mean) * residual / (p * (1 - p))
    metrics = _uplift_metrics(effect[test], knots(raw[test])) if test.any() else {"rows": 0}
    return HeadSet(names, (Head(name, 0, 0, knots),), (booster,), settings.position, {name: metrics})


def _with_position(features: F32, names: tuple[str, ...], position: npt.ArrayLike | None) -> tuple[F32, tuple[str, ...]]:
    matrix = np.ascontiguousarray(features, np.float32)
    if matrix.ndim != 2 or matrix.shape[1] != len(names):
        raise InvalidInput(f"matrix is {list(matrix.shape)}, names are {len(names)}", field="features")
    if np.isinf(matrix).any():
        column = names[int(np.flatnonzero(np.isinf(matrix).any(axis=0))[0])]
        raise InvalidInput("holds an infinite value", field=column, hint="write NaN for unknown")
    if position is None:
        return matrix, names
    slots = np.asarray(position, np.float32)
    if "position" in names:
        matrix = matrix.copy()
        matrix[:, names.index("position")] = slots
        return matrix, names
    return np.concatenate([matrix, slots[:, None]], axis=1), (*names, "position")


def _split(users: U64, seed: int, settings: TrainSettings) -> npt.NDArray[np.int8]:
    draw = uniform(hash_key(salt_of("head training"), seed, np.asarray(users, np.uint64)))
    calibrate = 1.0 - settings.calibrate_share - settings.test_share
    return (np.int8(0) + (draw >= calibrate) + (draw >= calibrate + settings.calibrate_share)).astype(np.int8)


def _groups_of(labels: Mapping[str, npt.ArrayLike], rows: int) -> list[list[str]]:
    """Heads by the set of rows they were observed on, in order of first mention."""
    groups: dict[bytes, list[str]] = {}
    for name, values in labels.items():
        y = np.asarray(values, np.float32)
        if len(y) != rows:
            raise InvalidInput(f"has {len(y)} labels for {rows} rows", field=f"head {name}")
        known = y[~np.isnan(y)]
        if not ((known >= 0) & (known <= 1)).all():
            raise InvalidInput("labels of a probability lie between 0 and 1", field=f"head {name}")
        groups.setdefault(np.isnan(y).tobytes(), []).append(name)
    return list(groups.values())


def _boost(
    matrix: F32, target: npt.NDArray[np.floating], mass: npt.ArrayLike, seed: int, settings: TrainSettings,
    objective: str = "binary:logistic",
) -> xgboost.Booster:  # fmt: skip
    parameters = {
        "objective": objective,
        "tree_method": "hist",
        "max_depth": settings.depth,
        "eta": settings.learning_rate,
        "min_child_weight": settings.min_child_weight,
        "subsample": settings.row_share,
        "colsample_bytree": settings.column_share,
        "lambda": settings.l2,
        "seed": seed & 0x7FFFFFFF,
        "nthread": settings.threads,
    }
    if settings.shared_trees and target.ndim == 2 and target.shape[1] > 1:
        parameters["multi_strategy"] = "multi_output_tree"
    data = xgboost.DMatrix(matrix, target, weight=np.asarray(mass, np.float32), nthread=settings.threads)
    return xgboost.train(parameters, data, settings.trees)


def _predict(booster: xgboost.Booster, matrix: F32) -> F32:
    return Predictor(booster)(matrix)


def _calibrate(raw: F32, y: F32, mass: F32, held: Bool, settings: TrainSettings) -> Calibration:
    """Isotonic where the held-out users have enough of both outcomes; else the scores stand as trained."""
    positives = float((y[held] > 0).sum())
    if min(positives, float(held.sum()) - positives) < settings.min_calibration_positives:
        return identity_calibration()
    # A bin needs some positives for its mean to say anything.
    bins = int(np.clip(positives / 20, 2, 32))
    return fit_calibration(raw[held], y[held], mass[held], bins=bins)


def _cross_fitted_mean(matrix: F32, y: F64, users: U64, seed: int, settings: TrainSettings) -> F64:
    """Each row's mean response, from a model that saw none of its user's rows."""
    fold = (uniform(hash_key(salt_of("uplift folds"), seed, np.asarray(users, np.uint64))) * 3).astype(np.int64)
    mean = np.full(len(y), y.mean())
    for k in range(3):
        inside, outside = fold == k, fold != k
        if inside.any() and outside.any():
            booster = _boost(matrix[outside], y[outside], np.ones(outside.sum()), seed, settings, "reg:squarederror")
            mean[inside] = _predict(booster, matrix[inside])[:, 0]
    return mean


def _uplift_metrics(effect: F64, predicted: F64) -> dict[str, float | int]:
    """Mean effect, and the effect observed in the upper and the lower half by prediction."""
    order = np.argsort(predicted, kind="stable")
    lower, upper = order[: len(order) // 2], order[len(order) // 2 :]
    return {
        "rows": len(effect),
        "mean_effect": float(effect.mean()),
        "mean_predicted": float(predicted.mean()),
        "upper_half_effect": float(effect[upper].mean()),
        "lower_half_effect": float(effect[lower].mean()) if len(lower) else float(effect.mean()),
    }
