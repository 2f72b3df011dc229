"""How probable policies make what was logged, wave after wave by the Decision stage: the oracle of `stream_on_log`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch, Columns
from serve_app.columns import REQUEST_COLUMNS
from serve_app.ledger.columns import Histories
from serve_app.policy.compile import CompiledPolicy
from simulators.replay.analytic import OnLog, Probabilities, Support, first_sends
from simulators.replay.course import in_waves
from simulators.replay.opportunities import Opportunities
from simulators.replay.partition import Partition
from tests.unit.waves import WaveCourse, along_log
from tests.unit.waves_asked import under

__all__ = ["on_log"]

I64 = npt.NDArray[np.int64]


def on_log(
    partition: Partition, policies: Sequence[CompiledPolicy], behaviour: Sequence[CompiledPolicy], *, choices: bool = False,
    support: Support | None = None, teaching: int = 0,
) -> list[OnLog]:  # fmt: skip
    """As `simulators.replay.stream.stream_on_log`. All look at the same histories, which are read once."""
    asked = partition.asked
    order, _ = in_waves(asked.owner)
    views = [_View(asked, one, behaviour, order, choices, support, k < teaching) for k, one in enumerate(policies)]
    course = WaveCourse(asked, behaviour, partition.start, partition.failures())

    def look(rows: I64, places: slice, histories: Histories) -> None:
        for one in views:
            one.look(course, rows, places, histories)

    along_log(asked, course, look)
    return [one.result() for one in views]


class _View:
    """One policy's look at every wave, once for each of its cells."""

    def __init__(
        self, asked: Opportunities, policy: CompiledPolicy, behaviour: Sequence[CompiledPolicy], order: I64, choices: bool,
        support: Support | None, teaches: bool,
    ) -> None:  # fmt: skip
        self._support, self._teaches = support, teaches
        self._asked, self._policy, self._first = asked, policy, first_sends(asked)
        self._waves = under(asked, policy, behaviour).batch.take(order)
        drawn, self._cells = asked.assigned(policy), max(len(policy.trials.cell_p), 1)
        self._cell: I64 = np.maximum(drawn.cell, 0).astype(np.int64)
        self._assigned = {name: values[order] for name, values in drawn.columns().items()}
        shape = (len(asked), self._cells)
        self._chosen, self._send, self._unsupported = np.empty(shape), np.empty(shape), np.empty(shape)
        self._choices = np.zeros(asked.batch.candidates.rows) if choices else None
        self._beyond = None if support is None else np.zeros(shape)

    def look(self, course: WaveCourse, rows: I64, places: slice, histories: Histories) -> None:
        """Decide one wave in every cell."""
        wave = self._waves.slice(places.start, places.stop)
        columns = {name: values[places] for name, values in self._assigned.items()}
        arms = columns["variant"] // self._cells * self._cells
        for cell in range(self._cells):
            variant = (arms + cell).astype(np.int16)
            requests = Columns(len(wave), REQUEST_COLUMNS, dict(wave.requests) | columns | {"variant": variant})
            forced = Batch(requests, wave.candidates, wave.offsets, dict(wave.meta))
            self._note(cell, rows, course.decide_on(histories, forced, [self._policy]))

    def _note(self, cell: int, rows: I64, decided: Batch) -> None:
        asked, owner = self._asked, decided.owner
        p_none, p_choice = decided.requests["p_none"], decided.candidates["p_choice"]
        flat = np.arange(decided.candidates.rows) - decided.offsets[owner] + asked.batch.offsets[rows][owner]
        place = self._first[rows]
        none = place < 0
        within = decided.offsets[:-1] + place - asked.batch.offsets[rows]
        self._chosen[rows, cell] = np.where(none, p_none, p_choice[np.where(none, 0, within)] if len(p_choice) else p_none)
        self._send[rows, cell] = 1.0 - p_none
        if self._choices is not None:
            mine = self._cell[rows[owner]] == cell
            self._choices[flat[mine]] = p_choice[mine]
        if self._support is not None and self._teaches:
            self._support.candidate[flat] |= p_choice > 0
            self._support.none[rows] |= p_none > 0
        elif self._support is not None and self._beyond is not None:
            beyond = np.where(self._support.candidate[flat], 0.0, p_choice)
            mass = np.bincount(owner, weights=beyond, minlength=len(rows))
            self._beyond[rows, cell] = mass + np.where(self._support.none[rows], 0.0, p_none)
        lost = np.where(asked.logged_candidates["p_choice"][flat] == 0.0, p_choice, 0.0)
        mass = np.bincount(owner, weights=lost, minlength=len(rows))
        self._unsupported[rows, cell] = mass + np.where(asked.logged["p_none"][rows] == 0.0, p_none, 0.0)

    def result(self) -> OnLog:
        """Everything that was seen."""
        own = np.arange(len(self._cell)), self._cell
        mine = Probabilities(self._chosen[own], self._send[own], self._unsupported[own])
        return OnLog(mine, self._chosen, self._choices, self._beyond)
