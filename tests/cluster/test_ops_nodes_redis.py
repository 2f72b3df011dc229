"""Send decisions of two nodes on a ledger in Redis, while one of the nodes dies: callers who ask again with the same key are
all answered, nothing is decided twice, no cap is passed, and ledger and log tell what the callers were told."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from loadtests.chaos_books import examine
from loadtests.chaos_figures import Attempt, Call
from serve_app.ledger.opening import open_ledger
from tests.chaos.exactness_checker import findings
from tests.chaos.fire_clients import Book, Clients
from tests.chaos.fire_evidence import gather
from tests.chaos.fire_server import CAMPAIGNS, HOT, OTHERS, people_and_campaigns, prepare_data
from tests.chaos.test_exact_under_fire import longest_pause, recovery
from tests.cluster.elastic_support import Cluster, until
from tests.cluster.server_support import data_copy
from tests.unit.ledger_support import RedisServer, require_redis

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.chaos, pytest.mark.timeout(900)]
TWICE = {"min_replicas": 2, "max_replicas": 2}
STAGES = ("ingress", "retrieval", "features", "ranking", "decision")
DECISIONS = 20_000


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    require_redis()
    server = RedisServer(tmp_path / "redis")
    yield server
    server.kill()


@pytest.fixture
def cluster(demo_release: Path, redis: RedisServer, tmp_path: Path) -> Iterator[Cluster]:
    """Two nodes, each with one replica of every stage and an ingress."""
    data = data_copy(demo_release, tmp_path / "data")
    prepare_data(data)
    made = Cluster(tmp_path, data, workers=1)
    try:
        stages = dict.fromkeys(STAGES, TWICE)
        ledger = {"backend": "redis", "redis_url": redis.url}
        made.deploy({"max_replicas_per_node": 1}, deployments=stages, ledger=ledger)
        until(made.steady, 300)
        until(lambda: httpx.get(f"{made.url}/readyz", timeout=30).status_code == 200, 60)
        yield made
    finally:
        made.end()


def test_a_node_dies_under_decisions_and_every_key_is_decided_once(cluster: Cluster, redis: RedisServer) -> None:
    people = people_and_campaigns(cluster.url)
    clients = Clients(cluster.url, HOT, OTHERS, list(CAMPAIGNS), connections=24, target=DECISIONS, seed=11)
    killed, whole = asyncio.run(_a_node_dies(cluster, clients))
    book = clients.book
    first = {one.request_id for one in book.answers if not one.replayed}
    late = len({one.request_id for one in book.answers} - first)
    print(f"\n{book.decisions} decisions, {book.retried} rows asked again, {late} of them decided the first time already, "
          f"failures {dict(book.failures)}; decided again {recovery(book, killed)} s after the kill, longest pause "
          f"{longest_pause(book)} s; whole {whole:.1f} s after a new node came")  # fmt: skip
    cluster.end()
    ledger = open_ledger(cluster.data, backend="redis", redis_url=redis.url)
    evidence = gather(cluster.data, ledger, people, book)
    ledger.close()
    assert book.strange == []
    assert book.retried > 0
    assert findings(evidence) == []
    books = examine(cluster.data, _calls(book), redis_url=redis.url)
    print(books)
    assert books.answered > DECISIONS
    assert books.grants > 0
    assert books.findings == []


async def _a_node_dies(cluster: Cluster, clients: Clients) -> tuple[float, float]:
    """Under load, once both nodes have decided; a new one comes when the other has decided by itself for a while. When it
    died, and how long its successor took."""
    book, running = clients.book, asyncio.create_task(clients.run())

    def decided(share: float) -> bool:
        assert not running.done(), "the clients stopped early"
        return book.decisions > DECISIONS * share

    def alone() -> bool:
        return decided(0.6) and recovery(book, killed) is not None

    def again_two() -> bool:
        return decided(0.6) and cluster.steady() and cluster.running("Decision") == cluster.running("Ingress") == 2

    try:
        await asyncio.to_thread(until, lambda: decided(0.2) and _both_decide(cluster), 120)
        await asyncio.to_thread(cluster.ask, "kill")
        killed = time.monotonic()
        await asyncio.to_thread(until, alone, 240)
        await asyncio.to_thread(cluster.ask, "grow")
        whole = await asyncio.to_thread(until, again_two, 300)
        clients.finish()
        await running
    finally:
        running.cancel()
    return killed, whole


def _both_decide(cluster: Cluster) -> bool:
    """Whether two ingresses have let decisions in, and two replicas of Decision have journalled some."""
    lines = httpx.get(f"{cluster.url}/metrics", timeout=60).text.splitlines()
    own = [line for line in lines if line.startswith("ray_hindcast_batcher_requests") and 'lane="decide"' in line]
    ingresses = {found[1] for line in own if (found := re.search(r'WorkerId="(\w+)"', line))}
    journals = {file.parent for file in (cluster.data / "journal").glob("decision-*/*.frames") if file.stat().st_size}
    return len(ingresses) == len(journals) == 2


def _calls(book: Book) -> list[Call]:
    """What callers were answered, as `examine` takes it."""
    ok = Attempt(0.0, 0.0)
    return [Call("decide", 0.0, [ok], over=True, request_id=one.request_id, key=one.key) for one in book.answers]
