"""What decided batches count: every gate that was asked, once a candidate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np
import pytest

from serve_app.decide import decide
from serve_app.ledger.memory import MemoryLedger
from serve_app.serving import meters
from serve_app.serving.measuring import measure_decisions
from serve_app.stages.decision import Decision
from serve_app.stages.stage import Context
from serve_app.vocabulary import GateOutcome
from tests.unit.decision_support import batch_of, candidate, compiled, request


class Tally:
    """A sink that keeps counters."""

    def __init__(self) -> None:
        self.sums: Counter[tuple[str, ...]] = Counter()

    def add(self, name: str, amount: float, tags: Mapping[str, str]) -> None:
        self.sums[name, *tags.values()] += int(amount)

    def observe(self, name: str, value: float, tags: Mapping[str, str]) -> None:
        """Not looked at."""

    def set(self, name: str, value: float, tags: Mapping[str, str]) -> None:
        """Not looked at."""


@pytest.fixture
def tally() -> Iterator[Tally]:
    before = meters._sinks[:]
    sink = Tally()
    meters.install(sink)
    yield sink
    meters._sinks[:] = before


@pytest.mark.parametrize("users", [1, 40])
def test_every_gate_is_counted_once_a_candidate_with_what_it_said(tally: Tally, users: int) -> None:
    rows = [request([candidate(campaign=c) for c in (1, 2, 3)], user=u, request_id=u) for u in range(1, users + 1)]
    decided = decide(MemoryLedger(), Decision(), batch_of(rows), Context((compiled(),)))
    measure_decisions(decided)
    gates, said = decided.batch.meta["gates"], decided.batch.candidates["gate_outcome"]
    for at, gate in enumerate(gates):
        for outcome in GateOutcome:
            expected = int(np.count_nonzero(said[:, at] == outcome))
            assert tally.sums["hindcast_gate_outcomes", gate, outcome.name] == expected, (gate, outcome)
    assert sum(n for key, n in tally.sums.items() if key[0] == "hindcast_decisions") == users
    assert sum(n for key, n in tally.sums.items() if key[0] == "hindcast_ledger_outcomes") == users


def test_gates_that_were_not_asked_are_not_counted(tally: Tally) -> None:
    rows = [request([candidate(campaign=1)], user=1, request_id=1)]
    decided = decide(MemoryLedger(), Decision(), batch_of(rows), Context((compiled(),)))
    decided.batch.candidates["gates_evaluated"] = np.array([0b101], np.uint32)
    measure_decisions(decided)
    counted = {key[1] for key in tally.sums if key[0] == "hindcast_gate_outcomes"}
    assert counted == {decided.batch.meta["gates"][0], decided.batch.meta["gates"][2]}
