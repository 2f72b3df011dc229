"""A ridge-penalised logistic (or linear) regression by Newton's method: the small outcome model."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serve_app.kernels import kernel

__all__ = ["LogisticModel", "fit_logistic", "load_logistic", "save_logistic"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

_STEPS = 25
_CLOSE = 1e-6
_BOUND = 30.0  # logits beyond it are certain in double precision


@dataclass(frozen=True, slots=True)
class LogisticModel:
    """coefficients f64[1 + F] on features centred and scaled by mean and scale f64[F]; missing values count as the mean."""

    mean: F64
    scale: F64
    coefficients: F64
    binary: bool

    def predict(self, x: F32) -> F64:
        """f64[n]: probability, or mean."""
        out = np.empty(len(x))
        _predict(x, self.mean, self.coefficients[1:] / self.scale, self.coefficients[0], self.binary, out)
        return out


@kernel
def _predict(x: F32, mean: F64, slope: F64, intercept: float, binary: bool, out: F64) -> None:
    """In a fixed order: a prediction does not depend on how many are made together."""
    for row in range(len(x)):
        total = intercept
        for f in range(len(mean)):
            value = float(x[row, f])
            if not np.isnan(value):
                total += (value - mean[f]) * slope[f]
        out[row] = 1.0 / (1.0 + np.exp(-min(max(total, -_BOUND), _BOUND))) if binary else total


def fit_logistic(x: F32, y: F64, weight: F64, *, l2: float, binary: bool) -> LogisticModel:
    """Fit y f64[n] on x f32[n, F]; l2 on the scaled coefficients, not on the intercept."""
    whole = np.asarray(x, np.float64)
    empty = np.isnan(whole).all(axis=0)
    mean = np.where(empty, 0.0, np.nanmean(np.where(empty, 0.0, whole), axis=0))
    scale = np.nanstd(np.where(empty, 0.0, whole), axis=0)
    scale[scale == 0] = 1.0
    design = _design(x, mean, scale)
    penalty = np.full(design.shape[1], l2)
    penalty[0] = 1e-9
    coefficients = np.zeros(design.shape[1])
    if binary:
        share = float(np.clip(np.average(y, weights=weight), 1e-6, 1 - 1e-6))
        coefficients[0] = np.log(share / (1 - share))
    for _ in range(_STEPS if binary else 1):
        logit = design @ coefficients
        p = _logistic(logit) if binary else logit
        curve = weight * (p * (1 - p) if binary else 1.0)
        slope = design.T @ (weight * (y - p)) - penalty * coefficients
        step = np.linalg.solve((design * curve[:, None]).T @ design + np.diag(penalty), slope)
        coefficients = coefficients + step
        if np.abs(step).max() < _CLOSE:
            break
    return LogisticModel(mean, scale, coefficients, binary)


def save_logistic(model: LogisticModel) -> bytes:
    """JSON with exact doubles."""
    arrays = {name: getattr(model, name).tolist() for name in ("mean", "scale", "coefficients")}
    return json.dumps({**arrays, "binary": model.binary}, sort_keys=True).encode()


def load_logistic(data: bytes) -> LogisticModel:
    """From `save_logistic`."""
    found = json.loads(data)
    mean, scale, coefficients = (np.array(found[name]) for name in ("mean", "scale", "coefficients"))
    return LogisticModel(mean, scale, coefficients, found["binary"])


def _design(x: F32, mean: F64, scale: F64) -> F64:
    scaled = (np.asarray(x, np.float64) - mean) / scale
    return np.concatenate([np.ones((len(x), 1)), np.where(np.isnan(scaled), 0.0, scaled)], axis=1)


def _logistic(logit: F64) -> F64:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(logit, -_BOUND, _BOUND))))
