"""Gate 8: frequency caps, global, by channel, by category, by campaign, over rolling and calendar windows.

Rolling: entries with t > now - w, later ones (a faster clock) included. Calendar: entries in now's period in the current
zone **or** whose own local day lies in it, so that a change of zone never widens a cap.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch
from serve_app.kernels import inlined, kernel
from serve_app.ledger.columns import HistoryFlag
from serve_app.policy.compile import CompiledPolicy
from serve_app.policy.gates.duplicate import is_seen
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
from serve_app.policy.zones import DAY, day_at, row_at, utc_at, zone_table
from serve_app.stages.stage import Context
from serve_app.vocabulary import GateOutcome, Reason

__all__ = ["cap_membership", "caps", "first_day_of", "is_capped", "period_of"]

_SUPPRESS, _REASON = int(GateOutcome.suppress), int(Reason.frequency_capped)
_FOREVER = np.iinfo(np.int64).max
_REFUNDED, _UNCOUNTED = int(HistoryFlag.refunded), int(HistoryFlag.uncounted)
I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
I16 = npt.NDArray[np.int16]
U64 = npt.NDArray[np.uint64]
I8 = npt.NDArray[np.int8]
U8 = npt.NDArray[np.uint8]
F64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]


@inlined
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


@inlined
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


@inlined
def cap_binds(k: int, kind: int, v: int, table: I64, classes: I64) -> bool:
    """Scalar, inside kernels: does cap k of variant v bind messages of this class? An unknown class is bound by every cap:
    fail closed."""
    return kind < 0 or ((table[v, k, CAP_BINDS] >> kind) & 1 == 1 and classes[v, kind, BYPASS_CAPS] == 0)


@inlined
def is_member(k: int, p: int, key: np.uint64, only: U64, only_offsets: I64) -> bool:
    """Scalar, inside kernels: does a candidate with this key fall under the `only` of cap k of policy p?"""
    found = only_offsets[p, k] == only_offsets[p, k + 1]
    for i in range(only_offsets[p, k], only_offsets[p, k + 1]):
        found = found or only[i] == key
    return found


@inlined
def scope_key(scope: int, channel: int, category: np.uint64, campaign: np.uint64) -> np.uint64:
    """Scalar, inside kernels: what must agree for a use to fall into a cap's scope."""
    if scope == SCOPE_CHANNEL:
        return np.uint64(np.int64(channel))
    if scope == SCOPE_CATEGORY:
        return category
    return campaign if scope == SCOPE_CAMPAIGN else np.uint64(0)


@inlined
def _consumes(
    e: int, k: int, v: int, table: I64, key: np.uint64, shadow: np.uint64, keys: U64, holdouts: U64, kinds: I8, flags: U8
) -> bool:
    """Does entry e, whenever it was, take room in cap k for messages of `key`?"""
    if keys[table[v, k, CAP_SCOPE], e] != key or not is_seen(holdouts[e], shadow):
        return False
    if flags[e] & _UNCOUNTED or kinds[e] < 0 or (table[v, k, CAP_COUNTS] >> kinds[e]) & 1 == 0:
        return False
    return not (table[v, k, CAP_REFUND] and flags[e] & _REFUNDED)


@inlined
def cap_used(
    k: int, v: int, table: I64, key: np.uint64, at: int, today: int, shadow: np.uint64, begin: int, end: int, keys: U64,
    times: I64, holdouts: U64, days: I64, local_days: I32, kinds: I8, flags: U8,
) -> int:  # fmt: skip
    """Scalar, inside kernels: how many of the entries begin..end take room in cap k for messages of `key` at `at`, whose
    local day is `today`. days: of the entries, in the present zone (read for calendar caps alone); keys u64[4, entries]."""
    by, used = table[v, k, CAP_PERIOD], 0
    if by == ROLLING:
        since = at - table[v, k, CAP_WINDOW]
        for e in range(begin, end):
            if times[e] > since and _consumes(e, k, v, table, key, shadow, keys, holdouts, kinds, flags):
                used += 1
        return used
    period = period_of(today, by)
    low, high = first_day_of(period, by), first_day_of(period + 1, by)
    for e in range(begin, end):
        inside = low <= days[e] < high or low <= local_days[e] < high
        if inside and _consumes(e, k, v, table, key, shadow, keys, holdouts, kinds, flags):
            used += 1
    return used


