"""From a partition to the rows of the estimators, and the suites that every partition fills."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt
import orjson

from serve_app.kernels import kernel
from serve_app.noise import hash_key, salt_of
from serve_app.policy.compile import CompiledPolicy
from serve_app.policy.document import parse_policy
from simulators.estimators import DR, IPS, SNDR, SNIPS, Cells, Grouping, Rows, Suite, WindowedIPS, checked_rows
from simulators.estimators.estimator import Estimator
from simulators.replay.analytic import OnLog, Support, first_sends, logged_probability
from simulators.replay.counts import DAY_US, Window
from simulators.replay.opportunities import Opportunities
from simulators.replay.outcomes import Predicted, predictions
from simulators.replay.partition import Partition
from simulators.replay.rewards import METRICS, attributed_within
from simulators.replay.roll_out import ROLL_OUT, RollOuts, new_roll_out
from simulators.replay.spec import CONTROL, Breakdown, ReplaySpec
from simulators.replay.stream import stream_on_log

__all__ = [
    "HALVES", "MAIN", "SHARES", "WINDOWS", "estimation_rows", "half_of", "metrics_of", "new_suites", "segments_of",
    "update_suites",
]  # fmt: skip

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
U64 = npt.NDArray[np.uint64]

MAIN, WINDOWS, HALVES = "main", "windows", ("choose", "judge")
SHARES = {"W/4": 0.25, "W/2": 0.5, "W": 1.0}
"""Attribution windows that the sensitivity suite compares, as shares of the replay's own."""
REPLICATES = 200
"""Of the user Poisson bootstrap."""
_WINDOWED = ("clicks", "conversions", "revenue")
_MOST_SEGMENTS = 8
_HALF = salt_of("half of the users")


def half_of(users: U64) -> npt.NDArray[np.int64]:
    """i64[n]: 0 or 1, by a hash of the user."""
    return (hash_key(_HALF, users) >> np.uint64(63)).astype(np.int64)


def metrics_of(spec: ReplaySpec) -> tuple[str, ...]:
    """METRICS, and `reward` where the spec gives weights for it."""
    return (*METRICS, "reward") if spec.reward else METRICS


def segments_of(spec: ReplaySpec) -> tuple[str, ...]:
    """Segments that all logging policies define alike: by whose members estimates are broken down."""
    found = [{one.id: one for one in parse_policy(orjson.loads(two.document)).segments} for two in spec.behaviour]
    alike = [name for name, one in found[0].items() if all(other.get(name) == one for other in found)] if found else []
    return tuple(alike[:_MOST_SEGMENTS])


def new_suites(spec: ReplaySpec) -> dict[str, Suite]:
    """Empty; none where no estimator is asked for. The first target is the control: the policies that logged, estimated as
    if they were one."""
    names = (CONTROL, *(one.name for one in spec.targets))
    if not spec.estimators:
        return {}
    if spec.halves:
        return {name: Suite(_for_sweeps(spec, names)) for name in (MAIN, *HALVES)}
    suites = {MAIN: Suite([*_plain(spec, names), *_broken_down(spec, names)])}
    if RollOuts.wanted(spec):
        suites[ROLL_OUT] = new_roll_out(spec)
    if "windows" not in spec.estimators:
        return suites
    metrics = [f"{metric} within {share}" for metric in _WINDOWED for share in SHARES]
    return suites | {WINDOWS: Suite([SNIPS(names, ["sends", *metrics])])}


def _for_sweeps(spec: ReplaySpec, names: Sequence[str]) -> list[Estimator]:
    return [SNIPS(names, metrics_of(spec)), *_cells(spec, names)]


def _plain(spec: ReplaySpec, names: Sequence[str]) -> list[Estimator]:
    metrics, hours = metrics_of(spec), spec.attribution_us / 3.6e9
    replicates = REPLICATES if "bootstrap" in spec.estimators else 0
    wanted: dict[str, list[Estimator]] = {
        "ips": [IPS(names, metrics)],
        "snips": [SNIPS(names, metrics, replicates=replicates)],
        "cells": _cells(spec, names),
        "dr": [DR(names, metrics)] if spec.outcome else [],
        "sndr": [SNDR(names, metrics)] if spec.outcome else [],
        "windowed-ips": [WindowedIPS(names, metrics, hours=one * hours) for one in (1, 2)],
    }
    return [one for name, some in wanted.items() if name in spec.estimators for one in some]


def _broken_down(spec: ReplaySpec, names: Sequence[str]) -> list[Estimator]:
    """Totals of a part are sums of weighted rows: IPS alone gives them per user."""
    if "breakdowns" not in spec.estimators:
        return []
    of = [Grouping(one.name, one.labels, "time" if one.name == "day" else "choice") for one in spec.breakdowns]
    segments = [Grouping(f"segment {one}", ("members", "others"), "user") for one in segments_of(spec)]
    return [IPS(names, metrics_of(spec), grouping=one) for one in (*of, *segments)]


