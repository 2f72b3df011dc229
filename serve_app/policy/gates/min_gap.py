"""Gate 9: the least time between two messages to one user (a message dated later, by a faster clock, included)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch
from serve_app.kernels import kernel
from serve_app.ledger.protocol import HistoryFlag
from serve_app.policy.compile import CompiledPolicy
from serve_app.policy.gates.result import GateResult, HistoryView, column
from serve_app.policy.tables import BYPASS_GAP, GAP_BINDS, GAP_COUNTS, GAP_LENGTH, GAP_REFUND
from serve_app.stages.stage import Context
from serve_app.vocabulary import GateOutcome, Reason

__all__ = ["min_gap"]

_SUPPRESS, _REASON, _REFUNDED = int(GateOutcome.suppress), int(Reason.min_gap), int(HistoryFlag.refunded)
_LONG_AGO = np.iinfo(np.int64).min
I64 = npt.NDArray[np.int64]
I16 = npt.NDArray[np.int16]
I8 = npt.NDArray[np.int8]
F64 = npt.NDArray[np.float64]


@kernel
def _min_gap(
    offsets: I64, at: I64, variant: I16, message_class: I8, gaps: I64, classes: I64, history: I64,
    shadow: npt.NDArray[np.uint64], times: I64, holdouts: npt.NDArray[np.uint64], kinds: I8, flags: npt.NDArray[np.uint8],
    outcome: I8, reason: I8, used: F64, limit: F64, next_free: I64,
) -> None:  # fmt: skip
    for r in range(len(at)):
        gap, last = gaps[variant[r]], _LONG_AGO
        for e in range(history[r], history[r + 1]):
            seen = holdouts[e] == 0 or holdouts[e] == shadow[r]
            counts = kinds[e] >= 0 and (gap[GAP_COUNTS] >> kinds[e]) & 1 == 1
            if seen and counts and not (gap[GAP_REFUND] and flags[e] & _REFUNDED):
                last = max(last, times[e])
        for c in range(offsets[r], offsets[r + 1]):
            outcome[c], reason[c], used[c], limit[c], next_free[c] = 0, 0, np.nan, np.nan, 0
            kind = message_class[c]
            spared = kind >= 0 and (classes[variant[r], kind, BYPASS_GAP] or (gap[GAP_BINDS] >> kind) & 1 == 0)
            if spared or gap[GAP_LENGTH] == 0 or last == _LONG_AGO:
                continue
            used[c], limit[c] = (at[r] - last) / 60e6, gap[GAP_LENGTH] / 60e6
            if last > at[r] - gap[GAP_LENGTH]:
                outcome[c], reason[c], next_free[c] = _SUPPRESS, _REASON, last + gap[GAP_LENGTH]


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
