"""Calibration: a monotone piecewise-linear map from a booster's output to what was observed on held-out users.

Fitted by isotonic regression (pool adjacent violators; Barlow et al. 1972) over bins of equal count; the pooled bins'
means become the knots, so the map is continuous, and keeps the order of all but tied scores.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serve_app.errors import DamagedArtifact, InvalidInput
from serve_app.kernels import kernel

__all__ = ["Calibration", "fit_calibration", "fit_line", "identity_calibration", "interpolate"]

F64 = npt.NDArray[np.float64]
Floats = npt.NDArray[np.floating]

_BINS = 32


@dataclass(frozen=True, slots=True)
class Calibration:
    """Knots x f64[k] (rising) -> y f64[k] (not falling), k >= 2; linear between, constant outside."""

    x: F64
    y: F64

    def __post_init__(self) -> None:
        fits = self.x.ndim == self.y.ndim == 1 and len(self.x) == len(self.y) >= 2
        if not fits or not np.isfinite(self.x).all() or not np.isfinite(self.y).all():
            raise DamagedArtifact("needs two finite knots or more, as many y as x", field="calibration")
        if (np.diff(self.x) <= 0).any() or (np.diff(self.y) < 0).any():
            raise DamagedArtifact("knots must rise in x and not fall in y", field="calibration")

    def __call__(self, scores: npt.ArrayLike) -> F64:
        """f64[m] calibrated."""
        raw = np.ascontiguousarray(scores, np.float64)[:, None]
        out = np.empty_like(raw)
        interpolate(raw, 0, self.x, self.y, out, 0)
        return out[:, 0]


@kernel
def interpolate(raw: Floats, source: int, x: F64, y: F64, out: Floats, column: int) -> None:
    """out[:, column] = the map of raw[:, source]. (np.interp's order of operations depends on how many values share a
    call.)"""
    last = len(x) - 1
    for i in range(len(raw)):
        v = float(raw[i, source])
        if not v > x[0]:
            out[i, column] = y[0] if v == v else np.nan
        elif v >= x[last]:
            out[i, column] = y[last]
        else:
            low, high = 0, last
            while high - low > 1:
                middle = (low + high) // 2
                if x[middle] <= v:
                    low = middle
                else:
                    high = middle
            out[i, column] = y[low] + (y[high] - y[low]) * ((v - x[low]) / (x[high] - x[low]))


def identity_calibration(low: float = 0.0, high: float = 1.0) -> Calibration:
    """The map that changes nothing between `low` and `high`."""
    return Calibration(np.array([low, high]), np.array([low, high]))


def fit_calibration(
    scores: npt.ArrayLike,
    outcome: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    *,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    bins: int = _BINS,
) -> Calibration:
    """Fit on held-out rows: scores f64[n], outcome f64[n] (0/1, or any response), weight f64[n].

    bounds: the ends of both scales; the map goes on to them beyond what was seen, instead of going flat (None: constant).
    Fewer than `bins` x 4 rows make fewer bins.
    """
    raw, seen = np.asarray(scores, np.float64), np.asarray(outcome, np.float64)
    mass = np.ones(len(raw)) if weight is None else np.asarray(weight, np.float64)
    if len(raw) == 0 or len(raw) != len(seen) or len(raw) != len(mass):
        raise InvalidInput("calibration needs rows: as many outcomes and weights as scores", field="scores")
    order = np.argsort(raw, kind="stable")
    edges = np.unique(np.linspace(0, len(raw), min(bins, max(1, len(raw) // 4)) + 1).astype(np.int64))
    mean_x, mean_y, total = _bin_means(raw[order], seen[order], mass[order], edges)
    x, y = _pool(mean_x, mean_y, total)
    if bounds is not None:
        x, y = _with_bounds(x, y, bounds)
    if len(x) == 1:  # one knot: a constant
        x, y = np.array([x[0], np.nextafter(x[0], np.inf)]), np.repeat(y, 2)
    return Calibration(x, y)


def fit_line(scores: npt.ArrayLike, outcome: npt.ArrayLike, weight: npt.ArrayLike) -> Calibration:
    """The weighted least-squares line, its slope kept from falling: for effects, too noisy for bins. It is followed as far
    as twice the range of the scores seen, and constant beyond."""
    x, y, w = (np.asarray(one, np.float64) for one in (scores, outcome, weight))
    if len(x) == 0:
        raise InvalidInput("a line needs rows", field="scores")
    total = w.sum()
    mean_x, mean_y = (x * w).sum() / total, (y * w).sum() / total
    spread = (w * (x - mean_x) ** 2).sum()
    slope = max(0.0, (w * (x - mean_x) * (y - mean_y)).sum() / spread) if spread > 0 else 0.0
    reach = max(2.0 * float(np.abs(x - mean_x).max()), 1e-6)
    ends = np.array([mean_x - reach, mean_x + reach])
    return Calibration(ends, mean_y + slope * (ends - mean_x))


def _bin_means(raw: F64, seen: F64, mass: F64, edges: npt.NDArray[np.int64]) -> tuple[F64, F64, F64]:
    total = np.add.reduceat(mass, edges[:-1])
    return np.add.reduceat(raw * mass, edges[:-1]) / total, np.add.reduceat(seen * mass, edges[:-1]) / total, total


def _pool(x: F64, y: F64, weight: F64) -> tuple[F64, F64]:
    """Pool adjacent violators, and bins of equal x; returns pooled means."""
    pooled: list[list[float]] = []
    for one in zip(x.tolist(), y.tolist(), weight.tolist(), strict=True):
        pooled.append(list(one))
        while len(pooled) > 1 and (pooled[-2][1] >= pooled[-1][1] or pooled[-2][0] >= pooled[-1][0]):
            xb, yb, wb = pooled.pop()
            xa, ya, wa = pooled[-1]
            w = wa + wb
            pooled[-1] = [(xa * wa + xb * wb) / w, (ya * wa + yb * wb) / w, w]
    return np.array([p[0] for p in pooled]), np.array([p[1] for p in pooled])


def _with_bounds(x: F64, y: F64, bounds: tuple[float, float]) -> tuple[F64, F64]:
    """Extend to both bounds: down to the lower one, and upwards in the proportion of the last bin."""
    low, high = bounds
    inside = (x > low) & (x < high)
    x, y = x[inside], np.clip(y[inside], low, high)
    top = min(high, low + (y[-1] - low) * (high - low) / (x[-1] - low)) if len(x) else high
    return np.concatenate([[low], x, [high]]), np.concatenate([[low], y, [top]])
