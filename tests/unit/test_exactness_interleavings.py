"""Whatever the order in which shells read and commit, whoever's clock is ahead, whichever policy each holds: nobody is sent
more than his policy allows, and a key is decided once."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve_app.ledger.memory import MemoryLedger
from serve_app.ledger.protocol import Ledger
from serve_app.ledger.sqlite import SqliteLedger
from tests.chaos.exactness_checker import findings
from tests.unit.decision_support import SECOND, at
from tests.unit.exactness_support import Job, Shell, Stage, row_of, run_interleaved

NOW = at("2026-03-10T12:00:00")

rows = st.tuples(
    st.sampled_from((5, 6)),  # user
    st.lists(st.integers(1, 6), min_size=1, max_size=4, unique=True),  # campaigns
    st.integers(1, 2),  # sends
    st.sampled_from(("", "", "", "k1", "k2")),  # key; shells share them, as retries do
)
jobs = st.tuples(
    st.lists(rows, min_size=1, max_size=3),
    st.sampled_from((-SECOND, 0, 0, 2 * SECOND)),  # the replica's clock
    st.sampled_from((0, 0, 1, 4)),  # seconds into the run
    st.sampled_from(("first", "second")),
)
runs = st.lists(st.lists(jobs, min_size=1, max_size=3), min_size=2, max_size=4)
orders = st.lists(st.integers(0, 3), max_size=60)


def shells_of(stage: Stage, run: list[list[Any]]) -> list[Shell]:
    number = 100
    shells = []
    for own in run:
        made = []
        for asked, skew, second, policy in own:
            made_rows = []
            for user, campaigns, slots, _ in asked:
                number += 1
                made_rows.append(row_of(user, number, NOW + second * SECOND + skew, campaigns=campaigns, slots=slots))
            made.append(Job(made_rows, [f"{key}-{user}" if key else "" for user, _, _, key in asked], policy))
        shells.append(stage.shell(*made))
    return shells


def check(ledger: Ledger, run: list[list[Any]], order: list[int]) -> None:
    stage = Stage(ledger)
    shells = shells_of(stage, run)
    run_interleaved(shells, order)
    assert findings(stage.evidence(shells)) == []


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(runs, orders)
def test_no_interleaving_of_shells_is_inexact_in_memory(run: list[list[Any]], order: list[int]) -> None:
    check(MemoryLedger(), run, order)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(runs, orders)
def test_no_interleaving_of_shells_is_inexact_on_sqlite(run: list[list[Any]], order: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ledger = SqliteLedger(Path(folder) / "ledger.sqlite", durability="process")
        try:
            check(ledger, run, order)
        finally:
            ledger.close()
