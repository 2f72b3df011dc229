"""Views: what policies, in each of their cells, make of each logged request on the logged histories.

The walk goes over users as those of `simulators.replay.stream.courses` do, and stops likewise where room is too little.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from serve_app.kernels import inlined, kernel
from simulators.replay.stream.columns import Asked, asked_at, logged_at
from simulators.replay.stream.history import entries_at, failed_at, load, refund, start_at, trim, turn_to, zones_at
from simulators.replay.stream.judging import Ask, Work, work_at
from simulators.replay.stream.pointers import f8, i2, i8, u1
from simulators.replay.stream.rules import rules_at, tables_at
from simulators.replay.stream.walking import Where, commit_logged, outcome_of, room_for
from simulators.replay.stream.withheld import draw_holdouts

__all__ = ["Views", "walk_views"]

I64 = npt.NDArray[np.int64]
I16 = npt.NDArray[np.int16]
F64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]


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


@inlined
def _views_at(x: I64) -> Views:
    return Views(
        i8(x[0]), i2(x[1]), i2(x[2]), f8(x[3]), f8(x[4]), i8(x[5]), u1(x[6]), u1(x[7]), f8(x[8]), f8(x[9]), f8(x[10]),
        f8(x[11]), f8(x[12]), x[13], x[14], x[15], x[16], x[17],
    )  # fmt: skip


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
            ok = room_for(h, t, 2 * most)
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
                    told = outcome_of(ask, drawn, True, w, h, a, rules, t, z)
                    _note_view(row, p, view, cell == views.cell[p * a.n + row], told.p_none, w, a, views)
            if commit_logged(row, h, a, logged, t, z):
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
