"""Gate 8: frequency caps, global, by channel, by category, by campaign, over rolling and calendar windows.

Rolling: entries with t > now - w, later ones (a faster clock) included. Calendar: entries in now's period in the current
zone **or** whose own local day lies in it, so that a change of zone never widens a cap.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch
from serve_app.kernels import kernel
from serve_app.ledger.protocol import HistoryFlag
from serve_app.policy.compile import CompiledPolicy
from serve_app.policy.gates.result import GateResult, HistoryView, column
from serve_app.policy.tables import (
    BY_DAY,
    BY_WEEK,
    BYPASS_CAPS,
    CAP_BINDS,
    CAP_COUNTS,
    CAP_LIMIT,
    CAP_PERIOD,
    CAP_REFUND,
    CAP_SCOPE,
    CAP_WINDOW,
    ROLLING,
    SCOPE_CAMPAIGN,
    SCOPE_CATEGORY,
    SCOPE_CHANNEL,
)
from serve_app.policy.zones import DAY, day_at, utc_at, zone_table
from serve_app.stages.stage import Context
from serve_app.vocabulary import GateOutcome, Reason

__all__ = ["cap_membership", "caps", "first_day_of", "period_of"]

_SUPPRESS, _REASON = int(GateOutcome.suppress), int(Reason.frequency_capped)
_REFUNDED, _UNCOUNTED = int(HistoryFlag.refunded), int(HistoryFlag.uncounted)
I64 = npt.NDArray[np.int64]
I16 = npt.NDArray[np.int16]
U64 = npt.NDArray[np.uint64]
I8 = npt.NDArray[np.int8]
U8 = npt.NDArray[np.uint8]
F64 = npt.NDArray[np.float64]
Keys = tuple[Any, ...]  # arrays a kernel takes together


@kernel
def period_of(day: int, kind: int) -> int:
    """Scalar, inside kernels: number of the period a day (since 1970-01-01) lies in. Weeks start on Monday."""
    if kind == BY_DAY:
        return day
    if kind == BY_WEEK:
        return (day + 3) // 7
    # Civil from days (Hinnant, "chrono-compatible low-level date algorithms").
    z = day + 719_468
    era = z // 146_097
    of_era = z - era * 146_097
    year = (of_era - of_era // 1460 + of_era // 36_524 - of_era // 146_096) // 365
    of_year = of_era - (365 * year + year // 4 - year // 100)
    shifted = (5 * of_year + 2) // 153
    month = shifted + 3 if shifted < 10 else shifted - 9
    return (year + era * 400 + (1 if month <= 2 else 0)) * 12 + month - 1


@kernel
def first_day_of(period: int, kind: int) -> int:
    """Scalar, inside kernels: first day of a period."""
    if kind == BY_DAY:
        return period
    if kind == BY_WEEK:
        return period * 7 - 3
    year, month = period // 12, period % 12 + 1
    y = year - 1 if month <= 2 else year
    era = y // 400
    of_era = y - era * 400
    of_year = (153 * (month - 3 if month > 2 else month + 9) + 2) // 5
    return era * 146_097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719_468


@kernel
def _is_member(cap: I64, k: int, c: int, candidate: Keys, only: U64, only_offsets: I64) -> bool:
    """Does candidate c fall under the cap's `only`? Keys are (channel, category, campaign)."""
    start, end = only_offsets[k], only_offsets[k + 1]
    if start == end:
        return True
    key = candidate[2][c]
    if cap[CAP_SCOPE] == SCOPE_CHANNEL:
        key = np.uint64(candidate[0][c])
    elif cap[CAP_SCOPE] == SCOPE_CATEGORY:
        key = candidate[1][c]
    found = False
    for i in range(start, end):
        found = found or only[i] == key
    return found


