"""Gate 6: the campaign is limited to a segment, the user is not in it, or membership is too old to be trusted."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch
from serve_app.kernels import inlined, kernel
from serve_app.policy.compile import CompiledPolicy
from serve_app.policy.gates.result import GateResult, HistoryView, column
from serve_app.stages.stage import Context
from serve_app.vocabulary import GateOutcome, Reason

__all__ = ["not_member", "segment"]

_SUPPRESS, _OUTSIDE, _STALE = int(GateOutcome.suppress), int(Reason.not_in_segment), int(Reason.segment_stale)
I64 = npt.NDArray[np.int64]
I8 = npt.NDArray[np.int8]
F64 = npt.NDArray[np.float64]


@inlined
def not_member(at: int, computed_at: int, staleness: int, segments: np.uint64, needed: int) -> int:
    """Scalar, inside kernels: the Reason why a message limited to segment `needed` (-1: to none) may not go; 0: it may."""
    if needed < 0:
        return 0
    if computed_at == 0 or at - computed_at > staleness:
        return _STALE
    return _OUTSIDE if needed > 63 or (segments >> np.uint64(needed)) & np.uint64(1) == 0 else 0


@kernel
def _segment(
    offsets: I64, at: I64, segments: npt.NDArray[np.uint64], computed_at: I64, segment_of: npt.NDArray[np.int16],
    staleness: int, outcome: I8, reason: I8, used: F64, limit: F64, next_free: I64,
) -> None:  # fmt: skip
    for r in range(len(at)):
        age = at[r] - computed_at[r]
        for c in range(offsets[r], offsets[r + 1]):
            why = not_member(at[r], computed_at[r], staleness, segments[r], segment_of[c])
            outcome[c], reason[c], next_free[c] = _SUPPRESS if why else 0, why, 0
            limited = segment_of[c] >= 0
            used[c] = age / 1e6 if limited and computed_at[r] else np.nan
            limit[c] = staleness / 1e6 if limited else np.nan


def segment(
    batch: Batch, histories: HistoryView, policy: CompiledPolicy, context: Context, out: GateResult | None = None
) -> GateResult:
    """used: age of the membership in seconds, limit: the policy's staleness limit; NaN without a segment."""
    del histories, context
    out = out or GateResult.empty(batch.candidates.rows)
    requests, rows = batch.requests, batch.candidates
    _segment(
        batch.offsets, column(requests, "decided_at"), column(requests, "segments"), column(requests, "segments_at"),
        column(rows, "segment"), policy.rules.segment_staleness, *out.arrays,
    )  # fmt: skip
    return out
