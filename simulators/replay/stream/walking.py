"""What all walks share: where their columns are, how a request is decided, and how what was sent enters the history."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from serve_app.kernels import inlined
from serve_app.policy.zones import DAY
from serve_app.vocabulary import Action
from simulators.replay.stream.columns import Asked, Logged
from simulators.replay.stream.history import END, Entries, Zones, append, has_room, look_back, trim, turn_to
from simulators.replay.stream.judging import Ask, Outcome, Work, decide, describe
from simulators.replay.stream.rules import Rules, Tables
from simulators.replay.stream.withheld import decide_withheld, sends_allowed, withhold

__all__ = ["Where", "commit", "commit_logged", "outcome_of", "room_for"]

I64 = npt.NDArray[np.int64]

_SEND = int(Action.send)
_FACTS = np.uint64(0)


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
def outcome_of(
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
def commit(ask: Ask, action: int, w: Work, h: Entries, a: Asked, rules: Rules, t: Tables, keep: int) -> None:
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
def commit_logged(r: int, h: Entries, a: Asked, logged: Logged, t: Tables, z: Zones) -> bool:
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
def room_for(h: Entries, t: Tables, count: int) -> bool:
    return h.place[END] + count <= h.room or has_room(h, t.keys, count)
