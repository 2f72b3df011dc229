"""Incrementality from a log's holdouts: every user from the first would-send, outcomes of the user after it, sent or not.

The trigger under a holdout is the user's first message that it covers and that was sent, or would have been but for it. It
is the same in both arms, so both hold the same kind of people. Users whose first such message lies before the log are left
out, in both arms alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from serve_app.kernels import kernel
from serve_app.policy.compile import CompiledPolicy
from serve_app.policy.document import parse_policy
from serve_app.policy.holdouts import HoldoutArrays, compile_holdouts, is_held
from serve_app.vocabulary import EventType
from simulators.estimators import Trial, TrialRows, trial_rows
from simulators.replay.counts import Window
from simulators.replay.opportunities import Opportunities
from simulators.replay.partition import Partition
from simulators.replay.uplift import TrialSample

__all__ = ["ARMS", "COVARIATES", "OUTCOMES", "Holdout", "fill_trial", "holdouts_of", "known_of", "new_sample", "new_trial"]

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Bools = npt.NDArray[np.bool_]

ARMS = ("held out", "sent")
OUTCOMES = ("conversions", "revenue", "opt_outs", "views", "sends", "send_cost")
"""Of a user within the window, whatever caused them; send_cost as the candidates state it."""
COVARIATES = ("conversions before", "revenue before", "views before")
_BEFORE = [0, 1, 3]  # places of the covariates among the outcomes
_KINDS = {EventType.conversion: 0, EventType.opt_out: 2, EventType.view: 3}


@dataclass(frozen=True, slots=True)
class Holdout:
    """One that was in force in the log. key: of its ghosts in histories; share: of users held out."""

    name: str
    key: int
    share: float


def holdouts_of(documents: Sequence[str]) -> list[Holdout]:
    """Of the policies that logged, each once. One whose share changed between policies is left out: its arms mix."""
    found: dict[str, set[tuple[int, float]]] = {}
    for text in documents:
        arrays = compile_holdouts(parse_policy(orjson.loads(text)))
        for name, key, share in zip(arrays.ids, arrays.keys.tolist(), arrays.share.tolist(), strict=True):
            found.setdefault(name, set()).add((key, share))
    alone = {name: next(iter(some)) for name, some in sorted(found.items()) if len(some) == 1}
    return [Holdout(name, key, share) for name, (key, share) in alone.items() if 0 < share < 1]


def new_trial() -> Trial:
    """Empty."""
    return Trial(ARMS, OUTCOMES, COVARIATES)


def known_of(heads: Sequence[str]) -> tuple[str, ...]:
    """What is known of a user at the trigger: the covariates, the message's logged scores, the hour of the day (UTC)."""
    return (*COVARIATES, *heads, "hour")


def new_sample(heads: Sequence[str]) -> TrialSample:
    """Empty; heads: those the log holds."""
    return TrialSample.empty(len(known_of(heads)), len(OUTCOMES))


@kernel
def _held(users: U64, h: int, salts: U64, share: F64, out: Bools) -> None:
    for i in range(len(users)):
        out[i] = is_held(h, users[i], salts, share)


def _covered(holdouts: HoldoutArrays, h: int, at: I64, campaign: U64, kind: npt.NDArray[np.int8]) -> Bools:
    """bool[m]: does holdout h, in force at these times, cover these messages?"""
    known = (kind >= 0) & ((holdouts.classes[h] >> np.maximum(kind, 0).astype(np.int64)) & 1 == 1)
    own = holdouts.campaigns[holdouts.offsets[h] : holdouts.offsets[h + 1]]
    limited = np.isin(campaign, own) if len(own) else np.ones(len(at), np.bool_)
    return known & limited & (holdouts.dates[h, 0] <= at) & (at < holdouts.dates[h, 1])


@dataclass(frozen=True, slots=True)
class Triggers:
    """First would-sends: user u64[k] (ascending), at i64[k], held bool[k], place i64[k] among the candidates; before_log:
    users whose first lies before the log."""

    user: U64
    at: I64
    held: Bools
    place: I64
    before_log: int


def triggers(partition: Partition, holdout: Holdout, behaviour: Sequence[CompiledPolicy]) -> Triggers:
    """Of one holdout. behaviour: the policies of `asked.revisions`."""
    asked = partition.asked
    rows, logged, owner = asked.batch.candidates, asked.logged_candidates, asked.batch.owner
    at = asked.batch.requests["decided_at"][owner]
    would, held = np.zeros(len(owner), np.bool_), np.zeros(len(owner), np.bool_)
    earlier = np.zeros(len(asked.users), np.bool_)
    history_user = np.repeat(np.arange(len(asked.users)), np.diff(partition.start.offsets))
    entries = partition.start.entries
    counts = (entries["holdout"] == 0) | (entries["holdout"] == np.uint64(holdout.key))
    for index, policy in enumerate(behaviour):
        own = policy.holdouts
        if holdout.name not in own.ids:
            continue
        h = own.ids.index(holdout.name)
        mine = (asked.logged["policy"][owner] == index) & _covered(own, h, at, rows["campaign"], rows["message_class"])
        ghost = mine & logged["ghost"] & (logged["holdout"] == h)
        sent = mine & (logged["slot"] >= 0) & asked.logged["granted"][owner]
        sent[np.flatnonzero(sent)] &= ~_held_users(asked, owner[sent], own, h)
        would |= ghost | sent
        held |= ghost
        past = counts & _covered(own, h, entries["at"], entries["campaign"], entries["message_class"])
        earlier[history_user[past]] = True
    places = np.flatnonzero(would)
    users, first = np.unique(asked.owner[owner[places]], return_index=True)
    fresh = logged["ghost_first"][places[first]] & ~earlier[users]
    place = places[first[fresh]]
    return Triggers(asked.users[users[fresh]], at[place], held[place], place, int((~fresh).sum()))