@inlined
def is_capped(
    p: int, v: int, kind: int, channel: int, category: np.uint64, campaign: np.uint64, table: I64, classes: I64, only: U64,
    only_offsets: I64, at: int, today: int, shadow: np.uint64, begin: int, end: int, keys: U64, times: I64, holdouts: U64,
    days: I64, local_days: I32, kinds: I8, flags: U8,
) -> bool:  # fmt: skip
    """Scalar, inside kernels: is any cap of policy p, variant v, full for this message?"""
    for k in range(table.shape[1]):
        key = scope_key(table[v, k, CAP_SCOPE], channel, category, campaign)
        if not cap_binds(k, kind, v, table, classes) or not is_member(k, p, key, only, only_offsets):
            continue
        used = cap_used(
            k, v, table, key, at, today, shadow, begin, end, keys, times, holdouts, days, local_days, kinds, flags
        )  # fmt: skip
        if used >= table[v, k, CAP_LIMIT]:
            return True
    return False


@kernel
def _next_rolling(times: I64, count: int, limit: int, window: int) -> int:
    """When enough of the `count` counted entries have left the window for one more; 0: never. Sorts them (they come in the
    order they were written, hence nearly sorted)."""
    if limit == 0:
        return 0
    for i in range(1, count):
        time, j = times[i], i
        while j > 0 and times[j - 1] > time:
            times[j] = times[j - 1]
            j -= 1
        times[j] = time
    return times[count - limit] + window


@kernel
def _next_calendar(
    seen: I64, own: I64, count: int, limit: int, kind: int, period: int, zone: int, first: I64, starts: I64, offsets: I64
) -> int:
    """Start of the first later period that has room; `seen` and `own` are the periods, by the present zone and by the zone
    at the time, of all entries in the cap's scope."""
    if limit == 0:
        return 0
    for later in range(period + 1, period + 40):
        inside = 0
        for i in range(count):
            inside += 1 if seen[i] == later or own[i] == later else 0
        if inside < limit:
            return utc_at(first_day_of(later, kind) * DAY, zone, False, first, starts, offsets)
    return 0


@kernel
def _local_days(history: I64, zone: I16, times: I64, first: I64, starts: I64, offsets: I64, out: I64) -> None:
    """Local day of every entry in its user's present zone. Neighbours mostly share an offset, which saves the search."""
    for r in range(len(zone)):
        since, until, offset = 0, 0, 0
        for e in range(history[r], history[r + 1]):
            if not since <= times[e] < until:
                row = row_at(times[e], zone[r], first, starts)
                since, offset = starts[row], offsets[row]
                until = starts[row + 1] if row + 1 < first[zone[r] + 1] else _FOREVER
            out[e] = (times[e] + offset) // DAY


@kernel
def _opens(
    k: int, v: int, table: I64, t: int, zone: int, key: np.uint64, begin: int, end: int, keys: U64, times: I64,
    holdouts: U64, shadow: np.uint64, days: I64, local_days: I32, kinds: I8, flags: U8, first: I64, starts: I64,
    offsets: I64, scratch: I64,
) -> int:  # fmt: skip
    """`t` if cap k has room for candidates of `key` then, else when it next has; 0: never. Entries are begin .. end;
    scratch i64[2, their number]."""
    by, found, inside = table[v, k, CAP_PERIOD], 0, 0
    period = 0 if by == ROLLING else period_of(day_at(t, zone, first, starts, offsets), by)
    for e in range(begin, end):
        if not _consumes(e, k, v, table, key, shadow, keys, holdouts, kinds, flags):
            continue
        if by != ROLLING:
            scratch[0, found], scratch[1, found] = period_of(days[e], by), period_of(local_days[e], by)
            inside += 1 if scratch[0, found] == period or scratch[1, found] == period else 0
            found += 1
        elif times[e] > t - table[v, k, CAP_WINDOW]:
            scratch[0, found] = times[e]
            found, inside = found + 1, inside + 1
    if inside < table[v, k, CAP_LIMIT]:
        return t
    if by == ROLLING:
        return _next_rolling(scratch[0], found, table[v, k, CAP_LIMIT], table[v, k, CAP_WINDOW])
    return _next_calendar(scratch[0], scratch[1], found, table[v, k, CAP_LIMIT], by, period, zone, first, starts, offsets)