@kernel
def _shares_scope(scope: int, e: int, c: int, entry: Keys, candidate: Keys) -> bool:
    """Does entry e use up the room of candidate c, for a cap of this scope? Keys are (channel, category, campaign)."""
    if scope == SCOPE_CHANNEL:
        return entry[0][e] == candidate[0][c]
    if scope == SCOPE_CATEGORY:
        return entry[1][e] == candidate[1][c]
    return scope != SCOPE_CAMPAIGN or entry[2][e] == candidate[2][c]


@kernel
def _next_rolling(times: I64, limit: int, window: int) -> int:
    """When enough of the counted entries have left the window for one more; 0: never."""
    if limit == 0:
        return 0
    ordered = np.sort(times)
    return ordered[len(times) - limit] + window


@kernel
def _next_calendar(days: I64, own: I64, limit: int, kind: int, period: int, zone: int, zones: Keys) -> int:
    """Start of the first later period that has room; `days` and `own` are those of all entries in the cap's scope."""
    if limit == 0:
        return 0
    for later in range(period + 1, period + 40):
        inside = 0
        for i in range(len(days)):
            if period_of(days[i], kind) == later or period_of(own[i], kind) == later:
                inside += 1
        if inside < limit:
            return utc_at(first_day_of(later, kind) * DAY, zone, False, zones[0], zones[1], zones[2])
    return 0


@kernel
def _countable(cap: I64, start: int, end: int, shadow: np.uint64, holdouts: U64, kinds: I8, flags: U8, out: I64) -> int:
    """Rows of the entries whose class the cap counts and that were not given back; how many."""
    found = 0
    for e in range(start, end):
        if (holdouts[e] != 0 and holdouts[e] != shadow) or flags[e] & _UNCOUNTED or kinds[e] < 0:
            continue
        if (cap[CAP_COUNTS] >> kinds[e]) & 1 and not (cap[CAP_REFUND] and flags[e] & _REFUNDED):
            out[found] = e
            found += 1
    return found


@kernel
def _when_free(
    cap: I64, now: int, today: int, zone: int, rows: I64, c: int, entry: Keys, candidate: Keys, times: I64, days: I64,
    local_days: npt.NDArray[np.int32], base: int, zones: Keys,
) -> int:  # fmt: skip
    """When a full cap has room for candidate c again; 0: never. Rare, so it may walk the entries once more."""
    first, second, found = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64), 0
    by = cap[CAP_PERIOD]
    for e in rows:
        if not _shares_scope(cap[CAP_SCOPE], e, c, entry, candidate):
            continue
        if by != ROLLING:
            first[found], second[found] = days[e - base], local_days[e]
            found += 1
        elif times[e] > now - cap[CAP_WINDOW]:
            first[found] = times[e]
            found += 1
    if by == ROLLING:
        return _next_rolling(first[:found], cap[CAP_LIMIT], cap[CAP_WINDOW])
    return _next_calendar(first[:found], second[:found], cap[CAP_LIMIT], by, period_of(today, by), zone, zones)


