"""Offline figures with their intervals: lists against what followed, scores against what happened.

Intervals are 95 %, normal, clustered by user (an unknown user is a cluster of its own), as one user's requests are alike.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from serve_app.batch import Ragged
from serve_app.release.manifest import Metric

__all__ = [
    "auc",
    "calibration_error",
    "clustered_mean",
    "list_figures",
    "log_loss",
    "model_figures",
    "score_figures",
    "top_lists",
]

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]

_Z = 1.959963984540054


def top_lists(items: I32, score: F64, offsets: I64, kept: Bools, length: int) -> I32:
    """i32[n, length]: each request's best kept items by score, ties by item row; -1 where there are fewer."""
    n = len(offsets) - 1
    owner = np.repeat(np.arange(n), np.diff(offsets))
    rows = np.flatnonzero(kept)
    order = rows[np.lexsort((items[rows], -score[rows], owner[rows]))]
    place = np.arange(len(order)) - np.searchsorted(owner[order], np.arange(n))[owner[order]]
    out = np.full((n, length), -1, np.int32)
    inside = place < length
    out[owner[order][inside], place[inside]] = items[order][inside]
    return out


def list_figures(lists: I32, relevant: Ragged) -> dict[str, F64]:
    """Per request, over lists i32[n, k] and relevant items: recall (hits over what k places could hold), ndcg (binary gains,
    Järvelin and Kekäläinen 2002), mrr (1 / rank of the first hit, 0 without one)."""
    n, length = lists.shape
    owner = np.repeat(np.arange(n, dtype=np.int64), relevant.lengths)
    wanted = (owner << np.int64(32)) | relevant.values
    asked = (np.arange(n, dtype=np.int64)[:, None] << np.int64(32)) | lists
    hit = np.isin(asked, wanted) & (lists >= 0)
    possible = np.minimum(relevant.lengths, length)
    gain = 1.0 / np.log2(np.arange(2, length + 2))
    ideal = np.cumsum(gain)[np.maximum(possible, 1) - 1]
    first = np.where(hit.any(axis=1), hit.argmax(axis=1) + 1, 0)
    return {
        "recall": hit.sum(axis=1) / np.maximum(possible, 1),
        "ndcg": (hit * gain).sum(axis=1) / ideal,
        "mrr": np.where(first > 0, 1.0 / np.maximum(first, 1), 0.0),
    }


def clustered_mean(values: F64, users: I32) -> Metric:
    """Mean with an interval clustered by user row (-1: each row its own cluster)."""
    n = len(values)
    if n == 0:
        return Metric(value=0.0, cases=0)
    mean = float(values.mean())
    alone = users < 0
    cluster = np.where(alone, users.max(initial=0) + 1 + np.arange(n), users)
    _, group = np.unique(cluster, return_inverse=True)
    residual = np.bincount(group, weights=values - mean)
    half = _Z * float(np.sqrt(np.square(residual).sum())) / n
    return Metric(value=mean, low=mean - half, high=mean + half, cases=n)


def auc(score: F64, label: Bools) -> float:
    """Probability that a positive scores above a negative, ties a half (Mann-Whitney)."""
    positive = int(label.sum())
    negative = len(label) - positive
    if positive == 0 or negative == 0:
        return float("nan")
    order = np.argsort(score, kind="stable")
    _, first, group, count = np.unique(score[order], return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(score))
    rank[order] = (first + (count + 1) / 2)[group]
    return float((rank[label].sum() - positive * (positive + 1) / 2) / (positive * negative))


def log_loss(p: F64, label: Bools) -> F64:
    """f64[m]: -log of the probability given to what happened."""
    safe = np.clip(p, 1e-7, 1 - 1e-7)
    return np.where(label, -np.log(safe), -np.log1p(-safe))


def calibration_error(p: F64, label: Bools, bins: int = 10) -> float:
    """Expected calibration error over about `bins` groups of equal size by predicted probability; equal predictions stay in
    one group (else the order of rows would count as knowledge)."""
    if len(p) == 0:
        return 0.0
    _, group, count = np.unique(p, return_inverse=True, return_counts=True)
    middle = np.cumsum(count) - count / 2
    part = np.floor(middle / len(p) * bins).astype(np.int64)[group]
    gap = np.bincount(part, weights=p - label, minlength=bins)
    return float(np.abs(gap).sum() / len(p))


def score_figures(p: F64, label: Bools, users: I32) -> Mapping[str, Metric]:
    """auc (interval after Hanley and McNeil 1982), log_loss, calibration_error and rate of one head on held-out rows."""
    positive, n = int(label.sum()), len(label)
    out = {
        "log_loss": clustered_mean(log_loss(p, label), users),
        "calibration_error": Metric(value=calibration_error(p, label), cases=n),
        "rate": clustered_mean(label.astype(np.float64), users),
        "predicted_rate": clustered_mean(p, users),
    }
    area = auc(p, label)
    if not np.isnan(area):
        q1, q2, rest = area / (2 - area), 2 * area**2 / (1 + area), n - positive
        variance = area * (1 - area) + (positive - 1) * (q1 - area**2) + (rest - 1) * (q2 - area**2)
        half = _Z * float(np.sqrt(max(variance, 0.0) / (positive * rest)))
        out["auc"] = Metric(value=area, low=max(area - half, 0.0), high=min(area + half, 1.0), cases=n)
    return out


def model_figures(metrics: Mapping[str, object]) -> dict[str, Metric]:
    """The plain numbers a model keeps about itself, as figures."""
    rows = metrics.get("rows")
    cases = rows if isinstance(rows, int) else None
    numbers = {name: value for name, value in metrics.items() if isinstance(value, float)}
    return {name: Metric(value=value, cases=cases) for name, value in sorted(numbers.items())}
