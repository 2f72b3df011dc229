"""One request of a load test: what it counts as."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from gevent import GreenletExit

from loadtests.scenarios.answers import Contract
from loadtests.scenarios.audience import Audience, SendRules
from loadtests.scenarios.cap_count import Grant
from loadtests.scenarios.client import Client
from loadtests.scenarios.driver import Run
from loadtests.scenarios.plan import phases_of, read_plan
from loadtests.scenarios.recording import CAPS, Recording
from loadtests.scenarios.step import Step
from loadtests.scenarios.trace import routes_of, step_of

BATCH = "/v1/notifications/decide-batch"
DOCUMENT = {
    "paths": {BATCH: {"post": {"responses": {"200": {"content": {"application/json": {"schema": {"type": "object"}}}}}}}},
    "components": {},
}
PLAN = read_plan(scenario="senders", rate=10, duration_s=10, audience="a")
NOON = datetime(2026, 11, 22, 3, tzinfo=UTC)


class Session:
    """Answers everything alike, or breaks off."""

    def __init__(self, content: Any = None, error: BaseException | None = None) -> None:
        self._content, self._error = content, error

    @contextmanager
    def request(self, *_: object, **__: object) -> Iterator[Any]:
        if self._error is not None:
            raise self._error
        quiet = {"success": lambda: None, "failure": lambda _: None, "request_meta": {}}
        yield SimpleNamespace(
            status_code=200, content=orjson.dumps(self._content), headers={"content-type": "application/json"}, **quiet
        )


def client(verify: float = 1) -> Client:
    began = time.monotonic()
    return Client(Contract(DOCUMENT), Recording(), phases_of(PLAN), verify, None, began, random.Random(1))


def batch_of(rows: int) -> Step:
    body = {"rows": [{"user": f"u{at}"} for at in range(rows)]}
    return step_of({"path": BATCH, "at": 0, "body": body}, routes_of(DOCUMENT), "run")


def answered(*statuses: int) -> dict[str, Any]:
    """A batch whose rows were decided (200), or not."""
    decided = {"action": "suppress", "sends": [], "until": None, "propensity_none": None}
    problem = {"type": "urn:hindcast:problem:ledger-unavailable", "detail": "away", "field": None}
    return {
        "decided_at": NOON.isoformat(),
        "decisions": [{**decided, "user": f"u{at}"} if one == 200 else None for at, one in enumerate(statuses)],
        "errors": [{**problem, "row": at, "status": one} for at, one in enumerate(statuses) if one != 200],
    }


@pytest.mark.parametrize("verify", [0, 1])
@pytest.mark.parametrize(
    ("statuses", "outcome", "status"),
    [
        ((200, 200), "ok", "200"),
        ((503, 503), "refused", "200 ledger-unavailable"),
        ((200, 503), "refused", "200 ledger-unavailable"),
        ((503, 500), "failed", "200 ledger-unavailable"),
        ((200, 404), "failed", "200 ledger-unavailable"),
    ],
)
def test_a_batch_is_what_the_worst_of_its_rows_is(statuses, outcome, status, verify) -> None:
    asks = client(verify)
    asks.perform(Session(answered(*statuses)), batch_of(len(statuses)), asks.began)
    (cell,) = asks.recording.cells.values()
    assert cell.outcomes == {outcome: 1}
    assert cell.statuses == {status: 1}
    assert cell.violations == (verify and outcome == "failed")


def test_a_batch_of_a_trace_is_checked_row_by_row() -> None:
    asks, got = client(), answered(200, 200)
    got["decisions"][1]["user"] = "somebody else"
    asks.perform(Session(got), batch_of(2), asks.began)
    (violation,) = asks.recording.violations
    assert violation["what"] == "row 1: asked of 'u1', answered of 'somebody else'"


def test_what_the_end_of_the_run_cuts_off_has_failed() -> None:
    asks = client()
    with pytest.raises(GreenletExit):
        asks.perform(Session(error=GreenletExit()), batch_of(1), asks.began + 2)
    (cell,) = asks.recording.cells.values()
    assert cell.outcomes == {"failed": 1}
    assert asks.recording.seconds[2].outcomes == {"failed": 1}
    assert (asks.recording.health.sent, asks.recording.health.unanswered) == (1, 1)


def test_an_answer_that_its_check_breaks_on_is_a_wrong_one() -> None:
    asks = client()
    answer, sound = asks.perform(Session({"decisions": []}), batch_of(0), asks.began)
    assert (answer.status, sound) == (200, False)
    (cell,) = asks.recording.cells.values()
    assert cell.outcomes == {"failed": 1}
    assert asks.recording.violations[0]["what"] == "cannot be verified: KeyError('errors')"


@pytest.mark.parametrize("rules", [None, SendRules(policy="p", caps=())])
def test_sends_are_counted_only_where_caps_are_judged(rules) -> None:
    audience = Audience(users=("u",), items=("i",), rules=rules)
    run = Run(PLAN, DOCUMENT, audience, worker=0, workers=1, key=None)
    run.caps.add([Grant("u", "d1", "c1", "push", NOON)])
    assert run.result()["checks"] == ({} if rules is None else {CAPS: 1})
