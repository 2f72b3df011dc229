"""Gate 5: the user opted out of the channel, or cannot be reached on it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch
from serve_app.kernels import kernel
from serve_app.policy.compile import CompiledPolicy
from serve_app.policy.gates.result import GateResult, HistoryView, column
from serve_app.policy.tables import BYPASS_OPT_OUT
from serve_app.stages.stage import Context
from serve_app.vocabulary import GateOutcome, Reason

__all__ = ["channel"]

_SUPPRESS, _OUT, _UNREACHABLE = int(GateOutcome.suppress), int(Reason.channel_opted_out), int(Reason.unreachable)
I64 = npt.NDArray[np.int64]
U16 = npt.NDArray[np.uint16]
I8 = npt.NDArray[np.int8]
F64 = npt.NDArray[np.float64]


@kernel
def _channel(
    offsets: I64, variant: npt.NDArray[np.int16], reachable: U16, opted_out: U16, channels: I8, message_class: I8,
    classes: I64, outcome: I8, reason: I8, used: F64, limit: F64, next_free: I64,
) -> None:  # fmt: skip
    for r in range(len(variant)):
        for c in range(offsets[r], offsets[r + 1]):
            known = 0 <= channels[c] < 16
            out = known and (opted_out[r] >> channels[c]) & 1 == 1
            if out and message_class[c] >= 0 and classes[variant[r], message_class[c], BYPASS_OPT_OUT]:
                out = False
            away = not known or (reachable[r] >> channels[c]) & 1 == 0
            outcome[c] = _SUPPRESS if out or away else 0
            reason[c] = _OUT if out else (_UNREACHABLE if away else 0)
            used[c], limit[c], next_free[c] = (1.0 if out or away else 0.0), 0.0, 0


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
