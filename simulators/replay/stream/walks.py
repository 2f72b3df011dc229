"""The walks: user after user, each user's requests in order, with the user's history at hand.

Each is one kernel over the users first .. last of a partition and returns the first user it did not get to: where the room
for entries, deferrals or results was too little, it stops before that user, to be called again with more.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from serve_app.kernels import inlined, kernel
from serve_app.policy.assign import variant_of
from serve_app.policy.zones import DAY
from serve_app.stages.decision.deferrals import child_id
from serve_app.vocabulary import Action, Reason
from simulators.replay.stream.columns import Asked, Logged, asked_at, logged_at
from simulators.replay.stream.history import (
    END,
    Entries,
    Zones,
    append,
    entries_at,
    failed_at,
    has_room,
    load,
    look_back,
    refund,
    start_at,
    trim,
    turn_to,
    zones_at,
)
from simulators.replay.stream.judging import Ask, Outcome, Work, decide, describe, work_at
from simulators.replay.stream.pointers import f8, i1, i2, i8, u1, u8
from simulators.replay.stream.rules import Rules, Tables, Trials, rules_at, tables_at
from simulators.replay.stream.withheld import decide_withheld, draw_holdouts, sends_allowed, withhold

__all__ = ["Deferrals", "Done", "Told", "Views", "Where", "deferrals", "walk_log", "walk_policy", "walk_views"]

I64 = npt.NDArray[np.int64]
I16 = npt.NDArray[np.int16]
I8 = npt.NDArray[np.int8]
U64 = npt.NDArray[np.uint64]
F64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

_SEND, _DEFER, _CHOSEN = int(Action.send), int(Action.defer), int(Reason.chosen)
_REASONS = len(Reason)
_FACTS = np.uint64(0)


class Deferrals(NamedTuple):
    """One user's open deferrals in the order they were made: see `simulators.replay.stream.stream_policy`."""

    due: I64
    row: I64
    parent: U64
    attempt: I64
    carried: Bool
    room: int


class Done(NamedTuple):
    """Room for so many decisions and sends: see `simulators.replay.realised.Realised`. reasons: of all users before; tally:
    of the one at hand. total i64[4]: decisions, sends, carried re-decisions, and whether any user's decisions are not in
    order of time."""

    row: I64
    at: I64
    action: I8
    reason: I8
    send_decision: I64
    send_candidate: I64
    reasons: I64
    tally: I64
    total: I64
    room: int
    sends: int


class Told(NamedTuple):
    """More of each logged request: failures known, until, p_none, explored; p_choice of each candidate."""

    known: I64
    until: I64
    p_none: F64
    explored: Bool
    p_choice: F64


class Views(NamedTuple):
    """P policies in each of their cells. first i64[P + 1]: each policy's views; variant i16[P, n]: of its first cell; cell
    i16[P, n]: the own one; p_logged f8[m], none_logged f8[n]: the logged p_choice and p_none; sent i64[n]: the candidate
    sent first, -1: none. able u1[m], able_none u1[n]: candidates, and sending nothing, that some cell of the first
    `teaching` policies could choose, which add to them. chosen f8[n, views], send and unsupported f8[P, n], choices f8[P, m]
    (where kept), beyond f8[n, views] (where judged: mass on what is not able): results."""

    first: I64
    variant: I16
    cell: I16
    p_logged: F64
    none_logged: F64
    sent: I64
    able: Bool
    able_none: Bool
    chosen: F64
    send: F64
    unsupported: F64
    choices: F64
    beyond: F64
    policies: int
    width: int
    kept: int
    teaching: int
    judged: int


class Where(NamedTuple):
    """Addresses of the columns a walk reads and writes: of an `Asked`, `Tables`, `Rules` and so on. known, child, root,
    until, variant, policy and counts of the requests are the seven of `extra`."""

    asked: I64
    tables: I64
    rules: I64
    entries: I64
    work: I64
    start: I64
    failed: I64
    zones: I64
    logged: I64
    extra: I64
    deferrals: I64


@inlined
def _deferrals_at(x: I64) -> Deferrals:
    return Deferrals(i8(x[0]), i8(x[1]), u8(x[2]), i8(x[3]), u1(x[4]), x[5])


