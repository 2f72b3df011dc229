"""From lists to the rows of the estimators: how probable a target makes what was shown, slot by slot.

The probability of a slot is conditional on the slots above it as they were logged, so a list's is the product of its slots'.
RIPS and cascade-DR weigh a slot's reward by the slots down to it; IPS and SNIPS weigh a list's by the whole list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.noise import hash_key, salt_of
from simulators.estimators import IIPS, IPS, RIPS, SNIPS, CascadeDR, Rows, Suite, checked_rows
from simulators.estimators.iips import simulated_marginals
from simulators.estimators.outcome_model import OutcomeModel
from simulators.replay.items.logged import Lists
from simulators.replay.items.making import Made
from simulators.replay.items.outcomes import features_of
from simulators.replay.items.spec import METRICS
from simulators.replay.spec import CONTROL

__all__ = ["SLOTS", "WHOLE", "Columns", "Looked", "looked_at", "new_suites", "slot_columns", "update_suites"]

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Columns = dict[str, npt.NDArray[Any]]

SLOTS, WHOLE = "slots", "lists"
_CHUNK = 1_000  # lists whose distributions are held at a time
_DRAWING = salt_of("drawings of a list")


def new_suites(targets: Sequence[str], drawings: int) -> dict[str, Suite]:
    """Empty. The first target is the control: the policies that logged, estimated as if they were one."""
    names = (CONTROL, *targets)
    slots = [RIPS(names, METRICS), CascadeDR(names, METRICS)]
    marginal = [IIPS(names, METRICS, draws=drawings)] if drawings else []
    return {SLOTS: Suite([*slots, *marginal]), WHOLE: Suite([IPS(names, METRICS), SNIPS(names, METRICS)])}


@dataclass(frozen=True)
class Looked:
    """Of s shown slots, by list and slot, under P targets. target, unsupported f64[s, P]: the chance of what was shown, and
    the mass on what the log could not show; q_target f64[s, P, M]: the model's mean over the target's choices; q_logged
    f64[s, M]."""

    target: F64
    unsupported: F64
    q_target: F64
    q_logged: F64


def looked_at(lists: Lists, behaviour: Made, targets: Sequence[Made], model: OutcomeModel, heads: Sequence[str]) -> Looked:
    """Along the logged prefixes, a chunk of lists at a time."""
    shown = lists.shown()
    follow = lists.candidates["slot"]
    tables = [np.nan_to_num(one.select(follow=follow).p_slot[shown]) for one in targets]
    unsupported = np.zeros((len(shown), len(targets)))
    q_target = np.zeros((len(shown), len(targets), len(METRICS)))
    slot = follow[shown].astype(np.int64)
    q_logged = model.predict(lists.user[lists.owner[shown]], features_of(lists, shown, slot, heads))
    done = 0
    for begin in range(0, len(lists), _CHUNK):
        rows = np.arange(begin, min(begin + _CHUNK, len(lists)))
        done += _chunk(lists.take(rows), rows, behaviour, targets, (model, heads), unsupported[done:], q_target[done:])
    return Looked(np.stack(tables, axis=1) if tables else np.empty((len(shown), 0)), unsupported, q_target, q_logged)


def _chunk(
    lists: Lists, rows: I64, behaviour: Made, targets: Sequence[Made], by: tuple[OutcomeModel, Sequence[str]],
    unsupported: F64, q_target: F64,
) -> int:  # fmt: skip
    """Fill the next slots; returns how many they are."""
    model, heads = by
    follow = lists.candidates["slot"]
    length = np.bincount(lists.owner[follow >= 0], minlength=len(lists))
    logged, *theirs = (_tables(one, rows, follow) for one in (behaviour, *targets))
    size = np.diff(lists.offsets)
    candidate = [np.tile(np.arange(b, b + m), k) for b, m, k in zip(lists.offsets[:-1], size, length, strict=True)]
    position = [np.repeat(np.arange(k), m) for m, k in zip(size, length, strict=True)]
    every, place = np.concatenate(candidate), np.concatenate(position)
    users = np.repeat(lists.user, size * length)
    predicted = model.predict(users, features_of(lists, every, place, heads))
    at = done = 0
    for row, (m, k) in enumerate(zip(size.tolist(), length.tolist(), strict=True)):
        q = predicted[at : at + m * k].reshape(k, m, len(METRICS))
        for p, tables in enumerate(theirs):
            mass = tables[row][:k]
            made = len(mass)
            unsupported[done : done + made, p] = np.where(logged[row][:made] == 0.0, mass, 0.0).sum(axis=1)
            q_target[done : done + made, p] = (mass[:, :, None] * q[:made]).sum(axis=1)
        at, done = at + m * k, done + k
    return done


def _tables(one: Made, rows: I64, follow: npt.NDArray[np.int32]) -> list[F64]:
    """f64[slots, candidates] of each list `rows`, along what was shown; fewer slots where the policy ends a list before."""
    found = one.of(rows).select(follow=follow, distributions=True).distributions
    assert found is not None
    return found


def slot_columns(lists: Lists, looked: Looked, reward: F64, drawn: tuple[Made, Sequence[Made], int]) -> Columns:
    """Columns of the estimators' rows, one a shown slot. reward f64[s, M]; drawn: (behaviour, targets, drawings)."""
    shown = lists.shown()
    list_of, p = lists.owner[shown], lists.candidates["p_slot"][shown]
    ratio = np.where(p[:, None] > 0, looked.target / np.where(p > 0, p, 1.0)[:, None], 0.0)
    first = np.concatenate([[True], list_of[1:] != list_of[:-1]]) if len(list_of) else np.empty(0, np.bool_)
    return {
        "user": lists.user[list_of],
        "list": lists.requests["request_id"][list_of],
        "propensity": p,
        "target": looked.target,
        "reward": reward,
        "unsupported": _lost_so_far(looked.unsupported, ratio, first),
        "log_rate": lists.requests["log_rate"][list_of],
        "q_logged": looked.q_logged,
        "q_target": looked.q_target,
        **(_marginals(lists, *drawn) if drawn[2] else {}),
    }


