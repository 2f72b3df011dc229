"""Gate 2: never sent stale. The request's or the candidate's `expires_at` has come."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch
from serve_app.kernels import inlined, kernel
from serve_app.policy.compile import CompiledPolicy
from serve_app.policy.gates.result import GateResult, HistoryView, column
from serve_app.stages.stage import Context
from serve_app.vocabulary import GateOutcome, Reason

__all__ = ["earliest_expiry", "expired", "is_over"]

_SUPPRESS, _REASON = int(GateOutcome.suppress), int(Reason.expired)
I64 = npt.NDArray[np.int64]
I8 = npt.NDArray[np.int8]
F64 = npt.NDArray[np.float64]


@inlined
def earliest_expiry(request: int, candidate: int) -> int:
    """Scalar, inside kernels: the sooner of two times of which 0 means never."""
    if request == 0 or (candidate != 0 and candidate < request):
        return candidate
    return request


@inlined
def is_over(at: int, end: int) -> bool:
    """Scalar, inside kernels: is the time of an expiry (0: never) reached?"""
    return end != 0 and at >= end


@kernel
def _expired(
    offsets: I64, at: I64, request: I64, candidate: I64, outcome: I8, reason: I8, used: F64, limit: F64, next_free: I64
) -> None:
    for r in range(len(at)):
        for c in range(offsets[r], offsets[r + 1]):
            end = earliest_expiry(request[r], candidate[c])
            over = is_over(at[r], end)
            outcome[c] = _SUPPRESS if over else 0
            reason[c] = _REASON if over else 0
            used[c] = at[r] / 1e6 if end else np.nan
            limit[c] = end / 1e6 if end else np.nan
            next_free[c] = 0


def expired(
    batch: Batch, histories: HistoryView, policy: CompiledPolicy, context: Context, out: GateResult | None = None
) -> GateResult:
    """used: now, limit: expiry, both in seconds since 1970; NaN where nothing expires."""
    del histories, policy, context
    out = out or GateResult.empty(batch.candidates.rows)
    _expired(
        batch.offsets, column(batch.requests, "decided_at"), column(batch.requests, "expires_at"),
        column(batch.candidates, "expires_at"), *out.arrays,
    )  # fmt: skip
    return out
