"""One request, decided by the rules of the Decision stage, row kernel by row kernel.

What nobody reads is not worked out: of each candidate the first gate that objects, and when that one opens where it defers.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from serve_app.kernels import inlined
from serve_app.policy.gates import GATE_NAMES
from serve_app.policy.gates.caps import is_capped
from serve_app.policy.gates.channel import closed_channel
from serve_app.policy.gates.consent import ad_refused, is_advertising, is_unlabelled, night_refused, night_until
from serve_app.policy.gates.duplicate import said_before, said_beside
from serve_app.policy.gates.expired import earliest_expiry, is_over
from serve_app.policy.gates.kill_switch import contains, is_off
from serve_app.policy.gates.min_gap import gap_binds, last_use, too_soon
from serve_app.policy.gates.quiet_hours import quiet_binds, quiet_rule, quiet_until, second_of
from serve_app.policy.gates.segment import not_member
from serve_app.policy.gates.threshold import not_worth
from serve_app.policy.tables import DUPLICATE_WINDOW, NIGHT_OUTCOME, QUIET_OUTCOME
from serve_app.policy.zones import DAY
from serve_app.stages.decision.choose import best_of, choose_one
from serve_app.stages.decision.outcome import settle_one
from serve_app.stages.decision.prepare import NO_ITEM, identity_of, value_of
from serve_app.stages.decision.words import waits_until
from serve_app.vocabulary import Action, GateOutcome, Reason
from simulators.replay.stream.columns import Asked
from simulators.replay.stream.history import BEGIN, RECENT, Entries, Zones
from simulators.replay.stream.pointers import f8, i1, i2, i4, i8, u1, u8
from simulators.replay.stream.rules import Rules, Tables

__all__ = ["Ask", "Outcome", "Work", "decide", "describe", "identify", "judge", "note", "settle", "work", "work_at"]

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
I16 = npt.NDArray[np.int16]
I8 = npt.NDArray[np.int8]
U64 = npt.NDArray[np.uint64]
F64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

_KILL, _EXPIRED, _DUPLICATE, _CONSENT, _CHANNEL, _SEGMENT, _QUIET, _CAPS, _GAP, _THRESHOLD = range(10)
_GATES = len(GATE_NAMES)
_KEPT, _SUPPRESSED, _DEFERRED = int(GateOutcome.keep), int(GateOutcome.suppress), int(GateOutcome.defer)
_SUPPRESS, _DEFER, _UNDECIDED = int(Action.suppress), int(Action.defer), int(Action.none)
_KILL_SWITCH, _IS_EXPIRED, _IS_DUPLICATE = int(Reason.kill_switch), int(Reason.expired), int(Reason.duplicate)
_UNLABELLED, _QUIET_HOURS = int(Reason.unlabelled_ad), int(Reason.quiet_hours)
_CAPPED, _MIN_GAP = int(Reason.frequency_capped), int(Reason.min_gap)
_FACTS = np.uint64(0)


class Ask(NamedTuple):
    """What is asked: request row r (whose context and scores it has) at a time; local: the wall clock then; p, v: policy and
    variant among the rules; s: row of the segments."""

    r: int
    at: int
    local: int
    zone: int
    request_id: np.uint64
    attempt: int
    p: int
    v: int
    s: int


class Outcome(NamedTuple):
    """Of a request. best: place among its candidates, -1: none may be sent."""

    action: int
    reason: int
    until: int
    best: int
    explored: bool
    p_none: float


class Work(NamedTuple):
    """Of the candidates of the request at hand, by place among them: see the columns of the same names, and
    `serve_app.stages.decision.words.Verdicts`. allowed, open, slots, p, met: of the shadow or round at hand."""

    kind: I8
    priority: I16
    value: F64
    identity: U64
    passed: Bool
    first: I8
    reason: I8
    action: I8
    until: I64
    slot: I32
    p_choice: F64
    holdout: I16
    ghost: Bool
    silenced_by: I16
    allowed: Bool
    open: Bool
    slots: I32
    p: F64
    met: Bool


def work(most: int) -> Work:
    """For requests of at most so many candidates."""
    dtypes = ("i1", "i2", "f8", "u8", "?", "i1", "i1", "i1", "i8", "i4", "f8", "i2", "?", "i2", "?", "?", "i4", "f8", "?")
    return Work(*(np.zeros(most, dtype) for dtype in dtypes))


@inlined
def work_at(t: I64) -> Work:
    """Inside kernels: from the addresses of a `Work`."""
    return Work(
        i1(t[0]), i2(t[1]), f8(t[2]), u8(t[3]), u1(t[4]), i1(t[5]), i1(t[6]), i1(t[7]), i8(t[8]), i4(t[9]), f8(t[10]),
        i2(t[11]), u1(t[12]), i2(t[13]), u1(t[14]), u1(t[15]), i4(t[16]), f8(t[17]), u1(t[18]),
    )  # fmt: skip


@inlined
def describe(ask: Ask, w: Work, a: Asked, t: Tables) -> int:
    """Fill in what the candidates are and are worth; returns how many there are."""
    begin, count = a.offsets[ask.r], a.offsets[ask.r + 1] - a.offsets[ask.r]
    for i in range(count):
        c = begin + i
        w.kind[i], w.priority[i], w.holdout[i], w.ghost[i], w.slot[i] = a.message_class[c], a.priority[c], -1, False, -1
        w.value[i] = np.nan
        if t.heads.shape[1]:
            w.value[i] = value_of(c, a.message_class[c], ask.p, ask.v, t.heads, t.columns, t.weights)
    return count


@inlined
def identify(ask: Ask, count: int, w: Work, a: Asked) -> None:
    """Fill in the identities, which break ties and key the noise between candidates."""
    for i in range(count):
        c = a.offsets[ask.r] + i
        item = a.hashes[a.item[c]] if a.item[c] >= 0 else NO_ITEM
        w.identity[i] = identity_of(a.campaign[c], item, a.channel[c], a.message_class[c])


@inlined
def judge(
    i: int, ask: Ask, shadow: np.uint64, end: int, w: Work, h: Entries, a: Asked, rules: Rules, t: Tables, z: Zones
) -> tuple[int, int, int, int]:
    """(first gate that objects, its GateOutcome, Reason and next free time where it defers) to the i-th candidate, in the
    view of `shadow` on the history's entries up to `end`; `_GATES` where none objects."""
    r, at, p, v, c = ask.r, ask.at, ask.p, ask.v, a.offsets[ask.r] + i
    kind, channel, campaign, category = w.kind[i], a.channel[c], a.campaign[c], a.category[c]
    off = is_off(channel, a.campaign_killed[c], rules.kill_all[p], rules.kill_channels[p])
    lists, more = rules.kill_category_offsets, rules.kill_campaign_offsets
    off = off or contains(rules.kill_categories, lists[p], lists[p + 1], category)
    if off or contains(rules.kill_campaigns, more[p], more[p + 1], campaign):
        return _KILL, _SUPPRESSED, _KILL_SWITCH, 0
    if is_over(at, earliest_expiry(a.expires_at[r], a.candidate_expires_at[c])):
        return _EXPIRED, _SUPPRESSED, _IS_EXPIRED, 0
    seen, _, _ = said_before(
        ask.request_id, at, campaign, t.scalars[v, DUPLICATE_WINDOW], shadow, h.place[BEGIN], h.place[RECENT], end, h.at,
        h.campaign, h.holdout, h.request_id, h.flags,
    )  # fmt: skip
    if seen + said_beside(c, a.offsets[r], a.campaign, a.item, a.channel) > 0:
        return _DUPLICATE, _SUPPRESSED, _IS_DUPLICATE, 0
    if is_advertising(kind):
        outcome, why, free = _advertising(c, ask, a, rules, t, z)
        if outcome != _KEPT:
            return _CONSENT, outcome, why, free
    why = closed_channel(channel, kind, v, a.reachable[r], a.opted_out[r], t.classes)
    if why:
        return _CHANNEL, _SUPPRESSED, why, 0
    why = not_member(at, a.segments_at[r], rules.staleness[p], a.segments[ask.s * a.n + r], a.segment[ask.s * a.m + c])
    if why:
        return _SEGMENT, _SUPPRESSED, why, 0
    if quiet_binds(channel, kind, v, t.classes):
        rule = quiet_rule(second_of(ask.local), channel, kind, v, t.quiet)
        if rule >= 0:
            if t.quiet[v, rule, QUIET_OUTCOME] == _SUPPRESSED:
                return _QUIET, _SUPPRESSED, _QUIET_HOURS, 0
            free = quiet_until(at, rule, channel, kind, v, t.quiet, ask.zone, z.first, z.starts, z.offsets)
            return _QUIET, _DEFERRED, _QUIET_HOURS, free
    if is_capped(
        p, v, kind, channel, category, campaign, t.caps, t.classes, rules.only, t.only_offsets, at,
        ask.local // DAY, shadow, h.place[RECENT], end, t.keys, h.at, h.holdout, h.days, h.local_day, h.kind, h.flags,
    ):  # fmt: skip
        return _CAPS, _SUPPRESSED, _CAPPED, 0
    if gap_binds(kind, v, t.gap, t.classes):
        last = last_use(v, t.gap, shadow, h.place[RECENT], end, h.at, h.holdout, h.kind, h.flags)
        if too_soon(at, last, v, t.gap):
            return _GAP, _SUPPRESSED, _MIN_GAP, 0
    why = not_worth(w.value[i], kind, v, t.classes, t.thresholds)
    if why:
        return _THRESHOLD, _SUPPRESSED, why, 0
    return _GATES, _KEPT, 0, 0


