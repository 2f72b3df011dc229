"""Gate 5: the user opted out of the channel, or cannot be reached on it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch
from serve_app.kernels import inlined, kernel
from serve_app.policy.compile import CompiledPolicy
from serve_app.policy.gates.result import GateResult, HistoryView, column
from serve_app.policy.tables import BYPASS_OPT_OUT
from serve_app.stages.stage import Context
from serve_app.vocabulary import GateOutcome, Reason

__all__ = ["channel", "closed_channel"]

_SUPPRESS, _OUT, _UNREACHABLE = int(GateOutcome.suppress), int(Reason.channel_opted_out), int(Reason.unreachable)
I64 = npt.NDArray[np.int64]
U16 = npt.NDArray[np.uint16]
I8 = npt.NDArray[np.int8]
F64 = npt.NDArray[np.float64]


@inlined
def closed_channel(by: int, kind: int, v: int, reachable: int, opted_out: int, classes: I64) -> int:
    """Scalar, inside kernels: the Reason why channel `by` is closed to a message of class `kind` in variant v; 0: open."""
    known = 0 <= by < 16
    out = known and (opted_out >> by) & 1 == 1
    if out and not (kind >= 0 and classes[v, kind, BYPASS_OPT_OUT]):
        return _OUT
    return 0 if known and (reachable >> by) & 1 else _UNREACHABLE


@kernel
def _channel(
    offsets: I64, variant: npt.NDArray[np.int16], reachable: U16, opted_out: U16, channels: I8, message_class: I8,
    classes: I64, outcome: I8, reason: I8, used: F64, limit: F64, next_free: I64,
) -> None:  # fmt: skip
    for r in range(len(variant)):
        for c in range(offsets[r], offsets[r + 1]):
            why = closed_channel(channels[c], message_class[c], variant[r], reachable[r], opted_out[r], classes)
            outcome[c], reason[c] = _SUPPRESS if why else 0, why
            used[c], limit[c], next_free[c] = (1.0 if why else 0.0), 0.0, 0


def channel(
    batch: Batch, histories: HistoryView, policy: CompiledPolicy, context: Context, out: GateResult | None = None
) -> GateResult:
    """used: 1 when the channel is closed; limit: 0."""
    del histories, context
    out = out or GateResult.empty(batch.candidates.rows)
    requests, rows = batch.requests, batch.candidates
    _channel(
        batch.offsets, column(requests, "variant"), column(requests, "reachable"), column(requests, "opted_out"),
        column(rows, "channel"), column(rows, "message_class"), policy.settings.classes, *out.arrays,
    )  # fmt: skip
    return out