@inlined
def _done_at(x: I64) -> Done:
    return Done(
        i8(x[0]), i8(x[1]), i1(x[2]), i1(x[3]), i8(x[4]), i8(x[5]), i8(x[6]), i8(x[7]), i8(x[8]), x[9], x[10]
    )  # fmt: skip


@inlined
def _told_at(x: I64) -> Told:
    return Told(i8(x[0]), i8(x[1]), f8(x[2]), u1(x[3]), f8(x[4]))


@inlined
def _views_at(x: I64) -> Views:
    return Views(
        i8(x[0]), i2(x[1]), i2(x[2]), f8(x[3]), f8(x[4]), i8(x[5]), u1(x[6]), u1(x[7]), f8(x[8]), f8(x[9]), f8(x[10]),
        f8(x[11]), f8(x[12]), x[13], x[14], x[15], x[16], x[17],
    )  # fmt: skip


def deferrals(room: int) -> Deferrals:
    """Room for so many."""
    return Deferrals(
        np.empty(room, np.int64), np.empty(room, np.int64), np.empty(room, np.uint64), np.empty(room, np.int64),
        np.empty(room, np.bool_), room,
    )  # fmt: skip


@inlined
def _outcome(
    ask: Ask, drawn: bool, first_only: bool, w: Work, h: Entries, a: Asked, rules: Rules, t: Tables, z: Zones
) -> Outcome:
    """Decide one request on the history as it stands. first_only: later sends are of no interest."""
    look_back(h, ask.at, rules.longest)
    count = describe(ask, w, a, t)
    several = not first_only and count > 1 and sends_allowed(ask, a, t) > 1
    if (drawn and withhold(ask, count, w, a, rules, t)) or several:
        return decide_withheld(ask, count, w, h, a, rules, t, z)
    return decide(ask, count, w, h, a, rules, t, z, h.place[END])


@inlined
def _commit(ask: Ask, action: int, w: Work, h: Entries, a: Asked, rules: Rules, t: Tables, keep: int) -> None:
    """What was sent, in order of slots, then ghosts under their holdouts' keys, go into the history."""
    begin, count = a.offsets[ask.r], a.offsets[ask.r + 1] - a.offsets[ask.r]
    day, end, slot = ask.local // DAY, h.place[END], 0
    while action == _SEND:
        sent = -1
        for i in range(count):
            sent = i if w.slot[i] == slot else sent
        if sent < 0:
            break
        c = begin + sent
        append(
            h,
            t.keys,
            end,
            ask.at,
            day,
            ask.request_id,
            slot,
            a.campaign[c],
            a.category[c],
            a.channel[c],
            w.kind[sent],
            _FACTS,
            0,
        )
        end, slot = end + 1, slot + 1
    for i in range(count):
        if w.ghost[i]:
            c, key = begin + i, rules.holdout_keys[rules.holdouts[ask.p] + w.holdout[i]]
            append(
                h, t.keys, end, ask.at, day, ask.request_id, 0, a.campaign[c], a.category[c], a.channel[c], w.kind[i], key, 0
            )
            end += 1
    if end > h.place[END]:
        h.place[END] = end
        trim(h, ask.at - keep)


@inlined
def _commit_logged(r: int, h: Entries, a: Asked, logged: Logged, t: Tables, z: Zones) -> bool:
    """The same for what the log says was done; the caller trims. Returns whether there was anything."""
    end, slot, p = h.place[END], 0, logged.policy[r]
    at, zone = a.decided_at[r], a.zone[r] if a.zone[r] >= 0 else logged.zone[p]
    while logged.granted[r]:
        sent = -1
        for c in range(a.offsets[r], a.offsets[r + 1]):
            sent = c if logged.slot[c] == slot else sent
        if sent < 0:
            break
        day = (at + turn_to(h, at, zone, z)) // DAY
        append(
            h, t.keys, end, at, day, a.request_id[r], slot, a.campaign[sent], a.category[sent], a.channel[sent],
            a.message_class[sent], _FACTS, 0,
        )  # fmt: skip
        end, slot = end + 1, slot + 1
    for c in range(a.offsets[r], a.offsets[r + 1]):
        if logged.ghost[c]:
            key, day = logged.keys[logged.holdouts[p] + logged.holdout[c]], (at + turn_to(h, at, zone, z)) // DAY
            append(
                h,
                t.keys,
                end,
                at,
                day,
                a.request_id[r],
                0,
                a.campaign[c],
                a.category[c],
                a.channel[c],
                a.message_class[c],
                key,
                0,
            )
            end += 1
    grown = end > h.place[END]
    h.place[END] = end
    return grown