def update_suites(suites: Mapping[str, Suite], parts: Sequence[Columns]) -> None:
    """Add `slot_columns` of all parts of one surface and bucket group: all rows of a user come together."""
    if not parts:
        return
    whole = {name: np.concatenate([one[name] for one in parts]) for name in parts[0]}
    order = np.argsort(whole["user"], kind="stable")
    whole = {name: values[order] for name, values in whole.items()}
    names = ("list", "marginal_propensity", "marginal_target")
    extra = {name: whole[name] for name in names if name in whole}
    rows = checked_rows(
        whole["user"], whole["propensity"], whole["target"], whole["reward"], unsupported=whole["unsupported"],
        log_rate=whole["log_rate"], q_logged=whole["q_logged"], q_target=whole["q_target"], extra=extra,
    )  # fmt: skip
    suites[SLOTS].update(rows)
    suites[WHOLE].update(_whole_lists(whole))


def _whole_lists(slots: Columns) -> Rows:
    """One row a list that showed anything: products over its slots, sums of their rewards."""
    user, lists, p, target, reward = (slots[name] for name in ("user", "list", "propensity", "target", "reward"))
    if not len(user):
        return checked_rows(user, p, target, reward)
    begin = np.flatnonzero(np.concatenate([[True], (lists[1:] != lists[:-1]) | (user[1:] != user[:-1])]))
    last = np.append(begin[1:], len(user)) - 1
    return checked_rows(
        user[begin], np.multiply.reduceat(p, begin), np.multiply.reduceat(target, begin), np.add.reduceat(reward, begin),
        unsupported=slots["unsupported"][last], log_rate=slots["log_rate"][begin],
    )  # fmt: skip


def _lost_so_far(unsupported: F64, ratio: F64, first: npt.NDArray[np.bool_]) -> F64:
    """f64[s, P]: of the target's lists down to each slot, the mass that the log could not show, on the logged prefix."""
    out = np.empty_like(unsupported)
    weight, lost = np.ones(unsupported.shape[1]), np.zeros(unsupported.shape[1])
    for row in range(len(out)):
        if first[row]:
            weight, lost = np.ones_like(weight), np.zeros_like(lost)
        lost = lost + weight * unsupported[row]
        weight = weight * ratio[row]
        out[row] = np.minimum(lost, 1.0)
    return out


def _marginals(lists: Lists, behaviour: Made, targets: Sequence[Made], drawings: int) -> Columns:
    """Shares of drawings in which the shown thing stands in its slot, under the log's policy and each target."""
    shown = lists.shown()
    slot = lists.candidates["slot"][shown]

    def of(one: Made, number: int) -> F64:
        def draw(i: int) -> npt.NDArray[np.int32]:
            return one.with_noise(hash_key(_DRAWING, lists.requests["request_id"], i, number)).select().slot

        return simulated_marginals(draw, shown, slot, drawings)

    return {
        "marginal_propensity": of(behaviour, 0),
        "marginal_target": np.stack([of(one, 1 + p) for p, one in enumerate(targets)], axis=1),
    }
