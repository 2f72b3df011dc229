"""Cells: whole user-epochs weighted against the mixture of cells. The way caps, quiet hours and fatigue are estimated.

In each epoch a user lives under one cell, a variant of the rules drawn with known probability. What is logged of an epoch is
therefore a draw from the mixture ``sum over c of p_c * prod over t of mu_c(a_t | h_t)``, and the weight of the epoch is the
target's probability of the whole sequence over the mixture's: the balance heuristic of multiple importance sampling (Veach
and Guibas 1995; Agarwal et al. 2017, "Effective evaluation using logged bandit feedback from multiple loggers").
If the target is one of the cells, no weight exceeds 1 / p_c, however long the epoch: per-decision weights fall as
epsilon**k, these do not. Epochs of other cells count where what happened in them is what the target would have done.

What it estimates: an epoch under the target, begun in the state that the log's users were in. The epoch must be no shorter
than the longest window of the rules. Carry-over across epochs (fatigue) is that of the logged mixture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from serve_app.errors import InvalidInput
from serve_app.kernels import inlined, kernel
from simulators.estimators.estimator import Column, Estimator, Grouping, Units
from simulators.estimators.linear import Linear, monomial
from simulators.estimators.rows import Rows
from simulators.estimators.verdicts import Per

__all__ = ["Cells"]

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

_HUGE = 1e100


@inlined
def _mixed(ratio_cell: F64, cell_p: F64) -> float:
    out = 0.0
    for c in range(len(cell_p)):
        out += cell_p[c] * ratio_cell[c]
    return out


@kernel
def _of_epochs(
    first: I64, last: I64, propensity: F64, targets: F64, target_p: F64, target_of: I64, by_cell: F64, cell_p: F64,
    reward: F64, send: F64, lost: F64, weight: F64, sums: F64, live: F64, unsupported: F64,
) -> None:  # fmt: skip
    """One row an epoch: weight f64[e, 1 + P], sums f64[e, 2 + M] (one, sends, rewards), live f64[e], unsupported
    f64[e, P]. targets f64[n, T]: probabilities under each target's cells, drawn with target_p f64[T], of target target_of
    i64[T]; lost f64[n, T]: their mass on what no cell could choose.
    """
    columns, cells, metrics = targets.shape[1], by_cell.shape[1], reward.shape[1]
    for e in range(len(first)):
        ratio_target, ratio_cell = np.ones(columns), np.ones(cells)
        sums[e, 0], live[e], unsupported[e, :] = 1.0, 0.0, 0.0
        for row in range(first[e], last[e]):
            top = 0.0
            for t in range(columns):
                if lost[row, t] > 0.0 and ratio_target[t] > 0.0:
                    before = target_p[t] * (ratio_target[t] / _mixed(ratio_cell, cell_p))
                    unsupported[e, target_of[t]] += before * lost[row, t]
            for c in range(cells):
                ratio_cell[c] *= by_cell[row, c] / propensity[row]
                top = max(top, ratio_cell[c])
            for t in range(columns):
                ratio_target[t] *= targets[row, t] / propensity[row]
                top = max(top, ratio_target[t])
            if top > _HUGE:  # only their proportions matter
                ratio_cell /= top
                ratio_target /= top
            sums[e, 1] += send[row]
            live[e] = max(live[e], send[row])
            for m in range(metrics):
                sums[e, 2 + m] += reward[row, m]
        mixture = _mixed(ratio_cell, cell_p)
        weight[e, :] = 0.0
        weight[e, 0] = 1.0
        for t in range(columns):
            if ratio_target[t] > 0.0:
                weight[e, target_of[t] + 1] += target_p[t] * (ratio_target[t] / mixture)


class Cells(Estimator):
    """Self-normalised over user-epochs: sum of w R / sum of w, times epochs a user. Per send: sum of w R / sum of w sends.
    `Per.decision` is the mean of an epoch.

    Rows carry `extra` columns: epoch i64[n] (rows of an epoch adjacent within the user) and cell_probability f64[n, C]: each
    cell's probability of what was logged, on the logged history. `propensity` is that of the cell in force. Optionally
    cell_unsupported f64[n, P]: the target's mass, on the logged history, on choices that no cell could make (none, where the
    target is a cell). What an epoch loses is that mass of each decision times the weight of the decisions before it, so that
    the mean weight and the share lost add up to 1 where what a target does at each decision is what some cell does.

    A target is one set of rules, its column of `Rows.target`. One that draws cells of its own is a mixture too: name it in
    target_cell_p with their probabilities, and pass ``cells of <name>`` f64[n, its cells] in `extra`, and optionally
    ``unsupported of <name>`` of the same shape. The logging mixture itself, the A/A control, is named in `mixture`: its
    weight is 1, and it loses nothing.
    """

    name = "cells"
    own_weights = True

    def __init__(
        self, policies: Sequence[str], metrics: Sequence[str], *, cell_p: Sequence[float], mixture: Sequence[str] = (),
        target_cell_p: Mapping[str, Sequence[float]] | None = None, grouping: Grouping | None = None, replicates: int = 0,
    ) -> None:  # fmt: skip
        self.cell_p, self.mixture = _shares("cell_p", cell_p), tuple(mixture)
        self.target_cell_p = {name: _shares(f"target_cell_p[{name}]", p) for name, p in (target_cell_p or {}).items()}
        super().__init__(policies, metrics, grouping=grouping, replicates=replicates)
        unknown = {*self.mixture, *self.target_cell_p} - set(self.policies[1:])
        if unknown or set(self.mixture) & set(self.target_cell_p):
            raise InvalidInput(
                f"{sorted(unknown)}", field="mixture, target_cell_p", hint="name targets, each in one of them"
            )

    def settings(self) -> dict[str, Any]:
        own = {"cell_p": list(self.cell_p), "mixture": list(self.mixture)}
        return {**super().settings(), **own, "target_cell_p": {name: list(p) for name, p in self.target_cell_p.items()}}

    def _like(self) -> Self:
        return type(self)(
            self.policies[1:], self.metrics, cell_p=self.cell_p, mixture=self.mixture, target_cell_p=self.target_cell_p,
            grouping=self.grouping, replicates=self.replicates,
        )  # fmt: skip

    def _columns(self) -> list[Column]:
        columns: list[Column] = [("decisions", 0, 0, -1)]
        for p in range(len(self.policies)):
            columns += [(f"weight.{p}", p, 0, -1), (f"sends.{p}", p, 1, -1)]
            columns.extend((f"reward.{p}.{m}", p, 2 + m, m) for m in range(len(self.metrics)))
        return columns

    def _units(self, rows: Rows) -> Units:
        epoch = np.ascontiguousarray(rows.need("epoch"), np.int64)
        by_cell = np.ascontiguousarray(rows.need("cell_probability"), np.float64)
        if by_cell.shape != (len(rows), len(self.cell_p)):
            raise InvalidInput(
                f"has shape {by_cell.shape}, expected {(len(rows), len(self.cell_p))}", field="cell_probability"
            )
        if len(rows) and (rows.scale != 1.0).any():
            raise InvalidInput("whole epochs are needed", field="log_rate", hint="notification decisions are logged in full")
        if len(rows) and not (np.max(by_cell / rows.propensity[:, None], axis=1) > 1 - 1e-9).all():
            raise InvalidInput("no cell gives a row its logged propensity", field="cell_probability",
                               hint="it must hold the cell in force, on the logged history")  # fmt: skip
        first, last = _epochs(rows.user, epoch)
        count, targets = len(first), len(self.policies) - 1
        weight, sums = np.empty((count, 1 + targets)), np.zeros((count, 2 + len(self.metrics)))
        live, lost = np.empty(count), np.empty((count, targets))
        _of_epochs(
            first, last, rows.propensity, *self._targets(rows, by_cell), by_cell, np.array(self.cell_p), rows.reward,
            rows.send, self._lost(rows), weight, sums, live, lost,
        )  # fmt: skip
        code = None if self.grouping is None else rows.groups[self.grouping.name][first]
        return Units(rows.user[first], weight, sums, code, weight, live, lost)

    def _targets(self, rows: Rows, by_cell: F64) -> tuple[F64, F64, I64]:
        """Columns of all targets' cells, their probabilities, and whose they are."""
        columns: list[F64] = []
        shares: list[float] = []
        owner: list[int] = []
        for p, name in enumerate(self.policies[1:]):
            own: F64 = rows.target[:, p : p + 1]
            drawn: tuple[float, ...] = (1.0,)
            if name in self.mixture:
                own, drawn = by_cell, self.cell_p
            elif name in self.target_cell_p:
                own, drawn = np.asarray(rows.need(f"cells of {name}"), np.float64), self.target_cell_p[name]
                if own.shape != (len(rows), len(drawn)) or not ((own >= 0) & (own <= 1 + 1e-9)).all():
                    raise InvalidInput(f"must be probabilities, {len(drawn)} a row", field=f"cells of {name}")
            columns.append(own)
            shares += drawn
            owner += [p] * len(drawn)
        return np.concatenate(columns, axis=1), np.array(shares), np.array(owner, np.int64)

    def _lost(self, rows: Rows) -> F64:
        """f64[n, columns of `_targets`]: mass on what no cell of the log could choose."""
        own = self._probabilities(rows, "cell_unsupported", rows.target.shape[1])
        columns: list[F64] = []
        for p, name in enumerate(self.policies[1:]):
            if name in self.mixture:
                columns.append(np.zeros((len(rows), len(self.cell_p))))
            elif name in self.target_cell_p:
                columns.append(self._probabilities(rows, f"unsupported of {name}", len(self.target_cell_p[name])))
            else:
                columns.append(own[:, p : p + 1])
        return np.concatenate(columns, axis=1)

    def _probabilities(self, rows: Rows, name: str, width: int) -> F64:
        """An extra column that may be absent: then 0."""
        if name not in rows.extra:
            return np.zeros((len(rows), width))
        given = np.asarray(rows.extra[name], np.float64).reshape(len(rows), -1)
        if given.shape[1] != width or not ((given >= 0) & (given <= 1 + 1e-9)).all():
            raise InvalidInput(f"must be probabilities, {width} a row", field=name)
        return given

    def _linear(self, total: F64, users: float, policy: int, metric: int, per: Per) -> Linear:
        reward, weight = self._place[f"reward.{policy}.{metric}"], self._place[f"weight.{policy}"]
        if per is Per.send:
            return monomial(total, {reward: 1, self._place[f"sends.{policy}"]: -1})
        if per is Per.decision:
            return monomial(total, {reward: 1, weight: -1})
        return monomial(total, {reward: 1, weight: -1, self._place["decisions"]: 1}, 1.0 / users)


def _shares(field: str, given: Sequence[float]) -> tuple[float, ...]:
    found = tuple(float(p) for p in given)
    if not found or min(found) <= 0 or abs(sum(found) - 1) > 1e-9:
        raise InvalidInput(f"{list(found)}", field=field, hint="probabilities of the cells: positive, summing to 1")
    return found


def _epochs(user: U64, epoch: I64) -> tuple[I64, I64]:
    """First row and end of each user-epoch; InvalidInput where an epoch's rows are not adjacent."""
    if not len(user):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    change = np.flatnonzero((user[1:] != user[:-1]) | (epoch[1:] != epoch[:-1])) + 1
    first = np.concatenate([[0], change]).astype(np.int64)
    last = np.concatenate([change, [len(user)]]).astype(np.int64)
    within = user[first][1:] == user[first][:-1]
    if (epoch[first][1:] < epoch[first][:-1])[within].any():
        raise InvalidInput("epochs of a user are out of order", field="epoch", hint="sort by (user, order)")
    return first, last
