"""Gate 9: the least time between two messages to one user (a message dated later, by a faster clock, included)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch
from serve_app.kernels import inlined, kernel
from serve_app.ledger.columns import HistoryFlag
from serve_app.policy.compile import CompiledPolicy
from serve_app.policy.gates.duplicate import is_seen
from serve_app.policy.gates.result import GateResult, HistoryView, column
from serve_app.policy.tables import BYPASS_GAP, GAP_BINDS, GAP_COUNTS, GAP_LENGTH, GAP_REFUND
from serve_app.stages.stage import Context
from serve_app.vocabulary import GateOutcome, Reason

__all__ = ["NO_USE", "gap_binds", "last_use", "min_gap", "too_soon"]

_SUPPRESS, _REASON, _REFUNDED = int(GateOutcome.suppress), int(Reason.min_gap), int(HistoryFlag.refunded)
NO_USE = np.iinfo(np.int64).min
I64 = npt.NDArray[np.int64]
I16 = npt.NDArray[np.int16]
I8 = npt.NDArray[np.int8]
U8 = npt.NDArray[np.uint8]
U64 = npt.NDArray[np.uint64]
F64 = npt.NDArray[np.float64]


@inlined
def last_use(
    v: int, gaps: I64, shadow: np.uint64, begin: int, end: int, times: I64, holdouts: U64, kinds: I8, flags: U8
) -> int:
    """Scalar, inside kernels: time of the newest of the entries begin..end that the gap counts; `NO_USE`: none."""
    last = NO_USE
    for e in range(begin, end):
        counts = kinds[e] >= 0 and (gaps[v, GAP_COUNTS] >> kinds[e]) & 1 == 1
        if counts and is_seen(holdouts[e], shadow) and not (gaps[v, GAP_REFUND] and flags[e] & _REFUNDED):
            last = max(last, times[e])
    return last


@inlined
def gap_binds(kind: int, v: int, gaps: I64, classes: I64) -> bool:
    """Scalar, inside kernels: does variant v keep messages of this class apart from earlier ones?"""
    spared = kind >= 0 and (classes[v, kind, BYPASS_GAP] != 0 or (gaps[v, GAP_BINDS] >> kind) & 1 == 0)
    return gaps[v, GAP_LENGTH] != 0 and not spared


@inlined
def too_soon(at: int, last: int, v: int, gaps: I64) -> bool:
    """Scalar, inside kernels: has the gap after the use at `last` not passed?"""
    return last != NO_USE and last > at - gaps[v, GAP_LENGTH]


@kernel
def _min_gap(
    offsets: I64, at: I64, variant: I16, message_class: I8, gaps: I64, classes: I64, history: I64, shadow: U64,
    times: I64, holdouts: U64, kinds: I8, flags: U8, outcome: I8, reason: I8, used: F64, limit: F64, next_free: I64,
) -> None:  # fmt: skip
    for r in range(len(at)):
        v = variant[r]
        last = last_use(v, gaps, shadow[r], history[r], history[r + 1], times, holdouts, kinds, flags)
        for c in range(offsets[r], offsets[r + 1]):
            outcome[c], reason[c], used[c], limit[c], next_free[c] = 0, 0, np.nan, np.nan, 0
            if last == NO_USE or not gap_binds(message_class[c], v, gaps, classes):
                continue
            used[c], limit[c] = (at[r] - last) / 60e6, gaps[v, GAP_LENGTH] / 60e6
            if too_soon(at[r], last, v, gaps):
                outcome[c], reason[c], next_free[c] = _SUPPRESS, _REASON, last + gaps[v, GAP_LENGTH]


def min_gap(
    batch: Batch, histories: HistoryView, policy: CompiledPolicy, context: Context, out: GateResult | None = None
) -> GateResult:
    """used: minutes since the last message (negative where its clock ran ahead), limit: the gap; NaN without either."""
    del context
    out = out or GateResult.empty(batch.candidates.rows)
    requests = batch.requests
    _min_gap(
        batch.offsets, column(requests, "decided_at"), column(requests, "variant"),
        column(batch.candidates, "message_class"), policy.settings.gap, policy.settings.classes, histories.offsets,
        histories.shadow, *histories.fields("at", "holdout", "message_class", "flags"), *out.arrays,
    )  # fmt: skip
    return out
