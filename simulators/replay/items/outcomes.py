"""The outcome model of lists: what a slot and all below it bring, given the scores of its candidate and its position.

It is the control variate of cascade-DR, so that it may be wrong without harm to anything but the interval's width. Fitted
before the pass on the users of the first bucket groups (buckets are a hash of the user), in folds of users, and saved.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from simulators.estimators.outcome_model import OutcomeModel, OutcomeSettings, fit_outcome_model
from simulators.replay.items.logged import Lists
from simulators.replay.items.spec import METRICS

__all__ = ["ENOUGH", "features_of", "fitted", "remaining"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

ENOUGH = 100_000
"""Slots that a model is fitted on."""
_SETTINGS = OutcomeSettings(trees=30, depth=4)


def features_of(lists: Lists, candidates: I64, position: I64, heads: Sequence[str]) -> F32:
    """f32[k, 1 + H]: position, and the logged scores named `heads` (NaN where a list has none of that name)."""
    out = np.full((len(candidates), 1 + len(heads)), np.nan, np.float32)
    out[:, 0] = position
    for column, name in enumerate(heads, 1):
        if name in lists.head_names:
            out[:, column] = lists.candidates["heads"][candidates, lists.head_names.index(name)]
    return out


def remaining(reward: F64, list_of: I64) -> F64:
    """f64[s, M]: of each slot and those below it in its list. list_of i64[s], slots of a list adjacent and in order."""
    if not len(reward):
        return reward
    backwards = np.cumsum(reward[::-1], axis=0)[::-1]
    after = np.concatenate([backwards[1:], np.zeros((1, reward.shape[1]))])
    last = np.concatenate([list_of[1:] != list_of[:-1], [True]])
    ends = np.flatnonzero(last)
    out: F64 = np.rint((backwards - after[ends][np.searchsorted(ends, np.arange(len(reward)))]) * 1e6) / 1e6
    return out


def fitted(users: U64, features: F32, reward: F64, heads: Sequence[str]) -> OutcomeModel:
    """On slots of several partitions, in that order. reward: as `remaining` gives."""
    return fit_outcome_model(
        users, features, reward, feature_names=("position", *heads), metrics=METRICS, settings=_SETTINGS
    )
