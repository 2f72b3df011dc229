"""What is counted of decided batches."""

from __future__ import annotations

import logging

import numpy as np
import numpy.typing as npt

from serve_app.decide import DecidedBatch, DecideStatus
from serve_app.kernels import kernel
from serve_app.serving.meters import count
from serve_app.vocabulary import Action, GateOutcome, Reason

__all__ = ["measure_decisions"]

_LOG = logging.getLogger("hindcast.serving")
_OUTCOMES = len(GateOutcome)
_OUTCOME_NAMES = [GateOutcome(one).name for one in range(_OUTCOMES)]
_STATUSES, _ACTIONS, _REASONS = ({int(one): one.name for one in kind} for kind in (DecideStatus, Action, Reason))


def measure_decisions(decided: DecidedBatch) -> None:
    """Count outcomes of the ledger, of the decisions and of every gate that was asked."""
    for status, rows in _counted(decided.status):
        count("hindcast_ledger_outcomes", rows, status=_STATUSES[status])
        if status == DecideStatus.unledgered:
            count("hindcast_unledgered", rows)
            _LOG.warning("%d decisions were sent without the ledger, which is down", rows)
    count("hindcast_ledger_conflicts", decided.conflicts)
    request = decided.batch.requests
    outcomes = request["action"].astype(np.int64) << 8 | request["reason"]
    for outcome, rows in _counted(outcomes):
        count("hindcast_decisions", rows, action=_ACTIONS[outcome >> 8], reason=_REASONS[outcome & 0xFF])
    _measure_gates(decided)


def _counted(codes: npt.NDArray[np.integer]) -> list[tuple[int, int]]:
    """Each small code that occurs, and how often."""
    if len(codes) == 1:
        return [(int(codes[0]), 1)]
    counts = np.bincount(codes)
    return [(code, int(counts[code])) for code in np.flatnonzero(counts).tolist()]


def _measure_gates(decided: DecidedBatch) -> None:
    rows, names = decided.batch.candidates, decided.batch.meta.get("gates")
    if names is None or not rows.rows:
        return
    counts = np.zeros(len(names) * _OUTCOMES, np.int64)
    _count_gates(np.ascontiguousarray(rows["gates_evaluated"]), np.ascontiguousarray(rows["gate_outcome"]), counts)
    for at in np.flatnonzero(counts).tolist():
        gate, outcome = names[at // _OUTCOMES], _OUTCOME_NAMES[at % _OUTCOMES]
        count("hindcast_gate_outcomes", int(counts[at]), gate=gate, outcome=outcome)


@kernel
def _count_gates(evaluated: npt.NDArray[np.uint32], outcome: npt.NDArray[np.int8], counts: npt.NDArray[np.int64]) -> None:
    """counts i64[gates * outcomes]: candidates of which a gate that was asked (its bit in evaluated u32[m]) said that."""
    for c in range(len(evaluated)):
        for g in range(outcome.shape[1]):
            if (evaluated[c] >> np.uint32(g)) & np.uint32(1):
                counts[g * _OUTCOMES + outcome[c, g]] += 1
