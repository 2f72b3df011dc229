"""From a log to the rows of a trial: each user from the first would-send, outcomes after it, covariates before it.

The first would-send under a holdout is marked in both arms (`ghost_first`): in the held-out arm it is a ghost, in the other
a send. Outcomes are *user outcomes*: any such event by the user within the window, sent or not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serve_app.errors import InvalidInput
from serve_app.kernels import kernel

__all__ = ["TrialRows", "trial_rows"]

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
U64 = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class TrialRows:
    """One row a user: user u64[n], arm i32[n] (0 held out, 1 sent), at i64[n], outcome and covariate f64[n, K]. too_young:
    users whose window ends after the log does, left out. short_history: users kept whose `before` reaches before the log."""

    user: U64
    arm: I32
    at: I64
    outcome: F64
    covariate: F64
    too_young: int
    short_history: int


@kernel
def _gather(
    user: U64, at: I64, e_user: U64, e_at: I64, kind: I32, amount: F64, after: int, before: int, outcome: F64, covariate: F64
) -> None:
    """Both sorted by user; one pass."""
    start = 0
    for i in range(len(user)):
        while start < len(e_user) and e_user[start] < user[i]:
            start += 1
        e = start
        while e < len(e_user) and e_user[e] == user[i]:
            if kind[e] >= 0:
                if at[i] <= e_at[e] < at[i] + after:
                    outcome[i, kind[e]] += amount[e]
                elif at[i] - before <= e_at[e] < at[i]:
                    covariate[i, kind[e]] += amount[e]
            e += 1


def trial_rows(
    user: npt.ArrayLike,
    at: npt.ArrayLike,
    held: npt.ArrayLike,
    *,
    event_user: npt.ArrayLike,
    event_at: npt.ArrayLike,
    event_kind: npt.ArrayLike,
    event_amount: npt.ArrayLike,
    kinds: int,
    window_us: int,
    before_us: int,
    log_from: int,
    complete_to: int,
) -> TrialRows:
    """user u64[n], at i64[n], held bool[n]: first would-sends under one holdout, one a user. Events, all of these users':
    event_user u64[e], event_at i64[e], event_kind i32[e] in [-1, kinds) (-1: ignored), event_amount f64[e]. complete_to:
    until when the log is complete (the watermark). InvalidInput: a user twice."""
    users, order = np.unique(np.asarray(user, np.uint64), return_index=True)
    if len(users) != len(np.asarray(user)):
        raise InvalidInput("a user has two first would-sends", field="user", hint="take ghost_first rows of one holdout")
    times = np.asarray(at, np.int64)[order]
    arm = np.where(np.asarray(held, np.bool_)[order], 0, 1).astype(np.int32)
    grown = times + window_us <= complete_to
    users, times, arm, young = users[grown], times[grown], arm[grown], int((~grown).sum())
    e_user = np.asarray(event_user, np.uint64)
    by_user = np.argsort(e_user, kind="stable")
    outcome, covariate = np.zeros((len(users), kinds)), np.zeros((len(users), kinds))
    _gather(
        users, times, e_user[by_user], np.asarray(event_at, np.int64)[by_user], np.asarray(event_kind, np.int32)[by_user],
        np.asarray(event_amount, np.float64)[by_user], window_us, before_us, outcome, covariate,
    )  # fmt: skip
    short = int((times - before_us < log_from).sum())
    return TrialRows(users, arm, times, outcome, covariate, young, short)
