"""The `arms` and `holdouts` columns: who was assigned what, with which probability."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from serve_app.batch import Columns
from serve_app.ids import hash_ids
from serve_app.log.filling import assignments
from serve_app.policy.assigned import Trials, held_bits, trials_of
from serve_app.policy.compile import CompiledPolicy

__all__ = ["arms_column", "assigned_columns", "holdouts_column"]

U64 = npt.NDArray[np.uint64]


def arms_column(trials: Trials, arm_bits: U64) -> pa.ListArray:
    """Experiments a request is in; those it is not in (before their start, after their end) are left out."""
    count, n = len(trials.experiments), len(arm_bits)
    shifts = np.arange(count, dtype=np.uint64) * np.uint64(4)
    arms = (arm_bits[:, None] >> shifts & np.uint64(15)).astype(np.int16) - 1
    shares = np.zeros((count, 16))
    for row, (_, own) in enumerate(trials.experiments):
        shares[row, : len(own)] = own
    inside = arms >= 0
    ids = np.broadcast_to(hash_ids(name for name, _ in trials.experiments), (n, count))[inside]
    p = shares[np.broadcast_to(np.arange(count), (n, count))[inside], arms[inside]]
    values = pa.StructArray.from_arrays([pa.array(ids), pa.array(arms[inside]), pa.array(p)], ["id", "arm", "p"])
    offsets = np.concatenate([[0], np.cumsum(np.count_nonzero(inside, axis=1))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values)


def holdouts_column(trials: Trials, held: U64) -> pa.ListArray:
    """Every holdout of the policy: held out (1) or not (0), with the probability of that."""
    shares = np.array([share for _, share in trials.holdouts], np.float64)
    bits = (held[:, None] >> np.arange(len(shares), dtype=np.uint64) & np.uint64(1)).astype(np.int16)
    return assignments(hash_ids(name for name, _ in trials.holdouts), bits, np.where(bits == 1, shares, 1 - shares))


def assigned_columns(requests: Columns, policies: Sequence[CompiledPolicy]) -> dict[str, pa.ListArray]:
    """`arms` and `holdouts` of a batch's requests, whose `policy` indexes `policies`."""
    n, users = len(requests["user"]), requests["user"]
    bits = requests["arms"] if "arms" in requests else np.zeros(n, np.uint64)
    pinned = requests["policy"] if "policy" in requests and len(policies) > 1 else np.zeros(n, np.int16)
    parts: list[tuple[npt.NDArray[np.int64], pa.ListArray, pa.ListArray]] = []
    for index in np.unique(pinned).tolist():
        mine, policy = np.flatnonzero(pinned == index), policies[index]
        trials = trials_of(policy)
        held = held_bits(policy.holdouts, users[mine])
        parts.append((mine, arms_column(trials, bits[mine]), holdouts_column(trials, held)))
    if not parts:
        return {}
    names = ("arms", "holdouts")
    if len(parts) == 1:
        return dict(zip(names, parts[0][1:], strict=True))
    back = pa.array(np.argsort(np.concatenate([mine for mine, _, _ in parts]), kind="stable"))
    return {name: pa.concat_arrays([part[side] for part in parts]).take(back) for side, name in enumerate(names, 1)}
