"""Checks and selections on commit plans that all backends share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from serve_app.batch import lengths_to_offsets
from serve_app.errors import InvalidInput
from serve_app.ledger.columns import HISTORY_DTYPE, CommitPlan

__all__ = ["check_plan", "require_distinct", "select_entries", "value_at"]

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]


def require_distinct(users: U64) -> None:
    """InvalidInput when a user stands twice."""
    if len(users) > 1:
        ordered = np.sort(users)
        if (ordered[1:] == ordered[:-1]).any():
            raise InvalidInput("a user stands twice in one write", field="users", hint="decide repeated users in waves")


def check_plan(plan: CommitPlan) -> None:
    """InvalidInput, naming the field, when the plan's columns do not fit each other."""
    rows = len(plan.users)
    for name in ("read_versions", "decided_at", "request_ids"):
        if len(getattr(plan, name)) != rows:
            raise InvalidInput(f"has {len(getattr(plan, name))} rows, the plan {rows}", field=name)
    for name in ("records", "keys", "digests", "outbox", "deferred_until", "settles"):
        values = getattr(plan, name)
        if values is not None and len(values) not in (0, rows):
            raise InvalidInput(f"has {len(values)} rows, the plan {rows}", field=name)
    if plan.new_entries.dtype != HISTORY_DTYPE:
        raise InvalidInput(f"must be HISTORY_DTYPE, is {plan.new_entries.dtype}", field="new_entries")
    offsets = plan.new_offsets
    if (
        len(offsets) != rows + 1
        or offsets[0] != 0
        or offsets[-1] != len(plan.new_entries)
        or (offsets[1:] < offsets[:-1]).any()
    ):
        raise InvalidInput("must rise from 0 to the number of entries, one more than rows", field="new_offsets")
    if len(plan.keys) != len(plan.digests):
        raise InvalidInput("must come with a digest per key", field="keys")
    if any(len(key) not in (0, 16) or len(key) != len(own) for key, own in zip(plan.keys, plan.digests, strict=True)):
        raise InvalidInput("a key and its digest are 16 bytes each, or both empty", field="keys")
    require_distinct(plan.users)


def select_entries(plan: CommitPlan, rows: I64) -> tuple[npt.NDArray[np.void], I64]:
    """History entries of the plan's `rows` and their offsets."""
    if len(rows) == len(plan.users):
        return plan.new_entries, plan.new_offsets
    starts, counts = plan.new_offsets[rows], np.diff(plan.new_offsets)[rows]
    offsets = lengths_to_offsets(counts)
    flat = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], counts)
    return plan.new_entries[flat], offsets


def value_at(values: Sequence[bytes], row: int) -> bytes:
    """values[row], or b"" where the plan leaves the column out."""
    return values[row] if len(values) else b""
