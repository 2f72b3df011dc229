"""kill -9 of a replica while it writes: nothing answered is missing from the log, nothing torn is read as data."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from serve_app.catalogue import read_catalogue
from serve_app.ids import hash_id
from serve_app.log.reader import read_log
from serve_app.running.instance import Instance, await_ready
from tests.cluster.server_support import data_copy, deployed, generous

pytestmark = pytest.mark.chaos
TOPOLOGIES = ("chain", "fused")


class Writers:
    """Callers that record every answer they got: request ids of lists, ids of accepted events."""

    def __init__(self, url: str, items: list[str], callers: int = 4) -> None:
        self.requests: list[int] = []
        self.events: list[str] = []
        self.failures = 0
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._call, args=(url, items, f"caller-{n}"), daemon=True) for n in range(callers)
        ]

    def __enter__(self) -> Writers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def wait_for(self, answers: int) -> None:
        """Until so many further answers have come."""
        wanted = len(self.requests) + answers
        pause = threading.Event()
        for _ in range(2_400):
            if len(self.requests) >= wanted:
                return
            pause.wait(0.05)
        raise AssertionError(f"{len(self.requests)} answers, {wanted} wanted, {self.failures} failures")

    def _call(self, url: str, items: list[str], name: str) -> None:
        count = 0
        with httpx.Client(base_url=url, timeout=30.0) as client:
            while not self._stop.is_set():
                count += 1
                try:
                    self._once(client, items[count % len(items)], name, f"{name}-{count}")
                except httpx.HTTPError:
                    self.failures += 1
                    self._stop.wait(0.05)

    def _once(self, client: httpx.Client, item: str, user: str, event_id: str) -> None:
        answer = client.post("/v1/recommendations/related", json={"item": item, "user": user, "slots": 3})
        if answer.status_code == 200 and "log" not in answer.json()["degraded"]:
            self.requests.append(int(answer.json()["request_id"], 16))
        else:
            self.failures += 1
        event = {"specversion": "1.0", "id": event_id, "source": "/t", "type": "view", "subject": user}
        event |= {"time": "2026-11-22T03:00:00Z", "data": {"item": item}}
        accepted = client.post("/v1/events", json=[event])
        if accepted.status_code == 200 and accepted.json()["accepted"] == 1:
            self.events.append(event_id)


@pytest.fixture(params=TOPOLOGIES)
def data(request: pytest.FixtureRequest, demo_release: Path, tmp_path: Path) -> Path:
    folder = data_copy(demo_release, tmp_path / "data")
    (folder / "topology").write_text(request.param)
    return folder


@pytest.fixture
def instance(ray_cluster: int, data: Path) -> Iterator[Instance]:
    topology = (data / "topology").read_text()
    with deployed(generous(data=data, topology=topology, http={"port": ray_cluster})) as made:
        yield made


def kill(instance: Instance, role: str) -> int:
    """kill -9 the replica of a role; gives its process id."""
    pid = next(one["pid"] for one in instance.get("/v1/replicas")["replicas"] if one["role"] == role)
    os.kill(pid, signal.SIGKILL)
    return int(pid)


def test_nothing_answered_is_lost_when_a_writing_replica_is_killed(instance: Instance, data: Path) -> None:
    items = read_catalogue(data / "catalogue").items["item_id"].to_pylist()
    victims = ("ingress", "ranking") if instance.settings.topology == "chain" else ("ingress",)
    with Writers(instance.url, items) as writers:
        for role in victims:
            writers.wait_for(40)
            kill(instance, role)
            writers.wait_for(40)
            await_ready(instance)
    logged = set(read_log(data, "requests", columns=["request_id"])["request_id"].to_pylist())
    assert len(writers.requests) == len(set(writers.requests))
    assert set(writers.requests) <= logged
    decided = read_log(data, "decisions", columns=["request_id", "p_action"]).to_pylist()
    assert set(writers.requests) <= {one["request_id"] for one in decided}
    assert all(0 < one["p_action"] <= 1 for one in decided)
    events = set(read_log(data, "events", columns=["event_id"])["event_id"].to_pylist())
    assert {hash_id(event) for event in writers.events} <= events