@inlined
def _record(ask: Ask, first: int, told: Outcome, counts: bool, w: Work, a: Asked, done: Done) -> None:
    """Write down what was decided. first: the user's first decision; counts: so do the reasons of its candidates."""
    k, s, begin = done.total[0], done.total[1], a.offsets[ask.r]
    done.row[k], done.at[k], done.action[k] = ask.r, ask.at, told.action
    done.reason[k] = _CHOSEN if told.action == _SEND else told.reason
    if k > first and done.at[k - 1] > ask.at:
        done.total[3] = 1
    done.total[0] = k + 1
    count, slot = a.offsets[ask.r + 1] - begin, 0
    for i in range(count):
        done.tally[w.reason[i]] += 1 if counts else 0
    while told.action == _SEND:
        sent = -1
        for i in range(count):
            sent = i if w.slot[i] == slot else sent
        if sent < 0:
            break
        done.send_decision[s], done.send_candidate[s] = k, begin + sent
        s, slot = s + 1, slot + 1
    done.total[1] = s


@inlined
def _close_user(ok: bool, decisions: int, sends: int, carried: int, done: Done) -> bool:
    """Count a user's results in, or where the room was too little take them back. Returns `ok`."""
    if not ok:
        done.total[0], done.total[1], done.total[2] = decisions, sends, carried
    for reason in range(_REASONS):
        done.reasons[reason] += done.tally[reason] if ok else 0
        done.tally[reason] = 0
    return ok


@inlined
def _room_for(h: Entries, t: Tables, count: int) -> bool:
    return h.place[END] + count <= h.room or has_room(h, t.keys, count)


@inlined
def _fits(done: Done, most: int) -> bool:
    return done.total[0] < done.room and done.total[1] + most <= done.sends


@inlined
def _earliest(open_: Deferrals, count: int) -> int:
    """The deferral that is due first; of several at one time the one of the lowest parent, then the oldest."""
    best = 0
    for d in range(1, count):
        sooner = open_.due[d] < open_.due[best]
        if sooner or (open_.due[d] == open_.due[best] and open_.parent[d] < open_.parent[best]):
            best = d
    return best


@inlined
def _take_out(open_: Deferrals, place: int, count: int) -> None:
    for d in range(place, count - 1):
        open_.due[d], open_.row[d], open_.parent[d] = open_.due[d + 1], open_.row[d + 1], open_.parent[d + 1]
        open_.attempt[d], open_.carried[d] = open_.attempt[d + 1], open_.carried[d + 1]