@kernel
def _until_all_open(
    request_offsets: I64, at: I64, zone: I16, variant: I16, message_class: I8, wanted: U64, members: Bool, table: I64,
    classes: I64, history: I64, shadow: U64, times: I64, keys: U64, holdouts: U64, days: I64, local_days: I32, kinds: I8,
    flags: U8, first: I64, starts: I64, offsets: I64, scratch: I64, outcome: I8, next_free: I64,
) -> None:  # fmt: skip
    """A calendar cap that has room today may be full on a later day, by entries of a faster clock or of a zone ahead. Where
    there are such, move next_free on until all caps have room at once."""
    for r in range(len(at)):
        today, ahead = day_at(at[r], zone[r], first, starts, offsets), False
        for e in range(history[r], history[r + 1]):
            ahead = ahead or days[e] > today or local_days[e] > today
        if not ahead:
            continue
        for c in range(request_offsets[r], request_offsets[r + 1]):
            t, moves = next_free[c], True
            while outcome[c] != 0 and t != 0 and moves:
                moves = False
                for k in range(table.shape[1]):
                    bound = cap_binds(k, message_class[c], variant[r], table, classes)
                    if t == 0 or not (bound and members[k, c]):
                        continue
                    opens = _opens(
                        k, variant[r], table, t, zone[r], wanted[table[0, k, CAP_SCOPE], c], history[r], history[r + 1],
                        keys, times, holdouts, shadow[r], days, local_days, kinds, flags, first, starts, offsets, scratch,
                    )  # fmt: skip
                    moves, t = moves or opens != t, opens
            next_free[c] = t


@kernel
def _caps(
    request_offsets: I64, at: I64, zone: I16, variant: I16, message_class: I8, wanted: U64, members: Bool, table: I64,
    classes: I64, history: I64, shadow: U64, times: I64, keys: U64, holdouts: U64, local_days: I32, kinds: I8, flags: U8,
    first: I64, starts: I64, offsets: I64, outcome: I8, reason: I8, used: F64, limit: F64, next_free: I64,
) -> None:  # fmt: skip
    outcome[:], reason[:], used[:], limit[:], next_free[:] = 0, 0, np.nan, np.nan, 0
    longest, calendars = 0, False
    for r in range(len(at)):
        longest = max(longest, history[r + 1] - history[r])
    for v in range(len(table)):
        for k in range(table.shape[1]):
            calendars = calendars or table[v, k, CAP_PERIOD] != ROLLING
    days = np.empty(len(times) if calendars else 0, np.int64)
    if calendars:
        _local_days(history, zone, times, first, starts, offsets, days)
    scratch = np.empty((2, longest), np.int64)
    for r in range(len(at)):
        v, begin, end, today = variant[r], history[r], history[r + 1], 0
        if calendars:
            today = day_at(at[r], zone[r], first, starts, offsets)
        for k in range(table.shape[1]):
            most, scope = table[v, k, CAP_LIMIT], table[0, k, CAP_SCOPE]
            for c in range(request_offsets[r], request_offsets[r + 1]):
                if not (members[k, c] and cap_binds(k, message_class[c], v, table, classes)):
                    continue
                count = cap_used(
                    k, v, table, wanted[scope, c], at[r], today, shadow[r], begin, end, keys, times, holdouts, days,
                    local_days, kinds, flags,
                )  # fmt: skip
                if not most - count >= limit[c] - used[c]:
                    used[c], limit[c] = float(count), float(most)
                if count < most:
                    continue
                free = _opens(
                    k, v, table, at[r], zone[r], wanted[scope, c], begin, end, keys, times, holdouts, shadow[r], days,
                    local_days, kinds, flags, first, starts, offsets, scratch,
                )  # fmt: skip
                if outcome[c] == 0:
                    outcome[c], reason[c], next_free[c] = _SUPPRESS, _REASON, free
                else:
                    next_free[c] = max(next_free[c], free) if next_free[c] and free else 0
    if calendars:
        _until_all_open(
            request_offsets, at, zone, variant, message_class, wanted, members, table, classes, history, shadow, times, keys,
            holdouts, days, local_days, kinds, flags, first, starts, offsets, scratch, outcome, next_free,
        )  # fmt: skip


