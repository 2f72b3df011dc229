"""Parity: the logged policies, replayed in the logged environment, against what was logged. Other bits are a mismatch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch
from serve_app.policy.gates import GATE_NAMES, HISTORY_GATES
from serve_app.vocabulary import Action, Reason
from simulators.replay.opportunities import Opportunities

if TYPE_CHECKING:
    from simulators.replay.stream import AsReplayed

__all__ = ["Mismatch", "Parity", "ParityCheck"]

I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_REQUEST_COLUMNS = ("action", "reason", "until", "p_none", "forced", "explored")
_OF_NO_HISTORY = [place for place, name in enumerate(GATE_NAMES) if name not in HISTORY_GATES]
_EXAMPLES = 20


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One decision that came out another way: in which column first, and both values."""

    user: int
    request_id: int
    column: str
    logged: str
    replayed: str


@dataclass(slots=True)
class Parity:
    """Counts of one or more partitions; adds up. columns: mismatching requests by column. examples: the first few. unsure:
    mismatches of users whose rules look back to before the log, of which it cannot be said; not among the requests."""

    requests: int = 0
    same: int = 0
    columns: dict[str, int] = field(default_factory=dict)
    examples: list[Mismatch] = field(default_factory=list)
    unsure: int = 0

    def __add__(self, other: Parity) -> Parity:
        names = sorted({*self.columns, *other.columns})
        columns = {name: self.columns.get(name, 0) + other.columns.get(name, 0) for name in names}
        examples = [*self.examples, *other.examples][:_EXAMPLES]
        unsure = self.unsure + other.unsure
        return Parity(self.requests + other.requests, self.same + other.same, columns, examples, unsure)

    @property
    def share(self) -> float:
        """Of the requests, how many came out the same; 1 for none."""
        return self.same / self.requests if self.requests else 1.0


class ParityCheck:
    """Takes the waves of a parity run."""

    def __init__(self, asked: Opportunities) -> None:
        self._asked = asked
        self._same = np.ones(len(asked), np.bool_)
        self._certain = np.zeros(len(asked), np.bool_)  # differs in what no history has a say in
        self._seen = np.zeros(len(asked), np.bool_)
        self._columns: dict[str, int] = {}
        self._examples: list[Mismatch] = []

    def __call__(self, rows: I64, decided: Batch) -> None:
        """One wave."""
        self._seen[rows] = True
        logged, requests = self._asked.logged, decided.requests
        for name in _REQUEST_COLUMNS:
            replayed = requests[name]
            if name == "reason":  # a send's row in the log says `chosen`
                replayed = np.where(requests["action"] == Action.send, np.int8(Reason.chosen), replayed)
            self._note(name, rows, ~_equal(logged[name][rows], replayed), logged[name][rows], replayed)
        offsets, owner = self._asked.batch.offsets, decided.owner
        flat = np.arange(decided.candidates.rows) - decided.offsets[owner] + offsets[rows][owner]
        for name, values in self._asked.logged_candidates.items():
            mine, theirs = values[flat], decided.candidates[name]
            differs = ~_equal(mine, theirs)
            first = np.flatnonzero(differs.reshape(len(differs), -1).any(axis=1))
            by_request = np.zeros(len(rows), np.bool_)
            by_request[owner[first]] = True
            if len(first):
                self._note(name, rows, by_request, _of_first(mine, owner, first), _of_first(theirs, owner, first))
                self._certain[rows[owner[_free_of_history(name, differs)]]] = True

    def take(self, told: AsReplayed) -> None:
        """A whole run over the log by the fast engine: what it writes down."""
        asked, logged, every = self._asked, self._asked.logged, np.arange(len(self._asked))
        self._seen[told.rows] = True
        by_request: dict[str, npt.NDArray[Any]] = {
            "until": told.until,
            "p_none": told.p_none,
            "explored": told.explored,
        }
        for name, values in (("action", told.action), ("reason", told.reason)):
            by_request[name] = np.empty(len(asked), values.dtype)
            by_request[name][told.rows] = values
        for name, values in by_request.items():
            self._note(name, every, ~_equal(logged[name], values), logged[name], values)
        sent = np.zeros(asked.batch.candidates.rows, np.bool_)
        sent[told.send_candidate] = True
        for name, mine, theirs in (
            ("p_choice", asked.logged_candidates["p_choice"], told.p_choice),
            ("slot", asked.logged_candidates["slot"] >= 0, sent),
        ):
            first = np.flatnonzero(~_equal(mine, theirs))
            if len(first):
                owner, differs = asked.batch.owner, np.zeros(len(asked), np.bool_)
                differs[owner[first]] = True
                self._note(name, every, differs, _of_first(mine, owner, first), _of_first(theirs, owner, first))

    def _note(self, name: str, rows: I64, differs: Bools, logged: Any, replayed: Any) -> None:
        if not differs.any():
            return
        self._columns[name] = self._columns.get(name, 0) + int(differs.sum())
        for place in np.flatnonzero(differs & self._same[rows])[: _EXAMPLES - len(self._examples)].tolist():
            row = int(rows[place])
            requests = self._asked.batch.requests
            user, request = int(requests["user"][row]), int(requests["request_id"][row])
            self._examples.append(Mismatch(user, request, name, str(logged[place]), str(replayed[place])))
        self._same[rows[differs]] = False

    def result(self, unsure: Bools | None = None) -> Parity:
        """The counts. Requests that were never decided count as mismatches. unsure bool[n]: of users whose past is not all
        known; mismatches among these are left out, and counted, unless they are in what no history has a say in."""
        missing = int((~self._seen).sum())
        columns = dict(sorted(self._columns.items())) | ({"not replayed": missing} if missing else {})
        same = self._same & self._seen
        asked = len(same) - (0 if unsure is None else int((unsure & ~same & ~self._certain).sum()))
        return Parity(asked, int(same.sum()), columns, self._examples, len(same) - asked)


def _equal(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> Bools:
    same: Bools = a == b
    return same | ((a != a) & (b != b)) if a.dtype.kind == "f" else same


def _free_of_history(name: str, differs: Bools) -> I64:
    """Candidates that differ in a column, or in words of gates, that no history has a say in. differs: bool[m, ...]."""
    if name == "value":
        return np.flatnonzero(differs)
    if differs.ndim == 2 and differs.shape[1] == len(GATE_NAMES):
        return np.flatnonzero(differs[:, _OF_NO_HISTORY].any(axis=1))
    return np.empty(0, np.int64)


def _of_first(values: npt.NDArray[Any], owner: I64, first: I64) -> dict[int, Any]:
    """By request, the value of its first candidate among `first`."""
    return {int(owner[c]): values[c] for c in first[::-1].tolist()}