@kernel
def walk_policy(
    u: int, row: int, x: Where, trials: Trials, since: int, keep: int, most: int, results: I64
) -> tuple[int, int]:
    """Policy 0 on its own course from `since` on. u, row: the user and request to begin with; returns those to go on with.
    keep: microseconds, how long entries are kept; most: candidates of any request; results: addresses of a `Done`."""
    t, a, rules, h, w = tables_at(x.tables), asked_at(x.asked), rules_at(x.rules), entries_at(x.entries), work_at(x.work)
    start, failed, z, logged = start_at(x.start), failed_at(x.failed), zones_at(x.zones), logged_at(x.logged)
    known, child, root, logged_until = i8(x.extra[0]), i8(x.extra[1]), u1(x.extra[2]), i8(x.extra[3])
    variant, counts, open_, done = i2(x.extra[4]), u1(x.extra[6]), _deferrals_at(x.deferrals), _done_at(results)
    while row < a.n:
        user, before = a.user[row], row
        decisions, sends, carried = done.total[0], done.total[1], done.total[2]
        end = row
        while end < a.n and a.user[end] == user:
            end += 1
        ok, recalled = load(h, t.keys, u, start), False
        for r in range(row, end):
            if a.decided_at[r] < since and ok:
                ok = _room_for(h, t, most)
                if ok:
                    recalled = _commit_logged(r, h, a, logged, t, z) or recalled
        if recalled:
            trim(h, since - keep)
        f, waiting, drawn = failed.next[u], 0, draw_holdouts(user, rules)
        while ok:
            while row < end and not root[row]:
                row += 1
            d = _earliest(open_, waiting) if waiting else -1
            if row < end and (waiting == 0 or a.decided_at[row] < open_.due[d]):
                r, at, request_id, attempt = row, a.decided_at[row], a.request_id[row], int(a.attempt[row])
                v, knows, read = int(variant[row]), known[row], int(a.refunds_read[row])
                row += 1
            elif waiting:
                r, at, attempt, knows, read = open_.row[d], open_.due[d], open_.attempt[d], -1, -1
                request_id = child_id(user, open_.parent[d]) if open_.carried[d] else a.request_id[r]
                v = variant_of(
                    user, at, trials.arm_salts, trials.arm_edges, trials.arm_counts, trials.dates, trials.cell_salt,
                    trials.cell_edges, trials.epoch,
                )  # fmt: skip
                _take_out(open_, d, waiting)
                waiting -= 1
            else:
                break
            if not (_room_for(h, t, 2 * most) and _fits(done, most) and waiting < open_.room):
                ok = False
                break
            if f < failed.end[u]:
                f = refund(h, f, failed.end[u], failed.begin[u], at, read, knows, failed)
            zone = int(a.zone[r] if a.zone[r] >= 0 else rules.default_zone[0])
            ask = Ask(r, at, at + turn_to(h, at, zone, z), zone, request_id, attempt, 0, v, 0)
            told = _outcome(ask, drawn, False, w, h, a, rules, t, z)
            _commit(ask, told.action, w, h, a, rules, t, keep)
            _record(ask, decisions, told, x.extra[6] == 0 or counts[r] != 0, w, a, done)
            if told.action == _DEFER:
                has = child[r] >= 0
                at_child = has and told.until == logged_until[r]
                open_.row[waiting] = child[r] if has else r
                open_.due[waiting] = a.decided_at[child[r]] if at_child else told.until
                open_.parent[waiting], open_.attempt[waiting], open_.carried[waiting] = request_id, attempt + 1, not has
                done.total[2] += 0 if has else 1
                waiting += 1
        if not _close_user(ok, decisions, sends, carried, done):
            return u, before
        row, u = end, u + 1
    return u, row


@kernel
def walk_log(u: int, row: int, x: Where, keep: int, most: int, results: I64, further: I64) -> tuple[int, int]:
    """Every logged request under the policy that `policy` names, each user on the course these take. further: addresses of a
    `Told`. See `walk_policy`."""
    t, a, rules, h, w = tables_at(x.tables), asked_at(x.asked), rules_at(x.rules), entries_at(x.entries), work_at(x.work)
    start, failed, z = start_at(x.start), failed_at(x.failed), zones_at(x.zones)
    variant, policy, done, more = i2(x.extra[4]), i2(x.extra[5]), _done_at(results), _told_at(further)
    while row < a.n:
        user, before, decisions, sends = a.user[row], row, done.total[0], done.total[1]
        ok, f, drawn = load(h, t.keys, u, start), failed.next[u], draw_holdouts(user, rules)
        while ok and row < a.n and a.user[row] == user:
            if not (_room_for(h, t, 2 * most) and _fits(done, most)):
                ok = False
                break
            at, p = a.decided_at[row], int(policy[row])
            if f < failed.end[u]:
                f = refund(h, f, failed.end[u], failed.begin[u], at, int(a.refunds_read[row]), -1, failed)
            more.known[row] = f - failed.begin[u]
            zone = int(a.zone[row] if a.zone[row] >= 0 else rules.default_zone[p])
            v, attempt = rules.first_variant[p] + variant[row], int(a.attempt[row])
            ask = Ask(row, at, at + turn_to(h, at, zone, z), zone, a.request_id[row], attempt, p, v, 0)
            told = _outcome(ask, drawn, False, w, h, a, rules, t, z)
            _commit(ask, told.action, w, h, a, rules, t, keep)
            _record(ask, decisions, told, True, w, a, done)
            more.until[row], more.p_none[row], more.explored[row] = told.until, told.p_none, told.explored
            for i in range(a.offsets[row + 1] - a.offsets[row]):
                more.p_choice[a.offsets[row] + i] = w.p_choice[i]
            row += 1
        if not _close_user(ok, decisions, sends, 0, done):
            return u, before
        u += 1
    return u, row


