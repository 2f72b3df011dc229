"""Gate 3: said already: by this very request, by an earlier candidate of it, or by the campaign within its window."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch
from serve_app.kernels import inlined, kernel
from serve_app.ledger.columns import HistoryFlag
from serve_app.policy.compile import CompiledPolicy
from serve_app.policy.gates.result import THIS_DECISION, GateResult, HistoryView, column
from serve_app.policy.tables import DUPLICATE_WINDOW
from serve_app.stages.stage import Context
from serve_app.vocabulary import GateOutcome, Reason

__all__ = ["duplicate", "is_seen", "said_before", "said_beside"]

_SUPPRESS, _REASON, _REFUNDED = int(GateOutcome.suppress), int(Reason.duplicate), int(HistoryFlag.refunded)
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
I32 = npt.NDArray[np.int32]
I8 = npt.NDArray[np.int8]
U8 = npt.NDArray[np.uint8]
F64 = npt.NDArray[np.float64]


@inlined
def is_seen(holdout: np.uint64, shadow: np.uint64) -> bool:
    """Scalar, inside kernels: does an entry of this holdout (0: a factual send) count in the view of `shadow` (0: facts)?"""
    return holdout == 0 or holdout == shadow


@inlined
def said_before(
    request_id: np.uint64, at: int, campaign: np.uint64, window: int, shadow: np.uint64, begin: int, recent: int, end: int,
    times: I64, campaigns: U64, holdouts: U64, requests: U64, flags: U8,
) -> tuple[int, int, bool]:  # fmt: skip
    """Scalar, inside kernels: (how often entries begin..end said it, when its window ends, whether waiting is of no use).
    Entries before `recent` are known to lie outside the window."""
    seen, free, for_good = 0, 0, False
    for e in range(begin, end):
        if requests[e] == request_id and is_seen(holdouts[e], shadow) and not flags[e] & THIS_DECISION:
            seen += 1
            for_good = True
    if campaign == 0:
        return seen, free, for_good
    for e in range(recent, end):
        if campaigns[e] != campaign or not is_seen(holdouts[e], shadow):
            continue
        if flags[e] & THIS_DECISION:
            seen += 1
            for_good = True
        elif requests[e] != request_id and times[e] > at - window and not flags[e] & _REFUNDED and window > 0:
            seen += 1
            free = max(free, times[e] + window)
    return seen, free, for_good


@inlined
def said_beside(c: int, first: int, campaign: U64, item: I32, channel: I8) -> int:
    """Scalar, inside kernels: how many of the request's candidates first..c say the same as c."""
    seen = 0
    for b in range(first, c):
        if campaign[b] == campaign[c] and item[b] == item[c] and channel[b] == channel[c]:
            seen += 1
    return seen


@kernel
def _duplicate(
    offsets: I64, at: I64, request_id: U64, variant: npt.NDArray[np.int16], campaign: U64, item: I32, channel: I8,
    scalars: I64, history: I64, shadow: U64, times: I64, campaigns: U64, holdouts: U64, requests: U64, flags: U8,
    outcome: I8, reason: I8, used: F64, limit: F64, next_free: I64,
) -> None:  # fmt: skip
    for r in range(len(at)):
        window, begin, end = scalars[variant[r], DUPLICATE_WINDOW], history[r], history[r + 1]
        for c in range(offsets[r], offsets[r + 1]):
            seen, free, for_good = said_before(
                request_id[r], at[r], campaign[c], window, shadow[r], begin, begin, end, times, campaigns, holdouts,
                requests, flags,
            )  # fmt: skip
            beside = said_beside(c, offsets[r], campaign, item, channel)
            seen, for_good = seen + beside, for_good or beside > 0
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