@kernel
def _members(wanted: U64, table: I64, only: U64, only_offsets: I64, out: Bool) -> None:
    """out[k, c]: candidate c falls under the `only` of cap k."""
    for k in range(table.shape[1]):
        for c in range(out.shape[1]):
            out[k, c] = is_member(k, 0, wanted[table[0, k, CAP_SCOPE], c], only, only_offsets)


def _by_scope(rows: int, channel: I8, category: U64, campaign: U64) -> U64:
    """u64[4, rows]: what must agree for a use to fall into a cap's scope, by CAP_SCOPE."""
    keys = np.zeros((4, rows), np.uint64)
    keys[SCOPE_CHANNEL] = channel
    keys[SCOPE_CATEGORY], keys[SCOPE_CAMPAIGN] = category, campaign
    return keys


def _scoped(batch: Batch, policy: CompiledPolicy) -> tuple[U64, Bool]:
    """(keys u64[4, m], members bool[K, m]) of the candidates."""
    rows, settings = batch.candidates, policy.settings
    keys = _by_scope(rows.rows, rows["channel"], rows["category"], rows["campaign"])
    members = np.empty((settings.caps.shape[1], rows.rows), np.bool_)
    _members(keys, settings.caps, settings.cap_only, settings.cap_only_offsets[None], members)
    return keys, members


@kernel
def _membership(
    offsets: I64, variant: I16, message_class: I8, members: Bool, table: I64, out: npt.NDArray[np.uint32]
) -> None:
    for r in range(len(variant)):
        for c in range(offsets[r], offsets[r + 1]):
            bits = 0
            for k in range(table.shape[1]):
                counts = message_class[c] >= 0 and (table[variant[r], k, CAP_COUNTS] >> message_class[c]) & 1 == 1
                if counts and members[k, c]:
                    bits |= 1 << k
            out[c] = bits


def cap_membership(batch: Batch, policy: CompiledPolicy) -> npt.NDArray[np.uint32]:
    """u32[m]: bits of the policy's caps that a grant of each candidate would use up."""
    out = np.empty(batch.candidates.rows, np.uint32)
    _membership(
        batch.offsets, column(batch.requests, "variant"), column(batch.candidates, "message_class"),
        _scoped(batch, policy)[1], policy.settings.caps, out,
    )  # fmt: skip
    return out


def caps(
    batch: Batch, histories: HistoryView, policy: CompiledPolicy, context: Context, out: GateResult | None = None
) -> GateResult:
    """used and limit: of the cap with the least room. next_free_at: when every cap has room (0 where never, as limit 0)."""
    del context
    out = out or GateResult.empty(batch.candidates.rows)
    requests, settings, entries, table = batch.requests, policy.settings, histories.entries, zone_table()
    keys, members = _scoped(batch, policy)
    _caps(
        batch.offsets, column(requests, "decided_at"), column(requests, "zone"), column(requests, "variant"),
        column(batch.candidates, "message_class"), keys, members, settings.caps, settings.classes, histories.offsets,
        histories.shadow, entries["at"],
        _by_scope(len(entries), entries["channel"], entries["category"], entries["campaign"]), entries["holdout"],
        entries["local_day"], entries["message_class"], entries["flags"], *table.arrays, *out.arrays,
    )  # fmt: skip
    return out
