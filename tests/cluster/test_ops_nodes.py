"""The app over several nodes of one host, one of which dies under load."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.cluster.elastic_support import Cluster, Load, until
from tests.cluster.server_support import data_copy

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(900)]
TWICE = {"min_replicas": 2, "max_replicas": 2}
GIVES_UP_S = 30.0


@pytest.fixture(scope="module")
def cluster(demo_release: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes, each with one replica of every stage and an ingress."""
    home = tmp_path_factory.mktemp("nodes")
    made = Cluster(home, data_copy(demo_release, home / "data"), workers=1)
    try:
        stages = dict.fromkeys(("ingress", "retrieval", "features", "ranking", "decision"), TWICE)
        made.deploy({"max_replicas_per_node": 1}, deployments=stages)
        until(made.steady, 300)
        until(lambda: httpx.get(f"{made.url}/readyz", timeout=30).status_code == 200, 60)
        yield made
    finally:
        made.end()


class Patient(threading.Thread):
    """A caller that asks again while it is told to (429, 503), and gives up after a while."""

    def __init__(self, url: str, number: int) -> None:
        super().__init__(daemon=True)
        self.url, self.number, self.stopping = url, number, threading.Event()
        self.answered = self.degraded = self.asked_again = 0
        self.lost: list[str] = []
        self.slowest_s = 0.0

    def run(self) -> None:
        with httpx.Client(base_url=self.url, timeout=GIVES_UP_S) as client:
            while not self.stopping.is_set():
                began = time.monotonic()
                said = self._ask(client, began + GIVES_UP_S)
                self.slowest_s = max(self.slowest_s, time.monotonic() - began)
                if said:
                    self.lost.append(said)

    def _ask(self, client: httpx.Client, until_s: float) -> str:
        said = ""
        while time.monotonic() < until_s:
            try:
                body = {"user": f"u{self.number:07d}", "widgets": 2, "slots": 4}
                answer = client.post("/v1/recommendations/gateway", json=body)
            except httpx.TransportError as error:
                said = repr(error)
            else:
                if answer.status_code == 200:
                    self.answered += 1
                    self.degraded += bool(answer.json()["degraded"])
                    return ""
                said = f"{answer.status_code} {answer.text[:200]}"
                if answer.status_code not in (429, 503) or "problem" not in answer.headers["content-type"]:
                    return said
            self.asked_again += 1
            time.sleep(0.2)
        return said


def test_a_node_dies_under_load_and_nobody_who_asks_again_is_lost(cluster: Cluster) -> None:
    assert cluster.running("Ingress") == cluster.running("Ranking") == 2
    callers = [Patient(cluster.url, number) for number in range(4)]
    for caller in callers:
        caller.start()
    until(lambda: sum(caller.answered for caller in callers) > 50, 60)
    cluster.ask("kill")
    killed = time.monotonic()
    answered = [caller.answered for caller in callers]
    until(lambda: all(caller.answered > before + 10 for caller, before in zip(callers, answered, strict=True)), 60)
    served = time.monotonic() - killed
    cluster.ask("grow")
    whole = until(lambda: cluster.steady() and cluster.running("Ingress") == cluster.running("Ranking") == 2, 300)
    for caller in callers:
        caller.stopping.set()
    for caller in callers:
        caller.join(60)
    total, again = (sum(getattr(caller, name) for caller in callers) for name in ("answered", "asked_again"))
    lost = [said for caller in callers for said in caller.lost]
    slowest = max(caller.slowest_s for caller in callers)
    degraded = sum(caller.degraded for caller in callers)
    print(f"\n{total} answers, {degraded} degraded, {again} asked again, slowest {slowest:.1f} s; "
          f"all callers served within {served:.1f} s of the kill; whole {whole:.1f} s after a new node came")  # fmt: skip
    assert not lost, lost[:5]
    with Load(cluster.url, 2) as load:
        until(lambda: sum(load.answers.values()) > 20, 60)
    assert not load.failures, load.failures[:5]
