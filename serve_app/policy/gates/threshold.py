"""Gate 10: scored, and worth it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch
from serve_app.kernels import inlined, kernel
from serve_app.policy.compile import CompiledPolicy
from serve_app.policy.gates.result import GateResult, HistoryView, column
from serve_app.policy.tables import BYPASS_THRESHOLD
from serve_app.stages.stage import Context
from serve_app.vocabulary import GateOutcome, Reason

__all__ = ["not_worth", "threshold"]

_SUPPRESS, _NOT_SCORED, _BELOW = int(GateOutcome.suppress), int(Reason.not_scored), int(Reason.below_threshold)
I64 = npt.NDArray[np.int64]
I16 = npt.NDArray[np.int16]
I8 = npt.NDArray[np.int8]
F64 = npt.NDArray[np.float64]


@inlined
def not_worth(value: float, kind: int, v: int, classes: I64, thresholds: F64) -> int:
    """Scalar, inside kernels: the Reason why a message of class `kind` is not worth sending in variant v; 0: it is."""
    if kind >= 0 and classes[v, kind, BYPASS_THRESHOLD]:
        return 0
    if np.isnan(value):
        return _NOT_SCORED
    least = thresholds[v, kind] if kind >= 0 else np.inf
    return _BELOW if value < least else 0


@kernel
def _threshold(
    offsets: I64, variant: I16, message_class: I8, value: F64, classes: I64, thresholds: F64,
    outcome: I8, reason: I8, used: F64, limit: F64, next_free: I64,
) -> None:  # fmt: skip
    for r in range(len(variant)):
        for c in range(offsets[r], offsets[r + 1]):
            kind, v = message_class[c], variant[r]
            why = not_worth(value[c], kind, v, classes, thresholds)
            outcome[c], reason[c], used[c], next_free[c] = _SUPPRESS if why else 0, why, value[c], 0
            limit[c] = thresholds[v, kind] if kind >= 0 else np.inf
            if kind >= 0 and classes[v, kind, BYPASS_THRESHOLD]:
                limit[c] = np.nan


def threshold(
    batch: Batch, histories: HistoryView, policy: CompiledPolicy, context: Context, out: GateResult | None = None
) -> GateResult:
    """used: the candidate's value, limit: the least value sent (NaN for classes that need none)."""
    del histories, context
    out = out or GateResult.empty(batch.candidates.rows)
    _threshold(
        batch.offsets, column(batch.requests, "variant"), column(batch.candidates, "message_class"),
        column(batch.candidates, "value"), policy.settings.classes, policy.settings.thresholds, *out.arrays,
    )  # fmt: skip
    return out
