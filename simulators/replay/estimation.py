"""Suites of estimators that every partition fills."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import orjson

from serve_app.noise import hash_key, salt_of
from serve_app.policy.document import parse_policy
from simulators.estimators import DR, IPS, SNDR, SNIPS, Cells, Grouping, Rows, Suite, WindowedIPS
from simulators.estimators.estimator import Estimator
from simulators.replay.rewards import METRICS
from simulators.replay.roll_out import ROLL_OUT, RollOuts, new_roll_out
from simulators.replay.spec import CONTROL, ReplaySpec

__all__ = [
    "HALVES", "MAIN", "SHARES", "WINDOWED", "WINDOWS", "half_of", "metrics_of", "new_suites", "segments_of", "update_suites",
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
WINDOWED = ("clicks", "conversions", "revenue")
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
    metrics = [f"{metric} within {share}" for metric in WINDOWED for share in SHARES]
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
    for block in rows.blocks() if WINDOWS in suites else [rows]:
        suites[MAIN].update(block)
        if WINDOWS in suites:
            own = replace(block, reward=block.extra["windowed"], q_logged=None, q_target=None, groups={}, extra={})
            vars(own).update(weight=block.weight, trust_factors=block.trust_factors)  # the same, worked out before
            suites[WINDOWS].update(own)
    half = half_of(rows.user) if HALVES[0] in suites else None
    for number, name in enumerate(HALVES):
        if half is not None:
            suites[name].update(rows.where(half == number))