@inlined
def _advertising(c: int, ask: Ask, a: Asked, rules: Rules, t: Tables, z: Zones) -> tuple[int, int, int]:
    """The consent gate's outcome, reason, and next free time where it defers."""
    r, row = ask.r, rules.region_rows[ask.p] + a.region[ask.r] + 1
    why = ad_refused(ask.at, a.consent_ad_at[r], a.customer_until[r], row, t.regions)
    if why:
        return _SUPPRESSED, why, 0
    unlabelled = is_unlabelled(a.labelled[c], row, t.regions)
    why = night_refused(ask.at, ask.local, a.consent_night_at[r], a.channel[c], row, t.regions)
    if why:
        if unlabelled or t.regions[row, NIGHT_OUTCOME] == _SUPPRESSED:
            return _SUPPRESSED, why, 0
        free = night_until(
            ask.at, a.consent_ad_at[r], a.consent_night_at[r], a.customer_until[r], row, t.regions, ask.zone, z.first,
            z.starts, z.offsets,
        )  # fmt: skip
        return _DEFERRED, why, free
    return (_SUPPRESSED, _UNLABELLED, 0) if unlabelled else (_KEPT, 0, 0)


@inlined
def note(
    i: int, gate: int, outcome: int, reason: int, free: int, ask: Ask, w: Work, a: Asked, rules: Rules, t: Tables
) -> None:
    """Make the first objection to the i-th candidate its verdict."""
    w.first[i], w.passed[i] = gate, gate == _GATES
    w.reason[i], w.action[i], w.until[i] = reason, _UNDECIDED if gate == _GATES else _SUPPRESS, 0
    if outcome == _DEFERRED:
        expiry = earliest_expiry(a.expires_at[ask.r], a.candidate_expires_at[a.offsets[ask.r] + i])
        w.until[i] = waits_until(
            free, ask.at, ask.attempt, ask.v, expiry, a.root_id[ask.r], a.user[ask.r], rules.deferral_salt[ask.p],
            t.scalars,
        )  # fmt: skip
        w.action[i] = _DEFER if w.until[i] else _SUPPRESS


