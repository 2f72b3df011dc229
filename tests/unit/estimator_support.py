"""Rows for tests of estimators, and one of each estimator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from simulators.estimators import (
    DM,
    DR,
    IIPS,
    IPS,
    MIPS,
    RIPS,
    SNDR,
    SNIPS,
    CascadeDR,
    Cells,
    DRos,
    Estimator,
    Grouping,
    RejectionReplay,
    Rows,
    SwitchDR,
    WindowedIPS,
    checked_rows,
)

POLICIES, METRICS = ("quiet", "bold"), ("click", "revenue")
CELL_P = (0.6, 0.4)
DAYS = Grouping("day", ("mon", "tue", "wed"), "time")

FACTORIES: dict[str, Callable[[], Estimator]] = {
    "ips": lambda: IPS(POLICIES, METRICS, replicates=5),
    "snips": lambda: SNIPS(POLICIES, METRICS),
    "snips by day": lambda: SNIPS(POLICIES, METRICS, grouping=DAYS),
    "dm": lambda: DM(POLICIES, METRICS),
    "dr": lambda: DR(POLICIES, METRICS),
    "sndr": lambda: SNDR(POLICIES, METRICS),
    "switch-dr": lambda: SwitchDR(POLICIES, METRICS),
    "dros": lambda: DRos(POLICIES, METRICS),
    "rejection": lambda: RejectionReplay(POLICIES, METRICS, bound=10.0),
    "cells": lambda: Cells(POLICIES, METRICS, cell_p=CELL_P),
    "rips": lambda: RIPS(POLICIES, METRICS),
    "cascade-dr": lambda: CascadeDR(POLICIES, METRICS),
    "iips": lambda: IIPS(POLICIES, METRICS, draws=100),
    "mips": lambda: MIPS(POLICIES, METRICS),
    "windowed-ips": lambda: WindowedIPS(POLICIES, METRICS, hours=24.0),
}


def columns(seed: int, users: int, most: int = 6) -> dict[str, Any]:
    """Random columns of rows, as `checked_rows` takes them; every estimator finds what it needs."""
    rng = np.random.default_rng(seed)
    count = rng.integers(1, most + 1, users)
    user = np.repeat(np.sort(rng.choice(2**40, users, replace=False)), count).astype(np.uint64)
    n, place = len(user), np.concatenate([np.arange(one) for one in count]) if users else np.empty(0, np.int64)
    propensity = rng.uniform(0.1, 1.0, n)
    target = rng.uniform(0.0, 1.0, (n, 2))
    send = (rng.random(n) < 0.6).astype(float)
    click = send * (rng.random(n) < 0.4)
    return {
        "user": user,
        "propensity": propensity,
        "target": target,
        "reward": np.stack([click, click * rng.lognormal(size=n)], axis=1),
        "send": send,
        "target_send": rng.uniform(0.3, 0.9, (n, 2)),
        "unsupported": np.zeros((n, 2)),
        "q_logged": rng.uniform(0, 0.5, (n, 2)),
        "q_target": rng.uniform(0, 0.5, (n, 2, 2)),
        "groups": {"day": rng.integers(-1, 3, n)},
        "extra": {
            "epoch": place // 2,
            "cell_probability": np.stack([propensity, rng.uniform(0.1, 1.0, n)], axis=1),
            "list": place // 3,
            "at": place * 8 * 3_600_000_000,
            "marginal_propensity": rng.uniform(0.1, 1, n),
            "marginal_target": rng.uniform(0.1, 1, (n, 2)),
            "attribute_propensity": rng.uniform(0.2, 1, n),
            "attribute_target": rng.uniform(0, 1, (n, 2)),
        },
    }


def rows_of(found: dict[str, Any], keep: Sequence[int] | slice | None = None, **settings: Any) -> Rows:
    """Rows of the columns, of those rows that `keep` takes."""
    if keep is not None:
        found = {
            name: {key: column[keep] for key, column in value.items()} if isinstance(value, dict) else value[keep]
            for name, value in found.items()
        }
    return checked_rows(**found, **settings)


def user_cuts(found: dict[str, Any], cuts: Sequence[int]) -> list[slice]:
    """Slices of whole users, cut before the users numbered `cuts`."""
    starts = np.flatnonzero(np.diff(found["user"], prepend=found["user"][:1] + 1))
    edges = [0, *sorted({int(starts[c]) for c in cuts if 0 < c < len(starts)}), len(found["user"])]
    return [slice(a, b) for a, b in pairwise(edges)]