def _cells(spec: ReplaySpec, names: Sequence[str]) -> list[Estimator]:
    """None where what logged was not one policy with cells."""
    found = [parse_policy(orjson.loads(one.document)).cells for one in (*spec.behaviour, *spec.targets)]
    if len(spec.behaviour) != 1 or found[0] is None:
        return []
    p = [[one.probability for one in cells.variants] if cells else [] for cells in found]
    own = {name: one for name, one in zip(names[1:], p[1:], strict=True) if one}
    return [Cells(names, metrics_of(spec), cell_p=p[0], mixture=(CONTROL,), target_cell_p=own)]


def update_suites(suites: Mapping[str, Suite], rows: Rows) -> None:
    """Add a partition's rows to every suite. The windows' rewards stand in the extra column `windowed`."""
    suites[MAIN].update(rows)
    if WINDOWS in suites:
        windowed = np.concatenate([rows.reward[:, :1], rows.extra["windowed"]], axis=1)
        suites[WINDOWS].update(replace(rows, reward=windowed, q_logged=None, q_target=None, groups={}, extra={}))
    half = half_of(rows.user) if HALVES[0] in suites else None
    for number, name in enumerate(HALVES):
        if half is not None:
            suites[name].update(rows.where(half == number))


def _looked(
    partition: Partition,
    own: Sequence[CompiledPolicy],
    targets: Sequence[CompiledPolicy],
    behaviour: Sequence[CompiledPolicy],
    *,
    choices: bool,
) -> list[OnLog]:
    """Of the policies that logged (own), on the logged scores, and of the targets, on theirs; in one walk where these are
    the same. Where there are own, the targets' mass on choices that none of their cells could make is kept."""
    support = Support.nothing(partition.asked) if own else None
    look = partial(stream_on_log, behaviour=behaviour, choices=choices, support=support)
    if partition.asked.rescored is None:
        return look(partition, [*own, *targets], teaching=len(own))
    first = look(partition, own, teaching=len(own))
    return [*first, *look(partition.with_asked(partition.asked.scored()), targets)]


def estimation_rows(
    partition: Partition, spec: ReplaySpec, targets: Sequence[CompiledPolicy], behaviour: Sequence[CompiledPolicy]
) -> Rows:
    """Rows of the decisions in the window that are old enough for their rewards to be complete at the log's end. Rewards:
    `metrics_of`."""
    asked = partition.asked
    at = asked.batch.requests["decided_at"]
    old_enough = Window(spec.start, spec.end).holds(at) & (at + spec.attribution_us <= spec.log_end)
    counts = asked.members(behaviour, spec.segments)
    chosen = np.flatnonzero(old_enough if counts is None else old_enough & counts)
    logged = logged_probability(asked)
    by_cells = len(behaviour) == 1 and len(spec.behaviour) == 1 and len(behaviour[0].trials.cell_p) > 0
    looked = _looked(partition, behaviour if by_cells else (), targets, behaviour, choices=spec.outcome is not None)
    found = looked[len(looked) - len(targets) :]
    within = attributed_within(asked, partition.events, [int(share * spec.attribution_us) for share in SHARES.values()])

    def column(control: F64, name: str) -> F64:
        return np.stack([control[chosen], *(getattr(one.own, name)[chosen] for one in found)], axis=1)

    extra: dict[str, npt.NDArray[np.generic]] = {}
    if by_cells:
        extra |= _cell_columns(asked, spec, targets, behaviour[0], looked)
    if "windowed-ips" in spec.estimators:
        extra["at"] = _not_decreasing(asked.owner, at)
    if "windows" in spec.estimators and not spec.halves:
        extra["windowed"] = np.stack([within[:, w, METRICS.index(m)] for m in _WINDOWED for w in range(len(SHARES))], axis=1)
    q_logged, q_target = _modelled(partition, spec, chosen, found)
    reward = within[chosen, -1]
    return checked_rows(
        asked.batch.requests["user"][chosen],
        logged[chosen],
        column(logged, "chosen"),
        with_weighted(reward, spec),
        send=(reward[:, 0] > 0).astype(np.float64),
        target_send=column(1.0 - asked.logged["p_none"], "send"),
        unsupported=column(np.zeros(len(asked)), "unsupported"),
        q_logged=q_logged,
        q_target=q_target,
        row_id=asked.batch.requests["request_id"][chosen],
        not_reproduced=~_explained(looked[0].by_cell, logged)[chosen] if by_cells else None,
        groups={name: codes[chosen] for name, codes in _all_codes(asked, spec).items()},
        extra={name: values[chosen] for name, values in extra.items()},
    )