@kernel
def _caps(
    offsets: I64, at: I64, zone: I16, variant: I16, message_class: I8, candidate: Keys, table: I64, only: U64,
    only_offsets: I64, classes: I64, history: I64, shadow: U64, times: I64, entry: Keys, holdouts: U64,
    local_days: npt.NDArray[np.int32], kinds: I8, flags: U8, zones: Keys,
    outcome: I8, reason: I8, used: F64, limit: F64, next_free: I64,
) -> None:  # fmt: skip
    longest, calendars = 0, False
    for r in range(len(at)):
        longest = max(longest, history[r + 1] - history[r])
    for k in range(table.shape[1]):
        calendars = calendars or table[0, k, CAP_PERIOD] != ROLLING
    days, counted, inside = np.empty(longest, np.int64), np.empty(longest, np.int64), np.empty(longest, np.int64)
    for r in range(len(at)):
        now, today, start, end = at[r], 0, history[r], history[r + 1]
        if calendars:
            today = day_at(now, zone[r], zones[0], zones[1], zones[2])
            for e in range(start, end):
                days[e - start] = day_at(times[e], zone[r], zones[0], zones[1], zones[2])
        for c in range(offsets[r], offsets[r + 1]):
            outcome[c], reason[c], used[c], limit[c], next_free[c] = 0, 0, np.nan, np.nan, 0
        for k in range(table.shape[1]):
            cap = table[variant[r], k]
            by, total = cap[CAP_PERIOD], 0
            open_ = _countable(cap, start, end, shadow[r], holdouts, kinds, flags, counted)
            period = period_of(today, by) if by != ROLLING else 0
            for i in range(open_):
                e = counted[i]
                if by == ROLLING:
                    within = times[e] > now - cap[CAP_WINDOW]
                else:
                    within = period_of(days[e - start], by) == period or period_of(local_days[e], by) == period
                if within:
                    inside[total] = e
                    total += 1
            for c in range(offsets[r], offsets[r + 1]):
                kind = message_class[c]
                # An unknown class is bound by every cap: fail closed.
                if kind >= 0 and (classes[variant[r], kind, BYPASS_CAPS] or (cap[CAP_BINDS] >> kind) & 1 == 0):
                    continue
                if not _is_member(cap, k, c, candidate, only, only_offsets):
                    continue
                count = 0
                for i in range(total):
                    count += 1 if _shares_scope(cap[CAP_SCOPE], inside[i], c, entry, candidate) else 0
                if not cap[CAP_LIMIT] - count >= limit[c] - used[c]:
                    used[c], limit[c] = float(count), float(cap[CAP_LIMIT])
                if count < cap[CAP_LIMIT]:
                    continue
                free = _when_free(
                    cap, now, today, zone[r], counted[:open_], c, entry, candidate, times, days, local_days, start, zones
                )
                if outcome[c] == 0:
                    outcome[c], reason[c], next_free[c] = _SUPPRESS, _REASON, free
                else:
                    next_free[c] = max(next_free[c], free) if next_free[c] and free else 0


@kernel
def _membership(
    message_class: I8, candidate: Keys, table: I64, only: U64, only_offsets: I64, out: npt.NDArray[np.uint32]
) -> None:
    for c in range(len(message_class)):
        bits = 0
        for k in range(table.shape[1]):
            counts = message_class[c] >= 0 and (table[0, k, CAP_COUNTS] >> message_class[c]) & 1 == 1
            if counts and _is_member(table[0, k], k, c, candidate, only, only_offsets):
                bits |= 1 << k
        out[c] = bits


def _keys(batch: Batch) -> Keys:
    rows = batch.candidates
    return column(rows, "channel"), column(rows, "category"), column(rows, "campaign")


def cap_membership(batch: Batch, policy: CompiledPolicy) -> npt.NDArray[np.uint32]:
    """u32[m]: bits of the policy's caps that a grant of each candidate would use up."""
    out = np.empty(batch.candidates.rows, np.uint32)
    settings = policy.settings
    _membership(
        column(batch.candidates, "message_class"), _keys(batch), settings.caps, settings.cap_only, settings.cap_only_offsets,
        out,
    )  # fmt: skip
    return out


def caps(
    batch: Batch, histories: HistoryView, policy: CompiledPolicy, context: Context, out: GateResult | None = None
) -> GateResult:
    """used and limit: of the cap with the least room. next_free_at: when every cap has room (0 where never, as limit 0)."""
    del context
    out = out or GateResult.empty(batch.candidates.rows)
    requests, settings, entries = batch.requests, policy.settings, histories.entries
    _caps(
        batch.offsets, column(requests, "decided_at"), column(requests, "zone"), column(requests, "variant"),
        column(batch.candidates, "message_class"), _keys(batch), settings.caps, settings.cap_only,
        settings.cap_only_offsets, settings.classes, histories.offsets, histories.shadow, entries["at"],
        (entries["channel"], entries["category"], entries["campaign"]), entries["holdout"], entries["local_day"],
        entries["message_class"], entries["flags"], zone_table().arrays, *out.arrays,
    )  # fmt: skip
    return out
