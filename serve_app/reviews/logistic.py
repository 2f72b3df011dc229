"""Logistic regression over standardised features, ridge-penalised, fitted by Newton's method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.errors import DamagedArtifact

__all__ = ["Logistic", "fit_logistic"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

_PENALTY = 50.0
_CLIP = 4.0  # standard deviations: one strange review must not swing the sum


@dataclass(frozen=True, slots=True)
class Logistic:
    """margin = intercept + sum of weight * clip((log-scaled x - mean) / scale); all f64[F]. logs bool[F]: columns taken as
    log(1 + x), as heavy-tailed counts and days are."""

    mean: F64
    scale: F64
    weight: F64
    intercept: float
    logs: npt.NDArray[np.bool_]

    def margin(self, matrix: F32) -> F64:
        """f64[n] log-odds, features added in column order."""
        total = np.full(len(matrix), self.intercept)
        for column in range(len(self.weight)):
            total += self.weight[column] * self._standard(matrix[:, column], column)
        return total

    def _standard(self, values: F32, column: int) -> F64:
        x = values.astype(np.float64)
        x = np.log1p(np.maximum(x, 0.0)) if self.logs[column] else x
        return np.clip((x - self.mean[column]) / self.scale[column], -_CLIP, _CLIP)

    def to_json(self) -> dict[str, Any]:
        """Plain lists."""
        lists = {name: getattr(self, name).tolist() for name in ("mean", "scale", "weight", "logs")}
        return {**lists, "intercept": self.intercept}

    @classmethod
    def from_json(cls, text: Mapping[str, Any]) -> Logistic:
        """Back from `to_json`; DamagedArtifact where the lists do not fit each other."""
        mean, scale, weight = (np.array(text[name], np.float64) for name in ("mean", "scale", "weight"))
        logs = np.array(text["logs"], np.bool_)
        if not mean.shape == scale.shape == weight.shape == logs.shape or not (scale > 0).all():
            raise DamagedArtifact("weights, means and scales do not fit each other", field="logistic")
        return cls(mean, scale, weight, float(text["intercept"]), logs)


def fit_logistic(matrix: F32, outcome: npt.NDArray[np.bool_]) -> Logistic:
    """Maximum of the likelihood less ``penalty / 2 * |weight|^2`` (the intercept is free)."""
    x = matrix.astype(np.float64)
    logs = (x.min(axis=0) >= 0) & (x.max(axis=0) > 20)
    x[:, logs] = np.log1p(x[:, logs])
    mean, scale = x.mean(axis=0), x.std(axis=0)
    scale[scale == 0] = 1.0
    z = np.concatenate([np.clip((x - mean) / scale, -_CLIP, _CLIP), np.ones((len(x), 1))], axis=1)
    y, ridge = outcome.astype(np.float64), np.full(z.shape[1], _PENALTY)
    ridge[-1] = 0.0
    weight = np.zeros(z.shape[1])
    rate = np.clip(y.mean(), 1e-6, 1 - 1e-6)
    weight[-1] = np.log(rate / (1 - rate))
    for _ in range(50):
        p = 1.0 / (1.0 + np.exp(-(z @ weight)))
        gradient = z.T @ (y - p) - ridge * weight
        hessian = (z * (p * (1 - p))[:, None]).T @ z + np.diag(ridge)
        hessian[-1, -1] += 1e-9
        step = np.linalg.solve(hessian, gradient)
        weight += step
        if np.abs(step).max() < 1e-9:
            break
    return Logistic(mean, scale, weight[:-1], float(weight[-1]), logs)
