"""Gate 4: advertising needs consent, fresh consent, consent for the night, and the label its region demands."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch
from serve_app.kernels import inlined, kernel
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

__all__ = [
    "ad_refused", "consent", "in_hours", "is_advertising", "is_unlabelled", "next_time_of_day", "night_refused",
    "night_until",
]  # fmt: skip

_SUPPRESS, _ADVERTISING = int(GateOutcome.suppress), int(MessageClass.advertising)
_NONE, _NIGHT = int(Reason.no_consent), int(Reason.no_night_consent)
_STALE, _UNLABELLED = int(Reason.consent_stale), int(Reason.unlabelled_ad)
I64 = npt.NDArray[np.int64]
I16 = npt.NDArray[np.int16]
I8 = npt.NDArray[np.int8]
F64 = npt.NDArray[np.float64]


@inlined
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


@inlined
def _is_fresh(given: int, at: int, valid: int) -> bool:
    """Is a consent of that time (0: none) in force at `at`? valid: how long it lasts, 0: for good."""
    return 0 < given <= at and (valid == 0 or at - given < valid)


@inlined
def ad_refused(now: int, given: int, customer: int, row: int, rules: I64) -> int:
    """Scalar, inside kernels: the Reason why the region in `row` of the rules allows no advertising at all; 0: it does."""
    if rules[row, AD_CONSENT] != 1 or _is_fresh(given, now, rules[row, VALID_FOR]):
        return 0
    if rules[row, EXCEPTION] == 1 and customer > now:
        return 0
    return _STALE if 0 < given <= now else _NONE


@inlined
def night_refused(now: int, local: int, night_given: int, channel: int, row: int, rules: I64) -> int:
    """Scalar, inside kernels: the Reason why advertising must wait for the day; 0: it need not. local: wall clock."""
    if rules[row, NIGHT_CONSENT] != 1 or _is_fresh(night_given, now, rules[row, VALID_FOR]):
        return 0
    if (rules[row, NIGHT_EXEMPT] >> max(channel, 0)) & 1:
        return 0
    second = (local - local // DAY * DAY) // SECOND
    if not in_hours(second, rules[row, NIGHT_START], rules[row, NIGHT_END]):
        return 0
    return _STALE if 0 < night_given <= now else _NIGHT


@kernel
def night_until(
    now: int, given: int, night_given: int, customer: int, row: int, rules: I64, zone: int, first: I64, starts: I64,
    offsets: I64,
) -> int:  # fmt: skip
    """Scalar, inside kernels: when advertising is allowed because the night, or the want of consent to it, is over; 0: it
    will not be."""
    free = next_time_of_day(now, rules[row, NIGHT_END], zone, first, starts, offsets)
    local = free + offset_at(free, zone, first, starts, offsets)
    over = not in_hours((local - local // DAY * DAY) // SECOND, rules[row, NIGHT_START], rules[row, NIGHT_END])
    if now < night_given < free:  # by a faster clock
        free, over = night_given, True
    allowed = rules[row, AD_CONSENT] == 0 or (rules[row, EXCEPTION] == 1 and customer > free)
    allowed = allowed or _is_fresh(given, free, rules[row, VALID_FOR])
    return free if over and allowed else 0


@inlined
def is_advertising(kind: int) -> bool:
    """Scalar, inside kernels: an unknown class is held to advertising's rules: fail closed."""
    return kind < 0 or kind >= _ADVERTISING


@kernel
def _consent(
    offsets: I64, at: I64, zone: I16, region: I16, given: I64, night_given: I64, customer: I64, channel: I8,
    message_class: I8, labelled: npt.NDArray[np.bool_], rules: I64, first: I64, starts: I64, zone_offsets: I64,
    outcome: I8, reason: I8, used: F64, limit: F64, next_free: I64,
) -> None:  # fmt: skip
    for r in range(len(at)):
        now, row = at[r], region[r] + 1
        valid, local = rules[row, VALID_FOR], now + offset_at(now, zone[r], first, starts, zone_offsets)
        for c in range(offsets[r], offsets[r + 1]):
            outcome[c], reason[c], used[c], limit[c], next_free[c] = 0, 0, np.nan, np.nan, 0
            if not is_advertising(message_class[c]):
                continue
            used[c] = (now - given[r]) / DAY if 0 < given[r] <= now else np.nan
            limit[c] = valid / DAY if valid else np.nan
            why = ad_refused(now, given[r], customer[r], row, rules)
            if why:
                outcome[c], reason[c] = _SUPPRESS, why
                continue
            why = night_refused(now, local, night_given[r], channel[c], row, rules)
            if why:
                used[c], limit[c] = float((local - local // DAY * DAY) // SECOND), float(rules[row, NIGHT_START])
                outcome[c], reason[c] = rules[row, NIGHT_OUTCOME], why
                next_free[c] = night_until(
                    now, given[r], night_given[r], customer[r], row, rules, zone[r], first, starts, zone_offsets
                )
            if is_unlabelled(labelled[c], row, rules):
                # Waiting does not mend a missing label.
                outcome[c], next_free[c] = _SUPPRESS, 0
                reason[c] = _UNLABELLED if reason[c] == 0 else reason[c]


@inlined
def is_unlabelled(labelled: bool, row: int, rules: I64) -> bool:
    """Scalar, inside kernels: does the region demand a label that the text does not carry?"""
    return rules[row, LABEL] == 1 and not labelled


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