def _held_users(asked: Opportunities, requests: I64, own: HoldoutArrays, h: int) -> Bools:
    out = np.empty(len(requests), np.bool_)
    _held(np.ascontiguousarray(asked.batch.requests["user"][requests]), h, own.salts, own.share, out)
    return out


def fill_trial(
    trial: Trial,
    partition: Partition,
    holdout: Holdout,
    behaviour: Sequence[CompiledPolicy],
    window: Window,
    *,
    outcome_us: int,
    log_start: int,
    log_end: int,
    heads: Sequence[str] = (),
    segments: Sequence[str] = (),
) -> tuple[dict[str, int], TrialSample]:
    """Add the users triggered within `window`; returns how many were left out, and whose history before is short, and the
    same users one by one. heads: as for `new_sample`. segments: only users in one of these when they were triggered."""
    found = triggers(partition, holdout, behaviour)
    inside = window.holds(found.at)
    counts = partition.asked.members(behaviour, segments)
    if counts is not None:
        inside &= counts[partition.asked.batch.owner[found.place]]
    rows = _rows(partition, found.user[inside], found.at[inside], found.held[inside], outcome_us, log_start, log_end)
    trial.update(rows.user, rows.arm, rows.outcome, rows.covariate[:, _BEFORE])
    mine = found.place[np.searchsorted(found.user, rows.user)]
    hour = (rows.at // 3_600_000_000 % 24).astype(np.float64)
    known = np.column_stack([np.log1p(rows.covariate[:, _BEFORE]), _scores(partition, mine, heads), hour])
    left = {"before_log": found.before_log, "too_young": rows.too_young, "short_history": rows.short_history}
    return left, TrialSample.of(rows.user, rows.arm == 1, known, rows.outcome)


def _scores(partition: Partition, places: I64, heads: Sequence[str]) -> F64:
    """f64[k, heads]: logged scores of these candidates; 0 where a group's have other names, or none."""
    batch = partition.asked.batch
    out = np.zeros((len(places), len(heads)))
    if tuple(batch.meta["heads"]) == tuple(heads) and len(heads):
        out[:] = batch.candidates["heads"][places]
    return out


def _rows(partition: Partition, user: U64, at: I64, held: Bools, outcome_us: int, log_start: int, log_end: int) -> TrialRows:
    users, times, kinds, amounts = _outcome_events(partition)
    return trial_rows(
        user, at, held, event_user=users, event_at=times, event_kind=kinds, event_amount=amounts, kinds=len(OUTCOMES),
        window_us=outcome_us, before_us=outcome_us, log_from=log_start, complete_to=log_end,
    )  # fmt: skip


def _outcome_events(partition: Partition) -> tuple[U64, I64, npt.NDArray[np.int32], F64]:
    """Users' events and sends as (user, at, place among OUTCOMES, amount)."""
    events, asked = partition.events, partition.asked
    user, at, kind = (_flat(events, name) for name in ("user", "ts", "type"))
    amount = np.nan_to_num(_flat(events, "amount").astype(np.float64))
    parts = [(user[kind == one], at[kind == one], place, None) for one, place in _KINDS.items()]
    bought = kind == EventType.conversion
    parts.append((user[bought], at[bought], 1, amount[bought]))
    owner = asked.batch.owner
    sent = np.flatnonzero((asked.logged_candidates["slot"] >= 0) & asked.logged["granted"][owner])
    sent_user, sent_at = (asked.batch.requests[name][owner[sent]] for name in ("user", "decided_at"))
    cost = np.nan_to_num(asked.batch.candidates["cost"][sent].astype(np.float64))
    parts += [(sent_user, sent_at, 4, None), (sent_user, sent_at, 5, cost)]
    return (
        np.concatenate([one[0] for one in parts]),
        np.concatenate([one[1] for one in parts]),
        np.concatenate([np.full(len(one[0]), one[2], np.int32) for one in parts]),
        np.concatenate([np.ones(len(one[0])) if one[3] is None else one[3] for one in parts]),
    )


def _flat(rows: pa.Table, name: str) -> npt.NDArray[np.generic]:
    out: npt.NDArray[np.generic] = rows[name].combine_chunks().to_numpy(zero_copy_only=False)
    return out
