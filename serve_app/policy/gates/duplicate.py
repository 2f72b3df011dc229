"""Gate 3: said already: by this very request, by an earlier candidate of it, or by the campaign within its window."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch
from serve_app.kernels import kernel
from serve_app.ledger.protocol import HistoryFlag
from serve_app.policy.compile import CompiledPolicy
from serve_app.policy.gates.result import THIS_DECISION, GateResult, HistoryView, column
from serve_app.policy.tables import DUPLICATE_WINDOW
from serve_app.stages.stage import Context
from serve_app.vocabulary import GateOutcome, Reason

__all__ = ["duplicate"]

_SUPPRESS, _REASON, _REFUNDED = int(GateOutcome.suppress), int(Reason.duplicate), int(HistoryFlag.refunded)
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
I8 = npt.NDArray[np.int8]
F64 = npt.NDArray[np.float64]


@kernel
def _duplicate(
    offsets: I64, at: I64, request_id: U64, variant: npt.NDArray[np.int16], campaign: U64, item: npt.NDArray[np.int32],
    channel: I8, scalars: I64, history: I64, shadow: U64, times: I64, campaigns: U64, holdouts: U64, requests: U64,
    flags: npt.NDArray[np.uint8], outcome: I8, reason: I8, used: F64, limit: F64, next_free: I64,
) -> None:  # fmt: skip
    for r in range(len(at)):
        window = scalars[variant[r], DUPLICATE_WINDOW]
        for c in range(offsets[r], offsets[r + 1]):
            seen, free, for_good = 0, 0, False
            for e in range(history[r], history[r + 1]):
                if holdouts[e] != 0 and holdouts[e] != shadow[r]:
                    continue
                same = campaign[c] != 0 and campaigns[e] == campaign[c]
                if flags[e] & THIS_DECISION:
                    seen += 1 if same else 0
                    for_good = for_good or same
                elif requests[e] == request_id[r]:
                    seen += 1
                    for_good = True
                elif same and times[e] > at[r] - window and not flags[e] & _REFUNDED and window > 0:
                    seen += 1
                    free = max(free, times[e] + window)
            for b in range(offsets[r], c):
                if campaign[b] == campaign[c] and item[b] == item[c] and channel[b] == channel[c]:
                    seen += 1
                    for_good = True
            outcome[c] = _SUPPRESS if seen else 0
            reason[c] = _REASON if seen else 0
            used[c], limit[c], next_free[c] = float(seen), 0.0, 0 if for_good else free


def duplicate(
    batch: Batch, histories: HistoryView, policy: CompiledPolicy, context: Context, out: GateResult | None = None
) -> GateResult:
    """used: how often it was said; limit: 0. next_free_at: end of the campaign's duplicate window; 0 for what this
    request said itself."""
    del context
    out = out or GateResult.empty(batch.candidates.rows)
    requests, rows = batch.requests, batch.candidates
    _duplicate(
        batch.offsets, column(requests, "decided_at"), column(requests, "request_id"), column(requests, "variant"),
        column(rows, "campaign"), column(rows, "item"), column(rows, "channel"), policy.settings.scalars,
        histories.offsets, histories.shadow, *histories.fields("at", "campaign", "holdout", "request_id", "flags"),
        *out.arrays,
    )  # fmt: skip
    return out
