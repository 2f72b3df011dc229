"""The `arms` and `holdouts` columns: who was assigned what, with which probability."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from serve_app.batch import Columns, Ragged, lengths_to_offsets
from serve_app.ids import hash_ids
from serve_app.log.fields import ASSIGNMENTS
from serve_app.log.plan import inner_dtype
from serve_app.policy.assigned import Trials, held_bits, trials_of
from serve_app.policy.compile import CompiledPolicy

__all__ = ["ASSIGNMENT_DTYPE", "Assigned", "arms_lists", "assigned_columns", "assigned_lists", "holdout_lists"]

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

ASSIGNMENT_DTYPE: np.dtype[Any] = np.dtype(inner_dtype(ASSIGNMENTS))
"""One assignment: hash of the experiment's or holdout's id, arm, probability."""

_ARM_BITS, _ONE, _ARM = np.uint64(4), np.uint64(1), np.uint64(15)


class Assigned(TypedDict, total=False):
    """The two columns; neither where there are no requests."""

    arms: Ragged
    holdouts: Ragged


@dataclass(frozen=True, slots=True)
class _Key:
    """What of the columns depends on the trials alone. arms [experiments, 16], held [holdouts, 2]: the assignment to write
    for each arm or bit; the shifts find it in the user's bits."""

    arms: npt.NDArray[np.void]
    held: npt.NDArray[np.void]
    arm_shifts: U64
    held_shifts: U64


@lru_cache(maxsize=64)
def _key(trials: Trials) -> _Key:
    experiments, holdouts = trials.experiments, trials.holdouts
    arms = np.zeros((len(experiments), 16), ASSIGNMENT_DTYPE)
    arms["id"] = hash_ids(name for name, _ in experiments)[:, None]
    arms["arm"] = np.arange(16)
    for row, (_, shares) in enumerate(experiments):
        arms["p"][row, : len(shares)] = shares
    held = np.zeros((len(holdouts), 2), ASSIGNMENT_DTYPE)
    held["id"] = hash_ids(name for name, _ in holdouts)[:, None]
    held["arm"] = np.arange(2)
    held["p"] = [(1 - share, share) for _, share in holdouts] or np.zeros((0, 2))
    counts = [np.arange(len(one), dtype=np.uint64) for one in (experiments, holdouts)]
    return _Key(arms, held, counts[0] * _ARM_BITS, counts[1])


def arms_lists(trials: Trials, arm_bits: U64) -> Ragged:
    """Experiments a request is in; those it is not in (before their start, after their end) are left out."""
    key = _key(trials)
    if not len(key.arm_shifts):
        return Ragged.empty(len(arm_bits), ASSIGNMENT_DTYPE)
    found = (arm_bits[:, None] >> key.arm_shifts & _ARM).astype(np.int64)  # 0: not in it, else arm + 1
    row, experiment = np.nonzero(found)
    values = key.arms[experiment, found[row, experiment] - 1]
    return Ragged(values, lengths_to_offsets(np.count_nonzero(found, axis=1)))


def holdout_lists(trials: Trials, held: U64) -> Ragged:
    """Every holdout of the policy: held out (1) or not (0), with the probability of that."""
    key = _key(trials)
    bits = (held[:, None] >> key.held_shifts & _ONE).astype(np.int64)
    rows, width = bits.shape
    values = key.held[np.arange(width), bits]
    return Ragged(values.reshape(-1), np.arange(rows + 1, dtype=np.int64) * width)


def assigned_lists(trials: Sequence[Trials], pinned: I64, arm_bits: U64, held: U64) -> Assigned:
    """`arms` and `holdouts` of requests whose `pinned` indexes `trials`."""
    distinct = np.unique(pinned).tolist()
    if len(distinct) == 1:
        one = trials[distinct[0]]
        return {"arms": arms_lists(one, arm_bits), "holdouts": holdout_lists(one, held)}
    if not distinct:
        return {}
    places = [np.flatnonzero(pinned == index) for index in distinct]
    back = np.argsort(np.concatenate(places), kind="stable")
    own = [(trials[index], rows) for index, rows in zip(distinct, places, strict=True)]
    arms = _joined([arms_lists(one, arm_bits[rows]) for one, rows in own])
    return {"arms": arms.take(back), "holdouts": _joined([holdout_lists(one, held[rows]) for one, rows in own]).take(back)}


def _joined(parts: Sequence[Ragged]) -> Ragged:
    lengths = lengths_to_offsets(np.concatenate([one.lengths for one in parts]))
    return Ragged(np.concatenate([one.values for one in parts]), lengths)


def assigned_columns(requests: Columns, policies: Sequence[CompiledPolicy]) -> Assigned:
    """`arms` and `holdouts` of a batch's requests, whose `policy` indexes `policies`."""
    users = requests["user"]
    bits = requests["arms"] if "arms" in requests else np.zeros(len(users), np.uint64)
    if len(policies) == 1 and len(users):
        one = trials_of(policies[0])
        return {"arms": arms_lists(one, bits), "holdouts": holdout_lists(one, held_bits(policies[0].holdouts, users))}
    if len(policies) == 1 or "policy" not in requests:
        pinned, held = np.zeros(len(users), np.int64), held_bits(policies[0].holdouts, users)
    else:
        pinned, held = requests["policy"].astype(np.int64), np.zeros(len(users), np.uint64)
        for index in np.unique(pinned).tolist():
            mine = pinned == index
            held[mine] = held_bits(policies[index].holdouts, users[mine])
    return assigned_lists([trials_of(one) for one in policies], pinned, bits, held)