@inlined
def settle(
    ask: Ask, count: int, best: int, explored: bool, blocked_by: int, p_none: float, w: Work, rules: Rules
) -> Outcome:
    """The request's outcome; that of the candidates in place."""
    action, reason, until = settle_one(
        0, count, best, explored, blocked_by, w.slot, w.passed, w.first, w.holdout, w.ghost, rules.holdouts[ask.p],
        rules.holdout_reasons, w.reason, w.action, w.until, w.silenced_by,
    )  # fmt: skip
    return Outcome(action, reason, until, best, explored, p_none)


@inlined
def decide(ask: Ask, count: int, w: Work, h: Entries, a: Asked, rules: Rules, t: Tables, z: Zones, end: int) -> Outcome:
    """A request of one send none of whose candidates is withheld, described before."""
    passed = 0
    for i in range(count):
        gate, outcome, reason, free = judge(i, ask, _FACTS, end, w, h, a, rules, t, z)
        note(i, gate, outcome, reason, free, ask, w, a, rules, t)
        passed += 1 if gate == _GATES else 0
    if passed > 1:
        identify(ask, count, w, a)
    best = best_of(0, count, ask.v, w.passed, w.priority, w.kind, w.value, w.identity, t.classes, t.scalars)
    winner, explored, p_none = choose_one(
        0, count, best, a.root_id[ask.r], ask.attempt, ask.v, w.passed, w.kind, w.identity, t.scalars, rules.flip, True,
        rules.flip_salt[ask.p], w.p_choice,
    )  # fmt: skip
    if winner >= 0:
        w.slot[winner] = 0
    return settle(ask, count, best, explored, -1, p_none, w, rules)