def with_weighted(values: F64, spec: ReplaySpec) -> F64:
    """f64[..., METRICS] with the weighted sum as one more metric, where the spec asks for it."""
    if not spec.reward:
        return np.ascontiguousarray(values)
    total = np.zeros(values.shape[:-1])
    for name, weight in spec.reward:
        total += weight * values[..., METRICS.index(name)]
    return np.concatenate([values, total[..., None]], axis=-1)


def _modelled(partition: Partition, spec: ReplaySpec, chosen: I64, found: Sequence[OnLog]) -> tuple[F64 | None, F64 | None]:
    """What the outcome model expects; nothing without one. A send is one of `sends`, for certain."""
    if spec.outcome is None:
        return None, None
    choices = [partition.asked.logged_candidates["p_choice"], *(one.choices for one in found if one.choices is not None)]
    q_logged, q_target = predictions(Predicted(partition, spec.outcome), partition, chosen, choices)
    return with_weighted(q_logged, spec), with_weighted(q_target, spec)


@kernel
def _rise(owner: I64, at: I64, out: I64) -> None:
    for row in range(len(owner)):
        out[row] = max(at[row], out[row - 1]) if row and owner[row] == owner[row - 1] else at[row]


def _not_decreasing(owner: I64, at: I64) -> I64:
    """i64[n]: times of a user's requests in the ledger's order, a clock that went back held still."""
    out = np.empty(len(at), np.int64)
    _rise(owner, at, out)
    return out


def _explained(by_cell: F64, logged: F64) -> npt.NDArray[np.bool_]:
    """bool[n]: some cell gives what was logged its probability. Where none does, the log's own policy did not reproduce it
    (parity says so), and the weight of its epoch would mean nothing."""
    return np.asarray(by_cell.max(axis=1) >= logged * (1 - 1e-9))


def _cell_columns(
    asked: Opportunities, spec: ReplaySpec, targets: Sequence[CompiledPolicy], behaviour: CompiledPolicy, looked: list[OnLog]
) -> dict[str, npt.NDArray[np.generic]]:
    """What the estimator by cells reads. looked: of the policy that logged, then of the targets."""
    out: dict[str, npt.NDArray[np.generic]] = {
        "epoch": asked.assigned(behaviour).epoch.astype(np.int64),
        "cell_probability": looked[0].by_cell,
    }
    unsupported = np.zeros((len(asked), 1 + len(targets)))
    for p, (target, policy, one) in enumerate(zip(spec.targets, targets, looked[1:], strict=True), 1):
        if one.beyond is None:
            raise ValueError("the targets' mass on choices that no cell could make was not kept")
        if len(policy.trials.cell_p):
            out[f"cells of {target.name}"], out[f"unsupported of {target.name}"] = one.by_cell, one.beyond
        else:
            unsupported[:, p] = one.beyond[:, 0]
    return out | {"cell_unsupported": unsupported}


def _all_codes(asked: Opportunities, spec: ReplaySpec) -> dict[str, I32]:
    """i32[n] of each breakdown."""
    if "breakdowns" not in spec.estimators or spec.halves:
        return {}
    found = {one.name: _codes(asked, one) for one in spec.breakdowns}
    for name in segments_of(spec):
        found[f"segment {name}"] = _segment_codes(asked, spec, name)
    return found


def _segment_codes(asked: Opportunities, spec: ReplaySpec, name: str) -> I32:
    """i32[n]: 0 of a member, 1 of another, as the policy that logged had it."""
    documents = {one.name: one.document for one in spec.behaviour}
    bits, pinned = asked.batch.requests["segments"], asked.logged["policy"]
    out = np.full(len(asked), -1, np.int32)
    for index, revision in enumerate(asked.revisions):
        places = [one.id for one in parse_policy(orjson.loads(documents[revision])).segments]
        mine = pinned == index
        out[mine] = 1 - ((bits[mine] >> np.uint64(places.index(name))) & np.uint64(1)).astype(np.int32)
    return out


def _codes(asked: Opportunities, by: Breakdown) -> I32:
    """i32[n]: the group of each logged request; -1: none."""
    keys = np.array(by.keys, np.uint64)
    if by.name == "day":
        values = (asked.batch.requests["decided_at"] // DAY_US).astype(np.uint64)
        sent = np.ones(len(asked), np.bool_)
    else:
        first = first_sends(asked)
        sent = first >= 0
        values = np.zeros(len(asked), np.uint64)
        values[sent] = asked.batch.candidates[by.name][first[sent]].astype(np.uint64)
    order = np.argsort(keys)
    place = order[np.minimum(np.searchsorted(keys[order], values), len(keys) - 1)]
    return np.where(sent & (keys[place] == values), place, -1).astype(np.int32)
