"""Replicas come with load and go with it, and a server is updated while it serves: not one request fails on the way.

The server is deployed as `serve deploy` does it, in a process of its own, because draining keeps its production length here.
"""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from serve_app.running.serve_file import serve_document
from serve_app.running.switches import free_port
from serve_app.settings import load_settings
from tests.cluster.server_support import data_copy
from tests.cluster.test_server_command import environment

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
UP_S = 90.0  # starting a process that holds a release takes most of it
DOWN_S = 90.0
UPDATE_S = 240.0
SLOW = dict.fromkeys(("request_ms", "live_ms", "retrieval_ms", "features_ms", "ranking_ms", "journal_ms"), 30_000)
GROWS = {
    "max_replicas": 2,
    "upscale_delay_s": 0,
    "downscale_delay_s": 0,
    "look_back_s": 2,
}


class Cluster:
    """See tests.cluster.elastic_server."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.folder, self.data, self.port = folder, data, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = (folder / "server.log").open("w")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.cluster.elastic_server", str(self.port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment(),
        )
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        assert self._answer(180)["started"]

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                self._answers.put(json.loads(line))

    def _answer(self, limit_s: float = 120.0) -> dict[str, Any]:
        try:
            return self._answers.get(timeout=limit_s)
        except queue.Empty:
            raise AssertionError((self.folder / "server.log").read_text()[-3000:]) from None

    def _ask(self, line: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._answer()

    def deploy(self, **settings: Any) -> None:
        """Deploy the chain under these settings."""
        made = load_settings(
            data=self.data, http={"port": self.port}, budgets=SLOW, segments={"refresh_minutes": 0}, **settings
        )
        path = self.folder / "serve.yaml"
        path.write_text(yaml.safe_dump(serve_document(made)))
        assert self._ask(str(path)) == {"deployed": "serve.yaml"}

    def status(self) -> dict[str, Any]:
        return self._ask("status")

    def running(self, deployment: str) -> int:
        return int(self.status()["replicas"].get(deployment, {}).get("RUNNING", 0))

    def steady(self) -> bool:
        """Whether everything that was deployed runs, and nothing that it replaced."""
        found = self.status()
        assert "DEPLOY_FAILED" not in found["applications"].values(), found["messages"]
        states = {state for one in found["replicas"].values() for state in one}
        return set(found["applications"].values()) == {"RUNNING"} and states == {"RUNNING"}

    def replicas(self) -> dict[str, str]:
        """Replica -> role, as they report."""
        found = httpx.get(f"{self.url}/v1/replicas", timeout=60).json()["replicas"]
        return {one["replica"]: one["role"] for one in found}

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(90)
        self._process.kill()
        self._log.close()


@pytest.fixture(scope="module")
def cluster(demo_release: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    home = tmp_path_factory.mktemp("elastic")
    made = Cluster(home, data_copy(demo_release, home / "data"))
    try:
        made.deploy(deployments={"ingress": {**GROWS, "target_ongoing": 4}, "ranking": {**GROWS, "target_ongoing": 1}})
        until(made.steady, 240)
        until(lambda: httpx.get(f"{made.url}/readyz", timeout=30).status_code == 200, 60)
        yield made
    finally:
        made.end()


def until(what: Callable[[], bool], limit_s: float) -> float:
    """Seconds until `what` is true."""
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < limit_s, f"not within {limit_s:g} s"
        time.sleep(0.5)
    return time.monotonic() - began


class Load:
    """Callers in a closed loop, each on a connection of its own that it keeps, without a retry."""

    def __init__(self, url: str, callers: int) -> None:
        self._url, self._stop = url, threading.Event()
        self.answers: Counter[str] = Counter()
        self.failures: list[str] = []
        self._threads = [threading.Thread(target=self._call, args=(n,), daemon=True) for n in range(callers)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _call(self, number: int) -> None:
        with httpx.Client(base_url=self._url, timeout=60.0) as client:
            while not self._stop.is_set():
                body = {"user": f"u{number:07d}", "widgets": 2, "slots": 4}
                try:
                    answer = client.post("/v1/recommendations/gateway", json=body)
                except httpx.HTTPError as error:
                    self.failures.append(f"{time.strftime('%X')} {error!r}")
                    continue
                self.answers[str(answer.status_code)] += 1
                if answer.status_code != 200 or answer.json()["degraded"]:
                    self.failures.append(f"{time.strftime('%X')} {answer.status_code} {answer.text[:300]}")


def test_replicas_come_with_load_and_go_with_it(cluster: Cluster) -> None:
    assert cluster.running("Ingress") == cluster.running("Ranking") == 1
    with Load(cluster.url, 2) as few:
        with Load(cluster.url, 20) as many:
            up = until(lambda: cluster.running("Ingress") == 2 and cluster.running("Ranking") == 2, UP_S)
        down = until(lambda: cluster.running("Ingress") == 1 and cluster.running("Ranking") == 1, DOWN_S)
        until(cluster.steady, DOWN_S)
    assert not many.failures, many.failures[:5]
    assert not few.failures, few.failures[:5]
    print(f"\nup in {up:.1f} s, down in {down:.1f} s, answers {dict(many.answers + few.answers)}")


def test_a_change_of_numbers_replaces_no_replica(cluster: Cluster) -> None:
    before = cluster.replicas()
    grown = {**GROWS, "max_replicas": 3}
    with Load(cluster.url, 2) as load:
        cluster.deploy(deployments={"ingress": {**grown, "target_ongoing": 4}, "ranking": {**grown, "target_ongoing": 4}})
        until(cluster.steady, UPDATE_S)
        assert cluster.replicas() == before
    assert not load.failures, load.failures[:5]


def test_a_rolling_update_fails_no_request_and_leaves_the_state_owner_alone(cluster: Cluster) -> None:
    before = cluster.replicas()
    with Load(cluster.url, 3) as load:
        cluster.deploy(serving={"page_items": 5})

        def replaced() -> bool:
            return cluster.steady() and not before.keys() & cluster.replicas().keys()

        took = until(replaced, UPDATE_S)
        page = httpx.post(f"{cluster.url}/v1/recommendations/gateway", json={"user": "u0000001"}, timeout=60).json()
        assert max(len(one["items"]) for one in page["widgets"]) <= 5
        answered = sum(load.answers.values())
        until(lambda: sum(load.answers.values()) > answered + 10, 30)
    assert not load.failures, load.failures[:5]
    print(f"\nupdated in {took:.1f} s, answers {dict(load.answers)}")
