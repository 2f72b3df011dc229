"""Gate 4: advertising needs consent, fresh consent, consent for the night, and the label its region demands."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch
from serve_app.kernels import kernel
from serve_app.policy.compile import CompiledPolicy
from serve_app.policy.gates.result import GateResult, HistoryView, column
from serve_app.policy.tables import (
    AD_CONSENT,
    EXCEPTION,
    LABEL,
    NIGHT_CONSENT,
    NIGHT_END,
    NIGHT_EXEMPT,
    NIGHT_OUTCOME,
    NIGHT_START,
    VALID_FOR,
)
from serve_app.policy.zones import DAY, SECOND, offset_at, utc_at, zone_table
from serve_app.stages.stage import Context
from serve_app.vocabulary import GateOutcome, MessageClass, Reason

__all__ = ["consent", "in_hours", "next_time_of_day"]

_SUPPRESS, _ADVERTISING = int(GateOutcome.suppress), int(MessageClass.advertising)
_NONE, _NIGHT = int(Reason.no_consent), int(Reason.no_night_consent)
_STALE, _UNLABELLED = int(Reason.consent_stale), int(Reason.unlabelled_ad)
I64 = npt.NDArray[np.int64]
I16 = npt.NDArray[np.int16]
I8 = npt.NDArray[np.int8]
F64 = npt.NDArray[np.float64]


@kernel
def in_hours(second: int, start: int, end: int) -> bool:
    """Scalar, inside kernels: does the second of the day lie in [start, end), over midnight where end <= start?"""
    if start < end:
        return start <= second < end
    return second >= start or second < end


@kernel
def next_time_of_day(ts: int, second: int, zone: int, first: I64, starts: I64, offsets: I64) -> int:
    """Scalar, inside kernels: UTC of the next instant after `ts` at which the local clock shows `second`: of a time that
    comes twice the first one that is still to come, of a time the clock skips the moment of the jump."""
    local = ts + offset_at(ts, zone, first, starts, offsets)
    today = local // DAY
    for day in range(today, today + 3):  # two ahead: a zone may skip a whole day
        for later in (False, True):
            result = utc_at(day * DAY + second * SECOND, zone, later, first, starts, offsets)
            if result > ts:
                return result
    return ts + DAY


@kernel
def _consent(
    offsets: I64, at: I64, zone: I16, region: I16, given: I64, night_given: I64, customer: I64, channel: I8,
    message_class: I8, labelled: npt.NDArray[np.bool_], rules: I64, first: I64, starts: I64, zone_offsets: I64,
    outcome: I8, reason: I8, used: F64, limit: F64, next_free: I64,
) -> None:  # fmt: skip
    for r in range(len(at)):
        now, rule = at[r], rules[region[r] + 1]
        valid = rule[VALID_FOR]
        has = 0 < given[r] <= now
        fresh = has and (valid == 0 or now - given[r] < valid)
        excepted = rule[EXCEPTION] == 1 and customer[r] > now
        has_night = 0 < night_given[r] <= now
        fresh_night = has_night and (valid == 0 or now - night_given[r] < valid)
        second, checked_night = 0, False
        for c in range(offsets[r], offsets[r + 1]):
            outcome[c], reason[c], used[c], limit[c], next_free[c] = 0, 0, np.nan, np.nan, 0
            # An unknown class is held to advertising's rules: fail closed.
            if 0 <= message_class[c] < _ADVERTISING:
                continue
            used[c] = (now - given[r]) / DAY if has else np.nan
            limit[c] = valid / DAY if valid else np.nan
            if rule[AD_CONSENT] == 1 and not fresh and not excepted:
                outcome[c], reason[c] = _SUPPRESS, (_STALE if has else _NONE)
                continue
            if rule[NIGHT_CONSENT] == 1 and not fresh_night and not (rule[NIGHT_EXEMPT] >> max(channel[c], 0)) & 1:
                if not checked_night:
                    local = now + offset_at(now, zone[r], first, starts, zone_offsets)
                    second, checked_night = (local - local // DAY * DAY) // SECOND, True
                if in_hours(second, rule[NIGHT_START], rule[NIGHT_END]):
                    used[c], limit[c] = float(second), float(rule[NIGHT_START])
                    outcome[c], reason[c] = rule[NIGHT_OUTCOME], (_STALE if has_night else _NIGHT)
                    # Waiting helps if advertising is allowed when the night, or the want of consent to it, is over.
                    free = next_time_of_day(now, rule[NIGHT_END], zone[r], first, starts, zone_offsets)
                    local = free + offset_at(free, zone[r], first, starts, zone_offsets)
                    over = not in_hours((local - local // DAY * DAY) // SECOND, rule[NIGHT_START], rule[NIGHT_END])
                    if now < night_given[r] < free:  # by a faster clock
                        free, over = night_given[r], True
                    allowed = rule[AD_CONSENT] == 0 or (rule[EXCEPTION] == 1 and customer[r] > free)
                    allowed = allowed or (0 < given[r] <= free and (valid == 0 or free - given[r] < valid))
                    if over and allowed:
                        next_free[c] = free
            if rule[LABEL] == 1 and not labelled[c]:
                # Waiting does not mend a missing label.
                outcome[c], next_free[c] = _SUPPRESS, 0
                reason[c] = _UNLABELLED if reason[c] == 0 else reason[c]


def consent(
    batch: Batch, histories: HistoryView, policy: CompiledPolicy, context: Context, out: GateResult | None = None
) -> GateResult:
    """used: age of the advertising consent in days, limit: its validity; at night without night consent: local second of
    the day and start of the night. NaN for classes that need none. Law and statute: `RegionRule`."""
    del histories, context
    out = out or GateResult.empty(batch.candidates.rows)
    requests, rows = batch.requests, batch.candidates
    _consent(
        batch.offsets, column(requests, "decided_at"), column(requests, "zone"), column(requests, "region"),
        column(requests, "consent_ad_at"), column(requests, "consent_night_at"), column(requests, "customer_until"),
        column(rows, "channel"), column(rows, "message_class"), column(rows, "labelled"), policy.rules.regions,
        *zone_table().arrays, *out.arrays,
    )  # fmt: skip
    return out
