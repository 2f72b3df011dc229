"""Requests of several sends, or with withheld candidates: shadows and rounds, as `serve_app.stages.decision.shadows` and
`rounds` go through them for a batch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from serve_app.kernels import inlined, kernel
from serve_app.noise import absorb
from serve_app.policy.gates import GATE_NAMES
from serve_app.policy.gates.result import THIS_DECISION
from serve_app.policy.holdouts import covers, is_held
from serve_app.policy.tables import MAX_SENDS
from serve_app.policy.zones import DAY
from serve_app.stages.decision.choose import best_of, choose_one
from simulators.replay.stream.columns import Asked
from simulators.replay.stream.history import END, Entries, Zones, append
from simulators.replay.stream.judging import Ask, Outcome, Work, identify, judge, note, settle
from simulators.replay.stream.rules import Rules, Tables

__all__ = ["decide_withheld", "draw_holdouts", "sends_allowed", "withhold"]

U64 = npt.NDArray[np.uint64]
I32 = npt.NDArray[np.int32]
F64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

_GATES = len(GATE_NAMES)
_FACTS = np.uint64(0)


@kernel
def _judge(
    i: int, ask: Ask, shadow: np.uint64, end: int, w: Work, h: Entries, a: Asked, rules: Rules, t: Tables, z: Zones
) -> tuple[int, int, int, int]:
    """`judge`, once: what follows asks for it in several places."""
    return judge(i, ask, shadow, end, w, h, a, rules, t, z)


@kernel
def draw_holdouts(user: np.uint64, rules: Rules) -> bool:
    """Which holdouts of all policies hold a user out, in place; returns whether any does."""
    any_ = False
    for g in range(rules.holdout_count):
        held = is_held(g, user, rules.holdout_salts, rules.holdout_share)
        rules.held[g], any_ = held, any_ or held
    return any_


@kernel
def withhold(ask: Ask, count: int, w: Work, a: Asked, rules: Rules, t: Tables) -> bool:
    """Set the first holdout that withholds each candidate; returns whether any is withheld."""
    base, any_ = rules.holdouts[ask.p], False
    for g in range(base, rules.holdouts[ask.p + 1]):
        for i in range(count):
            c = a.offsets[ask.r] + i
            if rules.held[g] and w.holdout[i] < 0 and covers(
                g, ask.at, a.campaign[c], a.message_class[c], rules.holdout_classes, t.dates,
                rules.holdout_campaigns, rules.holdout_campaign_offsets,
            ):  # fmt: skip
                w.holdout[i], any_ = g - base, True
    return any_


@inlined
def sends_allowed(ask: Ask, a: Asked, t: Tables) -> int:
    """How many may be sent."""
    return min(int(a.slots[ask.r]), t.scalars[ask.v, MAX_SENDS])


@kernel
def _sends(
    ask: Ask, count: int, most: int, key: np.uint64, passed: Bool, slots: I32, p_choice: F64, w: Work, h: Entries, a: Asked,
    rules: Rules, t: Tables, z: Zones,
) -> tuple[int, int, bool, float]:  # fmt: skip
    """(best, winner, explored, p_none) of the first choice among the allowed candidates that `passed`, in the view of the
    shadow `key`; sets `slots`, of the rounds after it too, and p_choice."""
    salt = rules.flip_salt[ask.p] if key == _FACTS else absorb(rules.flip_salt[ask.p], key)
    for i in range(count):
        w.open[i], slots[i] = w.allowed[i] and passed[i], -1
    best = best_of(0, count, ask.v, w.open, w.priority, w.kind, w.value, w.identity, t.classes, t.scalars)
    winner, explored, p_none = choose_one(
        0, count, best, a.root_id[ask.r], ask.attempt, ask.v, w.open, w.kind, w.identity, t.scalars, rules.flip, True,
        salt, p_choice,
    )  # fmt: skip
    last, place, end = winner, 0, h.place[END]
    while last >= 0:
        slots[last] = place
        place += 1
        if place >= most:
            break
        c = a.offsets[ask.r] + last
        append(
            h, t.keys, end, ask.at, ask.local // DAY, np.uint64(0), 0, a.campaign[c], a.category[c], a.channel[c],
            w.kind[last], _FACTS, THIS_DECISION,
        )  # fmt: skip
        end += 1
        for i in range(count):
            w.open[i] = False
            if w.allowed[i] and slots[i] < 0:
                w.open[i] = _judge(i, ask, key, end, w, h, a, rules, t, z)[0] == _GATES
        last = best_of(0, count, ask.v, w.open, w.priority, w.kind, w.value, w.identity, t.classes, t.scalars)
    return best, winner, explored, p_none


@kernel
def _shadow(
    g: int, ask: Ask, count: int, most: int, w: Work, h: Entries, a: Asked, rules: Rules, t: Tables, z: Zones
) -> tuple[bool, float, int]:
    """(whether holdout g withheld the first send, with which probability, how many later ones) on its shadow history. The
    verdicts on its own candidates become those of the shadow."""
    own, key = g - rules.holdouts[ask.p], rules.holdout_keys[g]
    for i in range(count):
        w.allowed[i] = w.holdout[i] == own or w.holdout[i] < 0
        gate, outcome, reason, free = _judge(i, ask, key, h.place[END], w, h, a, rules, t, z)
        w.met[i] = gate == _GATES
        if w.holdout[i] == own:
            note(i, gate, outcome, reason, free, ask, w, a, rules, t)
    _, winner, _, _ = _sends(ask, count, most, key, w.met, w.slots, w.p, w, h, a, rules, t, z)
    p_withheld, later = 0.0, 0
    for i in range(count):
        if w.holdout[i] == own:
            w.ghost[i] = w.slots[i] >= 0
            p_withheld += w.p[i]
            later += 1 if w.slots[i] > 0 else 0
    return winner >= 0 and w.holdout[winner] == own, p_withheld, later


@kernel
def decide_withheld(ask: Ask, count: int, w: Work, h: Entries, a: Asked, rules: Rules, t: Tables, z: Zones) -> Outcome:
    """A request described before, its withheld candidates marked."""
    identify(ask, count, w, a)
    most, base, blocked_by, p_open, fewer = sends_allowed(ask, a, t), rules.holdouts[ask.p], -1, 1.0, 0
    for g in range(base, rules.holdouts[ask.p + 1]):
        touched = False
        for i in range(count):
            touched = touched or w.holdout[i] == g - base
        if touched:
            first, p_withheld, later = _shadow(g, ask, count, most, w, h, a, rules, t, z)
            if rules.holdout_blocking[g]:
                blocked_by = g - base if first and blocked_by < 0 else blocked_by
                p_open *= 1.0 - p_withheld
                fewer += later
    for i in range(count):
        w.allowed[i] = w.holdout[i] < 0
        if w.allowed[i]:
            gate, outcome, reason, free = _judge(i, ask, _FACTS, h.place[END], w, h, a, rules, t, z)
            note(i, gate, outcome, reason, free, ask, w, a, rules, t)
    best, _, explored, p_none = _sends(ask, count, most - fewer, _FACTS, w.passed, w.slot, w.p_choice, w, h, a, rules, t, z)
    if blocked_by >= 0:
        explored = False
        for i in range(count):
            w.slot[i] = -1
    for i in range(count):
        w.p_choice[i] *= p_open
    if p_open != 1.0:
        p_none = 1.0 - p_open * (1.0 - p_none)
    return settle(ask, count, best, explored, blocked_by, p_none, w, rules)
