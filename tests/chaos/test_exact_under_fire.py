"""No over-cap grant and no duplicate while everything that can die dies: 64 connections on the same 50 users, three Decision
and two ingress replicas whose clocks disagree, kill -9 of each kind of process, retries with the same key, policies that
change.

Every run is audited by the independent checker (`exactness_checker`), which sees what clients were answered, the ledger and
the log. FIRE_DECISIONS in the environment sets how many decisions are driven in all: 12,000 where it says nothing, 200,000
in `make chaos`.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from serve_app.errors import NotReady
from serve_app.ledger.opening import open_ledger
from serve_app.policies import promote_policy
from serve_app.release.flip import HttpFlip
from serve_app.running.instance import Instance
from serve_app.settings import Settings
from tests.chaos.exactness_checker import findings
from tests.chaos.fire_clients import Book, Clients
from tests.chaos.fire_evidence import gather
from tests.chaos.fire_server import (
    CAMPAIGNS,
    HOT,
    OTHERS,
    SKEW_MS,
    kill_one,
    people_and_campaigns,
    prepare_data,
    replicas_of,
)
from tests.cluster.server_support import TOKEN, data_copy, deployed, generous
from tests.unit.ledger_support import RedisServer, require_redis

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]

DECISIONS = int(os.environ.get("FIRE_DECISIONS", "12000"))
RECOVERY_S = 30.0
"""From a kill to the first answer of a call sent after it."""
CONNECTIONS = 64


def settings_of(data: Path, port: int, **overrides: Any) -> Settings:
    """Three Decision and two ingress replicas, clocks apart."""
    replicas = {"min_replicas": 3, "max_replicas": 3}
    return generous(
        data=data,
        http={"port": port},
        deployments={"decision": replicas, "ingress": {"min_replicas": 2, "max_replicas": 2, "max_ongoing": 2_000}},
        testing={"clock_skew_ms": SKEW_MS},
        **overrides,
    )


@dataclass
class Script:
    """What happens during a run: at shares of the target, in order. `killed`: (what, when); `promoted`: (what, seconds)."""

    instance: Instance
    data: Path
    revisions: dict[str, str]
    killed: list[tuple[str, float]] = field(default_factory=list)
    promoted: list[tuple[str, float]] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)

    async def kill(self, deployment: str) -> None:
        """kill -9 one replica."""
        self.killed.append((deployment, await asyncio.to_thread(kill_one, deployment)))

    async def promote(self, name: str) -> None:
        """Put a policy in force; while something is dead the server may refuse, which changes nothing: try again."""
        flip, began = HttpFlip(self.instance.url, TOKEN, "policies"), time.monotonic()
        for _ in range(20):
            try:
                await asyncio.to_thread(promote_policy, self.data, self.revisions[name], now=3, flip=flip)
            except NotReady as error:
                self.refusals.append(str(error))
                await asyncio.sleep(1.0)  # a replica that was killed is not ready yet: ask again
            else:
                self.promoted.append((name, round(time.monotonic() - began, 1)))
                return
        raise AssertionError(f"policy {name} could not be promoted")


Step = Callable[[Script], Awaitable[None]]


def kill(deployment: str) -> Step:
    return lambda script: script.kill(deployment)


def promote(name: str) -> Step:
    return lambda script: script.promote(name)


async def under_fire(clients: Clients, script: Script, steps: list[Step], target: int) -> None:
    """Run the clients, and each step at its share of the target; after a kill the next one waits for answers."""
    running = asyncio.create_task(clients.run())
    try:
        for number, step in enumerate(steps, 1):
            await _until(lambda share=number / (len(steps) + 1): clients.book.decisions >= target * share, running)
            killed = len(script.killed)
            await step(script)
            if len(script.killed) > killed:
                await _until(lambda: recovery(clients.book, script.killed[-1][1]) is not None, running)
        clients.finish()
        await running
    finally:
        running.cancel()


async def _until(condition: Callable[[], bool], running: asyncio.Task[None]) -> None:
    while not condition():
        assert not running.done(), "the clients stopped early"
        await asyncio.sleep(0.02)  # between two looks at the condition


def recovery(book: Book, at: float) -> float | None:
    """Seconds from a kill to the end of the first call that was sent after it and brought decisions."""
    good = [call.done_s for call in book.calls if call.sent_s >= at and call.decisions]
    return round(min(good) - at, 2) if good else None


def pause(book: Book, at: float) -> float:
    """The longest time in the half minute after a kill in which no call brought decisions."""
    done = sorted(call.done_s for call in book.calls if call.decisions)
    near = [at, *(one for one in done if at <= one <= at + RECOVERY_S)]
    return round(max((b - a for a, b in itertools.pairwise(near)), default=RECOVERY_S), 2)


def longest_pause(book: Book) -> float:
    """The longest time in which no call brought decisions."""
    done = sorted(call.done_s for call in book.calls if call.decisions)
    return round(max(b - a for a, b in itertools.pairwise(done)), 2)


def drive(
    instance: Instance, data: Path, revisions: dict[str, str], steps: list[Step], target: int, record: Any
) -> tuple[Book, Any]:
    """One run: users and campaigns, load, kills; gives the clients' book and the users as they were before."""
    people = people_and_campaigns(instance.url)
    clients = Clients(instance.url, HOT, OTHERS, list(CAMPAIGNS), connections=CONNECTIONS, target=target, seed=target)
    script = Script(instance, data, revisions)
    began = time.monotonic()
    asyncio.run(under_fire(clients, script, steps, target))
    book = clients.book
    seconds = time.monotonic() - began
    summary = {
        "decisions": book.decisions,
        "seconds": round(seconds, 1),
        "decisions_per_s": round(book.decisions / seconds),
        "answers_repeated": book.repeats,
        "rows_retried": book.retried,
        "keys": len(book.owned),
        "grants": sum(len(one.sends) for one in book.answers if not one.replayed),
        "answers_lost_without_key": len(book.lost),
        "failures": dict(book.failures),
        "promoted": script.promoted,
        "promotions_refused": script.refusals,
        "longest_pause_s": longest_pause(book),
        "kills": [
            {"what": what, "first_answer_after_s": recovery(book, at), "longest_pause_s": pause(book, at)}
            for what, at in script.killed
        ],
    }
    print(json.dumps(summary, indent=1))
    record("fire", json.dumps(summary))
    assert book.strange == []
    for what, at in script.killed:
        assert (recovery(book, at) or 1e9) <= RECOVERY_S, f"{what} took longer: {summary}"
    return book, people