@kernel
def walk_views(u: int, row: int, x: Where, separate: bool, keep: int, most: int, results: I64) -> tuple[int, int]:
    """What the policies, in every cell, make of each logged request on the logged histories. separate: each has its own
    row of segments; results: addresses of `Views`. See `walk_policy`."""
    t, a, rules, h, w = tables_at(x.tables), asked_at(x.asked), rules_at(x.rules), entries_at(x.entries), work_at(x.work)
    start, failed, z, logged = start_at(x.start), failed_at(x.failed), zones_at(x.zones), logged_at(x.logged)
    views = _views_at(results)
    while row < a.n:
        user, before = a.user[row], row
        ok, f, drawn = load(h, t.keys, u, start), failed.next[u], draw_holdouts(user, rules)
        while ok and row < a.n and a.user[row] == user:
            ok = _room_for(h, t, 2 * most)
            if not ok:
                break
            at = a.decided_at[row]
            if f < failed.end[u]:
                f = refund(h, f, failed.end[u], failed.begin[u], at, int(a.refunds_read[row]), -1, failed)
            for p in range(views.policies):
                zone = int(a.zone[row] if a.zone[row] >= 0 else rules.default_zone[p])
                local, s = at + turn_to(h, at, zone, z), p if separate else 0
                for view in range(views.first[p], views.first[p + 1]):
                    cell = view - views.first[p]
                    v = rules.first_variant[p] + views.variant[p * a.n + row] + cell
                    ask = Ask(row, at, local, zone, a.request_id[row], int(a.attempt[row]), p, v, s)
                    told = _outcome(ask, drawn, True, w, h, a, rules, t, z)
                    _note_view(row, p, view, cell == views.cell[p * a.n + row], told.p_none, w, a, views)
            if _commit_logged(row, h, a, logged, t, z):
                trim(h, at - keep)
            row += 1
        if not ok:
            return u, before
        u += 1
    return u, row


@inlined
def _note_view(row: int, p: int, view: int, own: bool, p_none: float, w: Work, a: Asked, views: Views) -> None:
    begin, sent = a.offsets[row], views.sent[row]
    views.chosen[row * views.width + view] = p_none if sent < 0 else w.p_choice[sent - begin]
    if views.judged:
        _note_support(row, p < views.teaching, view, p_none, w, a, views)
    if not own:
        return
    lost = 0.0
    for i in range(a.offsets[row + 1] - begin):
        lost += w.p_choice[i] if views.p_logged[begin + i] == 0.0 else 0.0
        if views.kept:
            views.choices[p * a.m + begin + i] = w.p_choice[i]
    views.send[p * a.n + row] = 1.0 - p_none
    views.unsupported[p * a.n + row] = lost + (p_none if views.none_logged[row] == 0.0 else 0.0)


@inlined
def _note_support(row: int, teaches: bool, view: int, p_none: float, w: Work, a: Asked, views: Views) -> None:
    """What a view could choose becomes able, or its mass on what is not is written down."""
    begin, beyond = a.offsets[row], 0.0
    for i in range(a.offsets[row + 1] - begin):
        if w.p_choice[i] > 0.0 and not views.able[begin + i]:
            beyond += w.p_choice[i]
            views.able[begin + i] = teaches
    if p_none > 0.0 and not views.able_none[row]:
        beyond += p_none
        views.able_none[row] = teaches
    views.beyond[row * views.width + view] = 0.0 if teaches else beyond
