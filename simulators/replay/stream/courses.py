"""Courses: user after user, each user's requests in order, with the history that the decisions themselves make.

Each walk is one kernel over users from the given one on and returns the first that it did not get to: where the room for
entries, deferrals or results was too little, it stops before that user, to be called again with more.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from serve_app.kernels import inlined, kernel
from serve_app.policy.assign import variant_of
from serve_app.stages.decision.deferrals import child_id
from serve_app.vocabulary import Action, Reason
from simulators.replay.stream.columns import Asked, asked_at, logged_at
from simulators.replay.stream.history import entries_at, failed_at, load, refund, start_at, trim, turn_to, zones_at
from simulators.replay.stream.judging import Ask, Outcome, Work, work_at
from simulators.replay.stream.pointers import f8, i1, i2, i8, u1, u8
from simulators.replay.stream.rules import Trials, rules_at, tables_at
from simulators.replay.stream.walking import Where, commit, commit_logged, outcome_of, room_for
from simulators.replay.stream.withheld import draw_holdouts

__all__ = ["Deferrals", "Done", "Told", "deferrals", "walk_log", "walk_policy"]

I64 = npt.NDArray[np.int64]
I8 = npt.NDArray[np.int8]
U64 = npt.NDArray[np.uint64]
F64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

_SEND, _DEFER, _CHOSEN = int(Action.send), int(Action.defer), int(Reason.chosen)
_REASONS = len(Reason)


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


def deferrals(room: int) -> Deferrals:
    """Room for so many."""
    return Deferrals(
        np.empty(room, np.int64), np.empty(room, np.int64), np.empty(room, np.uint64), np.empty(room, np.int64),
        np.empty(room, np.bool_), room,
    )  # fmt: skip


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
                ok = room_for(h, t, most)
                if ok:
                    recalled = commit_logged(r, h, a, logged, t, z) or recalled
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
            if not (room_for(h, t, 2 * most) and _fits(done, most) and waiting < open_.room):
                ok = False
                break
            if f < failed.end[u]:
                f = refund(h, f, failed.end[u], failed.begin[u], at, read, knows, failed)
            zone = int(a.zone[r] if a.zone[r] >= 0 else rules.default_zone[0])
            ask = Ask(r, at, at + turn_to(h, at, zone, z), zone, request_id, attempt, 0, v, 0)
            told = outcome_of(ask, drawn, False, w, h, a, rules, t, z)
            commit(ask, told.action, w, h, a, rules, t, keep)
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
            if not (room_for(h, t, 2 * most) and _fits(done, most)):
                ok = False
                break
            at, p = a.decided_at[row], int(policy[row])
            if f < failed.end[u]:
                f = refund(h, f, failed.end[u], failed.begin[u], at, int(a.refunds_read[row]), -1, failed)
            more.known[row] = f - failed.begin[u]
            zone = int(a.zone[row] if a.zone[row] >= 0 else rules.default_zone[p])
            v, attempt = rules.first_variant[p] + variant[row], int(a.attempt[row])
            ask = Ask(row, at, at + turn_to(h, at, zone, z), zone, a.request_id[row], attempt, p, v, 0)
            told = outcome_of(ask, drawn, False, w, h, a, rules, t, z)
            commit(ask, told.action, w, h, a, rules, t, keep)
            _record(ask, decisions, told, True, w, a, done)
            more.until[row], more.p_none[row], more.explored[row] = told.until, told.p_none, told.explored
            for i in range(a.offsets[row + 1] - a.offsets[row]):
                more.p_choice[a.offsets[row] + i] = w.p_choice[i]
            row += 1
        if not _close_user(ok, decisions, sends, 0, done):
            return u, before
        u += 1
    return u, row
