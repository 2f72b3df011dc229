"""A keyed request that was deferred: retried before and after it fired, its answer stays and nothing is sent twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve_app.decide import DecideStatus, decide
from serve_app.ledger.memory import MemoryLedger
from serve_app.ledger.protocol import UserChanges
from serve_app.ledger.record import unpack_record
from serve_app.ledger.sqlite import SqliteLedger
from serve_app.stages.decision import Decision
from serve_app.stages.stage import Context
from serve_app.vocabulary import Action, Origin
from tests.unit.decision_support import at, batch_of, candidate, compiled, request

EVENING, MORNING = at("2026-03-10T23:00:00"), at("2026-03-11T08:00:00")
KEY, FIRED, BODY = b"k" * 16, b"k#1" + b"\x00" * 13, b"b" * 16
POLICY = compiled(quiet_hours=[{"id": "night", "start": "22:00", "end": "08:00"}])


@pytest.fixture(params=["memory", "sqlite"])
def ledger(request: Any, tmp_path: Path) -> Any:
    made = MemoryLedger() if request.param == "memory" else SqliteLedger(tmp_path / "l.sqlite", durability="process")
    made.put_user(5, UserChanges(reachable=63, zone="Asia/Seoul", region="US"))
    yield made
    made.close()


def ask(ledger: Any, when: int, number: int, key: bytes = KEY, **columns: Any) -> Any:
    rows = [request([candidate()], decided_at=when, request_id=number, root_id=1) | columns]
    return decide(ledger, Decision(), batch_of(rows), Context((POLICY,)), keys=[key], digests=[BODY])


def fire(ledger: Any, number: int) -> Any:
    (due,) = ledger.due_deferrals(MORNING, 10)
    columns = {"origin": int(Origin.deferral), "parent_request_id": due.request_id, "attempt": 1}
    return ask(ledger, MORNING, number, FIRED, **columns)


def test_a_key_retried_around_its_deferral_answers_the_deferral_and_sends_once(ledger: Any) -> None:
    first = ask(ledger, EVENING, 1)
    assert first.batch.requests["action"].tolist() == [Action.defer]
    before = ask(ledger, EVENING + 1, 2)
    fired = fire(ledger, 3)
    assert fired.granted.tolist() == [True]
    after = ask(ledger, MORNING + 1, 4)
    for retried in (before, after):
        assert retried.status.tolist() == [DecideStatus.duplicate]
        assert not retried.granted.any()
        told = unpack_record(retried.stored[0])["request"]
        assert (told["request_id"], told["action"], told["until"]) == (1, Action.defer, MORNING)
    assert len(ledger.read(np.array([5], np.uint64)).histories.entries) == 1
    assert ledger.due_deferrals(MORNING * 2, 10) == []


def test_a_sweeper_that_fires_twice_sends_once(ledger: Any) -> None:
    ask(ledger, EVENING, 1)
    assert fire(ledger, 3).granted.tolist() == [True]
    columns = {"origin": int(Origin.deferral), "parent_request_id": 1, "attempt": 1}
    again = ask(ledger, MORNING, 9, FIRED, **columns)
    assert again.status.tolist() == [DecideStatus.duplicate]
    assert unpack_record(again.stored[0])["request"]["request_id"] == 3
    assert len(ledger.read(np.array([5], np.uint64)).histories.entries) == 1
