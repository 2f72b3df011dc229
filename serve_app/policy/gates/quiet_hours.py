"""Gate 7: quiet hours by the user's own clock. Dropped, or deferred to their end (never past the expiry)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch
from serve_app.kernels import kernel
from serve_app.policy.compile import CompiledPolicy
from serve_app.policy.gates.consent import in_hours, next_time_of_day
from serve_app.policy.gates.result import GateResult, HistoryView, column
from serve_app.policy.tables import BYPASS_QUIET, QUIET_CHANNELS, QUIET_CLASSES, QUIET_END, QUIET_OUTCOME, QUIET_START
from serve_app.policy.zones import DAY, SECOND, offset_at, zone_table
from serve_app.stages.stage import Context
from serve_app.vocabulary import GateOutcome, Reason

__all__ = ["quiet_hours"]

_SUPPRESS, _REASON = int(GateOutcome.suppress), int(Reason.quiet_hours)
_NEVER_AFTER = 3 * DAY  # a chain of rules that runs longer has no end: every day is the same but for a clock change
I64 = npt.NDArray[np.int64]
I16 = npt.NDArray[np.int16]
I8 = npt.NDArray[np.int8]
F64 = npt.NDArray[np.float64]


@kernel
def _rule_at(ts: int, zone: int, channel: int, message_class: int, rules: I64, first: I64, starts: I64, offsets: I64) -> int:
    """Scalar: the first rule that is quiet at `ts`, one that drops before one that defers; -1: none."""
    local = ts + offset_at(ts, zone, first, starts, offsets)
    second = (local - local // DAY * DAY) // SECOND
    found = -1
    for q in range(len(rules)):
        if (rules[q, QUIET_CHANNELS] >> channel) & 1 == 0 or (rules[q, QUIET_CLASSES] >> message_class) & 1 == 0:
            continue
        if in_hours(second, rules[q, QUIET_START], rules[q, QUIET_END]):
            if rules[q, QUIET_OUTCOME] == _SUPPRESS:
                return q
            found = q if found < 0 else found
    return found


@kernel
def _quiet_hours(
    offsets: I64, at: I64, zone: I16, variant: I16, channel: I8, message_class: I8, quiet: I64, classes: I64,
    first: I64, starts: I64, zone_offsets: I64, outcome: I8, reason: I8, used: F64, limit: F64, next_free: I64,
) -> None:  # fmt: skip
    for r in range(len(at)):
        rules = quiet[variant[r]]
        for c in range(offsets[r], offsets[r + 1]):
            outcome[c], reason[c], used[c], limit[c], next_free[c] = 0, 0, np.nan, np.nan, 0
            kind, by = message_class[c], channel[c]
            if kind < 0 or by < 0 or classes[variant[r], kind, BYPASS_QUIET]:
                continue
            rule = _rule_at(at[r], zone[r], by, kind, rules, first, starts, zone_offsets)
            if rule < 0:
                continue
            local = at[r] + offset_at(at[r], zone[r], first, starts, zone_offsets)
            used[c], limit[c] = (local - local // DAY * DAY) / 1e6, float(rules[rule, QUIET_START])
            outcome[c], reason[c] = rules[rule, QUIET_OUTCOME], _REASON
            until = at[r]
            while rule >= 0 and until - at[r] < _NEVER_AFTER:
                until = next_time_of_day(until, rules[rule, QUIET_END], zone[r], first, starts, zone_offsets)
                rule = _rule_at(until, zone[r], by, kind, rules, first, starts, zone_offsets)
            next_free[c] = until if rule < 0 else 0


def quiet_hours(
    batch: Batch, histories: HistoryView, policy: CompiledPolicy, context: Context, out: GateResult | None = None
) -> GateResult:
    """used: local seconds since midnight, limit: start of the quiet hours; NaN outside them. next_free_at: their end."""
    del histories, context
    out = out or GateResult.empty(batch.candidates.rows)
    requests, rows = batch.requests, batch.candidates
    _quiet_hours(
        batch.offsets, column(requests, "decided_at"), column(requests, "zone"), column(requests, "variant"),
        column(rows, "channel"), column(rows, "message_class"), policy.settings.quiet, policy.settings.classes,
        *zone_table().arrays, *out.arrays,
    )  # fmt: skip
    return out