@pytest.fixture
def data(demo_release: Path, tmp_path: Path) -> Path:
    return data_copy(demo_release, tmp_path / "data")


@pytest.mark.long
def test_sqlite_stays_exact_while_replicas_ingress_and_the_ledger_s_owner_die(
    ray_cluster: int, data: Path, record_property: Callable[[str, object], None]
) -> None:
    revisions = prepare_data(data)
    steps = [
        kill("Decision"), promote("second"), kill("Ledger"), kill("Ingress"), promote("first"), kill("Decision"),
        kill("Ledger"), promote("second"), promote("first"),
    ]  # fmt: skip
    with deployed(settings_of(data, ray_cluster)) as instance:
        book, people = drive(instance, data, revisions, steps, DECISIONS * 3 // 4, record_property)
        assert replicas_of(instance, "decision") == 3
        assert replicas_of(instance, "ingress") == 2
    ledger = open_ledger(data)
    evidence = gather(data, ledger, people, book)
    ledger.close()
    assert findings(evidence) == []


@pytest.mark.long
def test_redis_stays_exact_while_it_dies(
    ray_cluster: int, data: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    require_redis()
    revisions = prepare_data(data)
    server = RedisServer(tmp_path / "redis")

    async def kill_redis(script: Script) -> None:
        script.killed.append(("Redis", time.monotonic()))
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)

    steps = [kill_redis, promote("second"), kill("Decision"), kill_redis, promote("first"), kill("Ledger")]
    redis = {"backend": "redis", "redis_url": server.url}
    try:
        with deployed(settings_of(data, ray_cluster, ledger=redis)) as instance:
            book, people = drive(instance, data, revisions, steps, DECISIONS // 4, record_property)
        ledger = open_ledger(data, backend="redis", redis_url=server.url)
        evidence = gather(data, ledger, people, book)
        ledger.close()
    finally:
        server.kill()
    assert findings(evidence) == []
