"""All gates' words on all candidates, and what follows from them: who passes, who fails first and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch
from serve_app.kernels import inlined, kernel
from serve_app.noise import absorb, unit_interval
from serve_app.policy.compile import CompiledPolicy
from serve_app.policy.gates import GATE_NAMES, GATES, HISTORY_GATES, GateResult, HistoryView
from serve_app.policy.gates.expired import earliest_expiry
from serve_app.policy.gates.result import column
from serve_app.policy.tables import MAX_ATTEMPTS, SPREAD
from serve_app.stages.stage import Context
from serve_app.vocabulary import Action, GateOutcome

__all__ = ["Verdicts", "Words", "evaluate", "evaluate_history_gates", "verdicts", "waits_until"]

I64 = npt.NDArray[np.int64]
I8 = npt.NDArray[np.int8]
F64 = npt.NDArray[np.float64]
U64 = npt.NDArray[np.uint64]

_DEFER = int(GateOutcome.defer)
_SUPPRESSED, _DEFERRED, _UNDECIDED = int(Action.suppress), int(Action.defer), int(Action.none)


@kernel
def _passed(outcome: I8, out: npt.NDArray[np.bool_]) -> None:
    for c in range(len(out)):
        out[c] = True
        for g in range(len(outcome)):
            if outcome[g, c] != 0:
                out[c] = False
                break


@dataclass(slots=True)
class Words:
    """Five matrices [G, m], one row a gate: see GateResult."""

    outcome: I8
    reason: I8
    used: F64
    limit: F64
    next_free_at: I64

    @classmethod
    def empty(cls, rows: int) -> Words:
        """Room for every gate's word on `rows` candidates."""
        shape = (len(GATE_NAMES), rows)
        return cls(
            np.empty(shape, np.int8), np.empty(shape, np.int8), np.empty(shape), np.empty(shape), np.empty(shape, np.int64)
        )

    def of(self, gate: str) -> GateResult:
        """One gate's part, as a view."""
        g = GATE_NAMES.index(gate)
        return GateResult(self.outcome[g], self.reason[g], self.used[g], self.limit[g], self.next_free_at[g])

    def passed(self) -> npt.NDArray[np.bool_]:
        """bool[m]: no gate objects."""
        out = np.empty(self.outcome.shape[1], np.bool_)
        _passed(self.outcome, out)
        return out

    def take(self, candidates: I64) -> Words:
        """A copy for some candidates."""
        return Words(*(matrix[:, candidates] for matrix in self._matrices))

    def put(self, candidates: I64, other: Words, where: I64) -> None:
        """Replace the words on `candidates` by those on `where` of another set."""
        for mine, theirs in zip(self._matrices, other._matrices, strict=True):
            mine[:, candidates] = theirs[:, where]

    @property
    def _matrices(self) -> tuple[Any, ...]:
        return self.outcome, self.reason, self.used, self.limit, self.next_free_at


def evaluate(batch: Batch, histories: HistoryView, policy: CompiledPolicy, context: Context) -> Words:
    """Every gate on every candidate."""
    words = Words.empty(batch.candidates.rows)
    for gate, *word in zip(GATES.values(), *words._matrices, strict=True):
        gate(batch, histories, policy, context, GateResult(*word))
    return words


def evaluate_history_gates(
    words: Words, batch: Batch, histories: HistoryView, policy: CompiledPolicy, context: Context
) -> None:
    """Overwrite the words of the gates that look at the history, seen another way."""
    for name in HISTORY_GATES:
        GATES[name](batch, histories, policy, context, words.of(name))


@dataclass(slots=True)
class Verdicts:
    """Per candidate: passed bool; first i8 index of the first failing gate (G: none); reason i8; action i8 (suppress, defer,
    or none while undecided); until i64 end of a deferral."""

    passed: npt.NDArray[np.bool_]
    first: I8
    reason: I8
    action: I8
    until: I64


@inlined
def waits_until(
    free: int, at: int, attempt: int, v: int, expiry: int, root: np.uint64, user: np.uint64, salt: np.uint64, scalars: I64
) -> int:
    """Scalar, inside kernels: end of the deferral of a message whose gate opens at `free`; 0: it does not wait."""
    if not (free > at and attempt < scalars[v, MAX_ATTEMPTS] and (expiry == 0 or free < expiry)):
        return 0
    width = scalars[v, SPREAD] if expiry == 0 else min(scalars[v, SPREAD], expiry - free)
    # Spread by user as well as request: an audience's requests may share a root.
    late = unit_interval(absorb(absorb(salt, root), user))
    return free + int(late * width)


@kernel
def _verdicts(
    offsets: I64, root: U64, user: U64, at: I64, attempt: npt.NDArray[np.int16], expiry: I64, own_expiry: I64,
    variant: npt.NDArray[np.int16], scalars: I64, salt: np.uint64, outcome: I8, reasons: I8, next_free: I64,
    passed: npt.NDArray[np.bool_], first: I8, reason: I8, action: I8, until: I64,
) -> None:  # fmt: skip
    gates = len(outcome)
    for r in range(len(root)):
        for c in range(offsets[r], offsets[r + 1]):
            g = 0
            while g < gates and outcome[g, c] == 0:
                g += 1
            first[c], passed[c] = g, g == gates
            reason[c], action[c], until[c] = 0, _UNDECIDED, 0
            if g == gates:
                continue
            reason[c], action[c] = reasons[g, c], _SUPPRESSED
            if outcome[g, c] == _DEFER:
                end = earliest_expiry(expiry[r], own_expiry[c])
                until[c] = waits_until(next_free[g, c], at[r], attempt[r], variant[r], end, root[r], user[r], salt, scalars)
                action[c] = _DEFERRED if until[c] else _SUPPRESSED


def verdicts(batch: Batch, words: Words, policy: CompiledPolicy) -> Verdicts:
    """First failing gate of each candidate. A deferral whose gate opens after the expiry, or after the last attempt allowed,
    is a suppression; the others end after the gate's next free time, spread over the policy's window as far as the expiry
    leaves it."""
    m = batch.candidates.rows
    out = Verdicts(
        np.empty(m, np.bool_), np.empty(m, np.int8), np.empty(m, np.int8), np.empty(m, np.int8), np.empty(m, np.int64)
    )
    requests = batch.requests
    _verdicts(
        batch.offsets, column(requests, "root_id"), column(requests, "user"), column(requests, "decided_at"),
        column(requests, "attempt"), column(requests, "expires_at"), column(batch.candidates, "expires_at"),
        column(requests, "variant"), policy.settings.scalars, policy.rules.deferral_salt, words.outcome, words.reason,
        words.next_free_at, out.passed, out.first, out.reason, out.action, out.until,
    )  # fmt: skip
    return out
