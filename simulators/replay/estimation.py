"""From a partition to the rows of the estimators, and the suites that every partition fills."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import orjson

from serve_app.noise import hash_key, salt_of
from serve_app.policy.compile import CompiledPolicy
from serve_app.policy.document import parse_policy
from simulators.estimators import IPS, SNIPS, Cells, Grouping, Rows, Suite, checked_rows
from simulators.estimators.estimator import Estimator
from simulators.replay.analytic import OnLog, first_sends, logged_probability, on_log
from simulators.replay.counts import DAY_US, Window
from simulators.replay.opportunities import Opportunities
from simulators.replay.partition import Partition
from simulators.replay.rewards import METRICS, attributed
from simulators.replay.spec import CONTROL, Breakdown, ReplaySpec

__all__ = ["HALVES", "MAIN", "SHARES", "WINDOWS", "estimation_rows", "half_of", "new_suites", "update_suites"]

F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
U64 = npt.NDArray[np.uint64]

MAIN, WINDOWS, HALVES = "main", "windows", ("choose", "judge")
SHARES = {"W/4": 0.25, "W/2": 0.5, "W": 1.0}
"""Attribution windows that the sensitivity suite compares, as shares of the replay's own."""
_WINDOWED = ("clicks", "conversions", "revenue")
_HALF = salt_of("half of the users")


def half_of(users: U64) -> npt.NDArray[np.int64]:
    """i64[n]: 0 or 1, by a hash of the user."""
    return (hash_key(_HALF, users) >> np.uint64(63)).astype(np.int64)


def new_suites(spec: ReplaySpec) -> dict[str, Suite]:
    """Empty. The first target is the control: the policies that logged, estimated as if they were one."""
    names = (CONTROL, *(one.name for one in spec.targets))
    suites = {MAIN: Suite([*_plain(spec, names), *_broken_down(spec, names)])}
    if spec.halves:
        return suites | {half: Suite(_plain(spec, names)) for half in HALVES}
    metrics = [f"{metric} within {share}" for metric in _WINDOWED for share in SHARES]
    return suites | {WINDOWS: Suite([SNIPS(names, ["sends", *metrics])])}


def _plain(spec: ReplaySpec, names: Sequence[str]) -> list[Estimator]:
    estimators: list[Estimator] = [SNIPS(names, METRICS)] if spec.halves else [IPS(names, METRICS), SNIPS(names, METRICS)]
    cells = _cells(spec)
    if cells is not None:
        own = {name: one for name, one in zip(names[1:], cells[1:], strict=True) if one}
        estimators.append(Cells(names, METRICS, cell_p=cells[0], mixture=(CONTROL,), target_cell_p=own))
    return estimators


def _broken_down(spec: ReplaySpec, names: Sequence[str]) -> list[Estimator]:
    """Totals of a part are sums of weighted rows: IPS alone gives them per user."""
    of = {one.name: Grouping(one.name, one.labels, "time" if one.name == "day" else "choice") for one in spec.breakdowns}
    return [IPS(names, METRICS, grouping=one) for one in of.values()]


def _cells(spec: ReplaySpec) -> list[list[float]] | None:
    """Probabilities of the cells of the one policy that logged, and of each target (empty: none); None where it has none."""
    found = [parse_policy(orjson.loads(one.document)).cells for one in (*spec.behaviour, *spec.targets)]
    if len(spec.behaviour) != 1 or found[0] is None:
        return None
    return [[one.probability for one in cells.variants] if cells else [] for cells in found]


def update_suites(suites: Mapping[str, Suite], rows: Rows) -> None:
    """Add a partition's rows to every suite. Rewards stand in `rows` as METRICS, then by window."""
    main = replace(rows, reward=np.ascontiguousarray(rows.reward[:, : len(METRICS)]))
    suites[MAIN].update(main)
    if WINDOWS in suites:
        windowed = np.concatenate([rows.reward[:, :1], rows.reward[:, len(METRICS) :]], axis=1)
        suites[WINDOWS].update(replace(rows, reward=windowed))
    half = half_of(rows.user)
    for number, name in enumerate(HALVES):
        if name in suites:
            suites[name].update(_some(main, half == number))


def _some(rows: Rows, keep: npt.NDArray[np.bool_]) -> Rows:
    return Rows(
        rows.user[keep], rows.propensity[keep], rows.target[keep], rows.reward[keep], rows.send[keep],
        rows.target_send[keep], rows.unsupported[keep], rows.scale[keep],
        extra={name: values[keep] for name, values in rows.extra.items()}, excluded=rows.excluded,
    )  # fmt: skip


def estimation_rows(
    partition: Partition, spec: ReplaySpec, targets: Sequence[CompiledPolicy], behaviour: Sequence[CompiledPolicy]
) -> Rows:
    """Rows of the decisions in the window that are old enough for their rewards to be complete at the log's end. Rewards:
    METRICS, then each windowed one within each of SHARES (where the spec wants them)."""
    asked = partition.asked
    at = asked.batch.requests["decided_at"]
    chosen = np.flatnonzero(Window(spec.start, spec.end).holds(at) & (at + spec.attribution_us <= spec.log_end))
    logged = logged_probability(asked)
    by_cells = len(behaviour) == 1 and len(spec.behaviour) == 1 and len(behaviour[0].trials.cell_p) > 0
    looked = on_log(partition, [*(behaviour if by_cells else ()), *targets], behaviour)
    found = [one.own for one in looked[len(looked) - len(targets) :]]
    reward = attributed(asked, partition.events, spec.attribution_us)

    def column(control: F64, name: str) -> F64:
        return np.stack([control, *(getattr(one, name) for one in found)], axis=1)[chosen]

    every = reward if spec.halves else np.concatenate([reward, _windowed(partition, spec, reward)], axis=1)
    return checked_rows(
        asked.batch.requests["user"][chosen],
        logged[chosen],
        column(logged, "chosen"),
        every[chosen],
        send=(reward[chosen, 0] > 0).astype(np.float64),
        target_send=column(1.0 - asked.logged["p_none"], "send"),
        unsupported=column(np.zeros(len(asked)), "unsupported"),
        row_id=asked.batch.requests["request_id"][chosen],
        groups={one.name: _codes(asked, one)[chosen] for one in spec.breakdowns},
        extra={name: values[chosen] for name, values in _cell_columns(asked, spec, targets, behaviour[0], looked).items()}
        if by_cells
        else {},
    )


def _cell_columns(
    asked: Opportunities, spec: ReplaySpec, targets: Sequence[CompiledPolicy], behaviour: CompiledPolicy, looked: list[OnLog]
) -> dict[str, npt.NDArray[np.generic]]:
    """What the estimator by cells reads. looked: of the policy that logged, then of the targets."""
    out: dict[str, npt.NDArray[np.generic]] = {
        "epoch": asked.assigned(behaviour).epoch.astype(np.int64),
        "cell_probability": looked[0].by_cell,
    }
    for target, policy, one in zip(spec.targets, targets, looked[1:], strict=True):
        if len(policy.trials.cell_p):
            out[f"cells of {target.name}"] = one.by_cell
    return out


def _windowed(partition: Partition, spec: ReplaySpec, whole: F64) -> F64:
    places = [METRICS.index(one) for one in _WINDOWED]
    by_share = [
        whole if share == 1 else attributed(partition.asked, partition.events, int(share * spec.attribution_us))
        for share in SHARES.values()
    ]
    return np.stack([one[:, place] for place in places for one in by_share], axis=1)


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
