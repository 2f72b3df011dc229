"""Keyed randomness of the world: every draw is a pure function of (seed, purpose, key), whoever asks and in whatever order.

Two policies run on the same world therefore meet the same noise: a send of campaign c to user u on day d is answered from
the same uniform under both, which is what makes their difference cheap to estimate (common random numbers).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from serve_app.noise import hash_key, salt_of, uniform

__all__ = ["Draws", "cumulative_pick", "logistic", "row_pick"]

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


def logistic(x: F64) -> F64:
    """Elementwise 1 / (1 + exp(-x))."""
    result: F64 = 1.0 / (1.0 + np.exp(-x))
    return result


def cumulative_pick(weights: npt.ArrayLike, u: F64) -> I64:
    """Index drawn with probability proportional to `weights` (f64[k]) for each uniform in `u` (any shape)."""
    edges = np.cumsum(np.asarray(weights, np.float64))
    return np.minimum(np.searchsorted(edges, u * edges[-1], side="left"), len(edges) - 1)


def row_pick(weights: F64, u: F64) -> I64:
    """Per row of `weights` (f64[n, k], non-negative, row sum > 0) the index drawn by `u` (f64[n])."""
    edges = np.cumsum(weights, axis=1)
    below = edges < (u * edges[:, -1])[:, None]
    return np.minimum(below.sum(axis=1), weights.shape[1] - 1)


@cache
def _stream(seed: int, purpose: str) -> np.uint64:
    """The salt of one stream of one world."""
    return hash_key(salt_of(purpose), np.asarray(seed, np.int64))[0]


@dataclass(frozen=True, slots=True)
class Draws:
    """Draws of one world. `purpose` separates streams; the key's parts are integer arrays that broadcast."""

    seed: int

    def bits(self, purpose: str, *parts: npt.ArrayLike) -> npt.NDArray[np.uint64]:
        """u64 of the broadcast shape."""
        return hash_key(_stream(self.seed, purpose), *parts)

    def uniform(self, purpose: str, *parts: npt.ArrayLike) -> F64:
        """f64 strictly inside (0, 1)."""
        return uniform(self.bits(purpose, *parts))

    def normal(self, purpose: str, *parts: npt.ArrayLike) -> F64:
        """Standard normal by the inverse distribution function."""
        result: F64 = ndtri(self.uniform(purpose, *parts))
        return result

    def exponential(self, purpose: str, *parts: npt.ArrayLike) -> F64:
        """Exponential of mean 1."""
        result: F64 = -np.log(self.uniform(purpose, *parts))
        return result

    def below(self, purpose: str, size: npt.ArrayLike, *parts: npt.ArrayLike) -> I64:
        """Integer uniform in [0, size)."""
        limit = np.asarray(size)
        drawn = (self.uniform(purpose, *parts) * limit).astype(np.int64)
        return np.minimum(drawn, np.maximum(limit - 1, 0))
