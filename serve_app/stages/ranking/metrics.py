"""How good a head is, offline: discrimination, log loss, calibration by decile."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["area_under_curve", "calibration_by_decile", "calibration_error", "head_metrics", "log_loss"]

F64 = npt.NDArray[np.float64]


def area_under_curve(outcome: npt.ArrayLike, score: npt.ArrayLike, weight: npt.ArrayLike | None = None) -> float:
    """Probability that a positive row scores above a negative one, ties counting half; NaN without both classes."""
    y, s = np.asarray(outcome, np.float64), np.asarray(score, np.float64)
    w = np.ones(len(y)) if weight is None else np.asarray(weight, np.float64)
    values, group = np.unique(s, return_inverse=True)
    positive = np.bincount(group, weights=w * (y > 0), minlength=len(values))
    negative = np.bincount(group, weights=w * (y <= 0), minlength=len(values))
    below = np.cumsum(negative) - negative
    pairs = positive.sum() * negative.sum()
    return float((positive * (below + 0.5 * negative)).sum() / pairs) if pairs > 0 else float("nan")


def log_loss(outcome: npt.ArrayLike, p: npt.ArrayLike) -> float:
    """Mean negative log likelihood, probabilities kept 1e-7 away from 0 and 1."""
    y, q = np.asarray(outcome, np.float64), np.clip(np.asarray(p, np.float64), 1e-7, 1 - 1e-7)
    return float(-np.mean(y * np.log(q) + (1 - y) * np.log(1 - q))) if len(y) else float("nan")


def calibration_by_decile(outcome: npt.ArrayLike, p: npt.ArrayLike) -> list[tuple[float, float, int]]:
    """(mean predicted, mean observed, rows) of each tenth of the rows in order of prediction."""
    y, q = np.asarray(outcome, np.float64), np.asarray(p, np.float64)
    parts = np.array_split(np.argsort(q, kind="stable"), 10)
    return [(float(q[part].mean()), float(y[part].mean()), len(part)) for part in parts if len(part)]


def calibration_error(outcome: npt.ArrayLike, p: npt.ArrayLike) -> float:
    """Mean over deciles of |predicted - observed|, weighted by rows (expected calibration error)."""
    deciles = calibration_by_decile(outcome, p)
    rows = sum(count for _, _, count in deciles)
    return sum(abs(a - b) * count for a, b, count in deciles) / rows if rows else float("nan")


def head_metrics(outcome: npt.ArrayLike, p: npt.ArrayLike) -> dict[str, float | int | None]:
    """What the manifest keeps of a probability head; None where the rows do not determine it."""
    y = np.asarray(outcome, np.float64)
    found: dict[str, float | int | None] = {
        "rows": len(y),
        "positives": int((y > 0).sum()),
        "auc": area_under_curve(y, p),
        "log_loss": log_loss(y, p),
        "calibration_error": calibration_error(y, p),
        "mean_predicted": float(np.mean(np.asarray(p))) if len(y) else None,
        "mean_observed": float(np.mean(y)) if len(y) else None,
    }
    return {k: None if isinstance(v, float) and np.isnan(v) else v for k, v in found.items()}
