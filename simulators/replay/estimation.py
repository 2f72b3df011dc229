"""From a partition to the rows of the estimators, and the suite that every partition fills."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from serve_app.policy.compile import CompiledPolicy
from simulators.estimators import IPS, SNIPS, Cells, Rows, Suite, checked_rows
from simulators.estimators.estimator import Estimator
from simulators.replay.analytic import by_cell, logged_probability, probabilities
from simulators.replay.counts import Window
from simulators.replay.partition import Partition
from simulators.replay.rewards import METRICS, attributed
from simulators.replay.spec import CONTROL

__all__ = ["estimation_rows", "new_suite"]

F64 = npt.NDArray[np.float64]


def new_suite(targets: Sequence[str], cells: Sequence[Sequence[float]] | None) -> Suite:
    """Empty. The first target is the control: the policies that logged, estimated as if they were one. cells: probabilities
    of the cells of the logged policy and of each target (empty: none); None where the logged policy has none, or several
    policies logged."""
    names = (CONTROL, *targets)
    estimators: list[Estimator] = [IPS(names, METRICS), SNIPS(names, METRICS)]
    if cells is not None:
        own = {name: one for name, one in zip(targets, cells[1:], strict=True) if one}
        estimators.append(Cells(names, METRICS, cell_p=cells[0], mixture=(CONTROL,), target_cell_p=own))
    return Suite(estimators)


def estimation_rows(
    partition: Partition,
    names: Sequence[str],
    targets: Sequence[CompiledPolicy],
    behaviour: Sequence[CompiledPolicy],
    window: Window,
    *,
    attribution_us: int,
    log_end: int,
) -> Rows:
    """Rows of the decisions in the window that are old enough for their rewards to be complete at `log_end`."""
    asked = partition.asked
    at = asked.batch.requests["decided_at"]
    chosen = np.flatnonzero(window.holds(at) & (at + attribution_us <= log_end))
    logged = logged_probability(asked)
    found = [probabilities(partition, one, behaviour) for one in targets]
    reward = attributed(asked, partition.events, attribution_us)

    def column(control: F64, name: str) -> F64:
        return np.stack([control, *(getattr(one, name) for one in found)], axis=1)[chosen]

    extra: dict[str, npt.NDArray[np.generic]] = {}
    if len(behaviour) == 1 and len(behaviour[0].trials.cell_p):
        extra["epoch"] = asked.assigned(behaviour[0])["epoch"].astype(np.int64)[chosen]
        extra["cell_probability"] = by_cell(partition, behaviour[0], behaviour)[chosen]
        for name, one in zip(names, targets, strict=True):
            if len(one.trials.cell_p):
                extra[f"cells of {name}"] = by_cell(partition, one, behaviour)[chosen]
    return checked_rows(
        asked.batch.requests["user"][chosen],
        logged[chosen],
        column(logged, "chosen"),
        reward[chosen],
        send=(reward[chosen, 0] > 0).astype(np.float64),
        target_send=column(1.0 - asked.logged["p_none"], "send"),
        unsupported=column(np.zeros(len(asked)), "unsupported"),
        row_id=asked.batch.requests["request_id"][chosen],
        extra=extra,
    )
