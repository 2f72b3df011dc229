"""Gate 7: quiet hours by the user's own clock. Dropped, or deferred to their end (never past the expiry)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch
from serve_app.kernels import inlined, kernel
from serve_app.policy.compile import CompiledPolicy
from serve_app.policy.gates.consent import in_hours, next_time_of_day
from serve_app.policy.gates.result import GateResult, HistoryView, column
from serve_app.policy.tables import BYPASS_QUIET, QUIET_CHANNELS, QUIET_CLASSES, QUIET_END, QUIET_OUTCOME, QUIET_START
from serve_app.policy.zones import DAY, SECOND, offset_at, zone_table
from serve_app.stages.stage import Context
from serve_app.vocabulary import GateOutcome, Reason

__all__ = ["quiet_binds", "quiet_hours", "quiet_rule", "quiet_until", "second_of"]

_SUPPRESS, _REASON = int(GateOutcome.suppress), int(Reason.quiet_hours)
_NEVER_AFTER = 3 * DAY  # a chain of rules that runs longer has no end: every day is the same but for a clock change
I64 = npt.NDArray[np.int64]
I16 = npt.NDArray[np.int16]
I8 = npt.NDArray[np.int8]
F64 = npt.NDArray[np.float64]


@inlined
def second_of(local: int) -> int:
    """Scalar, inside kernels: second of the day of a local wall clock time in microseconds."""
    return (local - local // DAY * DAY) // SECOND


@inlined
def quiet_rule(second: int, channel: int, kind: int, v: int, quiet: I64) -> int:
    """Scalar, inside kernels: the first of variant v's rules that is quiet at this local second of the day, one that drops
    before one that defers; -1: none."""
    found = -1
    for q in range(quiet.shape[1]):
        if (quiet[v, q, QUIET_CHANNELS] >> channel) & 1 == 0 or (quiet[v, q, QUIET_CLASSES] >> kind) & 1 == 0:
            continue
        if in_hours(second, quiet[v, q, QUIET_START], quiet[v, q, QUIET_END]):
            if quiet[v, q, QUIET_OUTCOME] == _SUPPRESS:
                return q
            found = q if found < 0 else found
    return found


@inlined
def quiet_binds(channel: int, kind: int, v: int, classes: I64) -> bool:
    """Scalar, inside kernels: do quiet hours concern such messages in variant v?"""
    return kind >= 0 and channel >= 0 and classes[v, kind, BYPASS_QUIET] == 0


@kernel
def quiet_until(
    at: int, rule: int, channel: int, kind: int, v: int, quiet: I64, zone: int, first: I64, starts: I64, offsets: I64
) -> int:
    """Scalar, inside kernels: when all rules that follow on `rule`, quiet at `at`, have ended; 0: never."""
    until = at
    while rule >= 0 and until - at < _NEVER_AFTER:
        until = next_time_of_day(until, quiet[v, rule, QUIET_END], zone, first, starts, offsets)
        local = until + offset_at(until, zone, first, starts, offsets)
        rule = quiet_rule(second_of(local), channel, kind, v, quiet)
    return until if rule < 0 else 0


@kernel
def _quiet_hours(
    offsets: I64, at: I64, zone: I16, variant: I16, channel: I8, message_class: I8, quiet: I64, classes: I64,
    first: I64, starts: I64, zone_offsets: I64, outcome: I8, reason: I8, used: F64, limit: F64, next_free: I64,
) -> None:  # fmt: skip
    for r in range(len(at)):
        v, local = variant[r], at[r] + offset_at(at[r], zone[r], first, starts, zone_offsets)
        for c in range(offsets[r], offsets[r + 1]):
            outcome[c], reason[c], used[c], limit[c], next_free[c] = 0, 0, np.nan, np.nan, 0
            kind, by = message_class[c], channel[c]
            if not quiet_binds(by, kind, v, classes):
                continue
            rule = quiet_rule(second_of(local), by, kind, v, quiet)
            if rule < 0:
                continue
            used[c], limit[c] = (local - local // DAY * DAY) / 1e6, float(quiet[v, rule, QUIET_START])
            outcome[c], reason[c] = quiet[v, rule, QUIET_OUTCOME], _REASON
            next_free[c] = quiet_until(at[r], rule, by, kind, v, quiet, zone[r], first, starts, zone_offsets)


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
