"""Promotion under load: no failed request, no answer of two releases, and a damaged release changes nothing."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from hindcast import cli
from serve_app.catalogue import read_catalogue
from serve_app.errors import DamagedArtifact, NotReady
from serve_app.policies import promote_policy, read_current_policy, store_policy
from serve_app.policy.document import DEFAULT_POLICY, load_policy, parse_policy
from serve_app.release.flip import HttpFlip
from serve_app.release.registry import promote, read_current
from serve_app.running.instance import Instance
from tests.cluster.server_support import TOKEN, data_copy, deployed, generous, second_release

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def data(demo_release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data_copy(demo_release, tmp_path_factory.mktemp("promotion") / "data")


@pytest.fixture(scope="module")
def instance(ray_cluster: int, data: Path) -> Iterator[Instance]:
    with deployed(generous(data=data, http={"port": ray_cluster})) as made:
        yield made


class Load:
    """Callers that ask for pages, one after the other, until told to stop; every answer is kept."""

    def __init__(self, url: str, users: list[str], callers: int = 4) -> None:
        self.answers: list[tuple[int, dict[str, Any]]] = []
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._call, args=(url, users[n::callers]), daemon=True) for n in range(callers)
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        self.wait_for(10)
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def wait_for(self, more: int) -> None:
        """Until `more` further answers have come."""
        wanted = len(self.answers) + more
        pause = threading.Event()
        for _ in range(1_200):
            if len(self.answers) >= wanted:
                return
            pause.wait(0.05)
        raise AssertionError(f"only {len(self.answers)} answers, {wanted} wanted")

    def _call(self, url: str, users: list[str]) -> None:
        with httpx.Client(base_url=url, timeout=60.0) as client:
            while not self._stop.is_set():
                for user in users:
                    answer = client.post("/v1/recommendations/gateway", json={"user": user, "widgets": 3, "slots": 4})
                    self.answers.append((answer.status_code, answer.json()))
                    if self._stop.is_set():
                        return


def users_of(data: Path) -> list[str]:
    found: list[str] = read_catalogue(data / "catalogue").users["user_id"].to_pylist()
    return found


def test_a_release_is_promoted_without_a_failed_request(instance: Instance, data: Path) -> None:
    old, _ = read_current(data)
    new = second_release(data, "20300101-again")
    with Load(instance.url, users_of(data)) as load:
        promote(data, new, now=2, flip=HttpFlip(instance.url, TOKEN))
        done = len(load.answers)
        load.wait_for(20)
    assert {status for status, _ in load.answers} == {200}
    releases = [answer["release"] for _, answer in load.answers]
    assert set(releases) == {old, new}
    # Answers under way at the flip may still be the old one's: four callers, so at most four.
    assert releases[done:].count(old) <= 4
    replicas = instance.get("/v1/replicas")["replicas"]
    assert {one["role"] for one in replicas} == {"ingress", "retrieval", "features", "ranking", "decision", "worker"}
    assert all(new in one["releases"] for one in replicas)


def test_the_old_release_goes_with_its_last_pin(instance: Instance, data: Path) -> None:
    current, _ = read_current(data)
    pause = threading.Event()
    for _ in range(200):
        replicas = instance.get("/v1/replicas")["replicas"]
        if all(one["releases"] == [current] for one in replicas):
            return
        pause.wait(0.1)
    raise AssertionError(replicas)


def test_a_damaged_release_is_refused_and_the_old_one_serves_on(instance: Instance, data: Path) -> None:
    before, _ = read_current(data)
    damaged = second_release(data, "20300102-damaged")
    victim = next((data / "releases" / damaged / "models").rglob("*.ubj"))
    victim.write_bytes(victim.read_bytes()[:-50])
    with pytest.raises(DamagedArtifact):
        promote(data, damaged, now=3, flip=HttpFlip(instance.url, TOKEN))
    # The replicas refuse it by themselves, too, when somebody asks them past the command's own check.
    with pytest.raises(NotReady, match="damaged"):
        HttpFlip(instance.url, TOKEN).prepare(damaged)
    assert read_current(data)[0] == before
    assert instance.get("/readyz")["release"] == before
    answer = httpx.post(f"{instance.url}/v1/recommendations/gateway", json={"user": users_of(data)[0]}, timeout=60)
    assert answer.json()["release"] == before


def test_a_policy_is_promoted_without_a_failed_request(instance: Instance, data: Path) -> None:
    old, _ = read_current_policy(data)
    plain = load_policy(DEFAULT_POLICY).model_dump(mode="json")
    new = store_policy(data, parse_policy({**plain, "name": "second", "threshold": 0.25}))
    with Load(instance.url, users_of(data)) as load:
        promote_policy(data, new, now=4, flip=HttpFlip(instance.url, TOKEN, "policies"))
        load.wait_for(20)
    assert {status for status, _ in load.answers} == {200}
    assert {answer["policy"] for _, answer in load.answers} == {old, new}
    assert instance.get("/readyz")["policy"] == new


def test_a_policy_that_the_release_cannot_obey_is_refused(instance: Instance, data: Path) -> None:
    before, _ = read_current_policy(data)
    plain = load_policy(DEFAULT_POLICY).model_dump(mode="json")
    plain["surfaces"]["related"]["head_weights"] = {"p_miracle": 1.0}
    strange = store_policy(data, parse_policy(json.loads(json.dumps(plain))))
    with pytest.raises(NotReady, match="p_miracle"):
        promote_policy(data, strange, now=5, flip=HttpFlip(instance.url, TOKEN, "policies"))
    assert read_current_policy(data)[0] == before
    assert instance.get("/readyz")["policy"] == before


def test_a_server_elsewhere_is_told_by_its_address(instance: Instance, data: Path, tmp_path: Path) -> None:
    """As one of a cluster: nothing in the data folder says where it runs."""
    before, _ = read_current_policy(data)
    document, key = tmp_path / "third.json", tmp_path / "admin.key"
    document.write_text(
        json.dumps({**load_policy(DEFAULT_POLICY).model_dump(mode="json"), "name": "third", "threshold": 0.5})
    )
    key.write_text(f"{TOKEN}\n")
    there = ["--data", str(data), "--server", instance.url, "--key-file", str(key)]

    def run(*words: str) -> str:
        done = CliRunner().invoke(cli.app, [*words])
        assert done.exit_code == 0, done.output
        return done.output

    cli._register()
    assert "--server" not in run("policy", "promote", str(document), *there)
    promoted = instance.get("/readyz")["policy"]
    assert promoted == read_current_policy(data)[0] != before
    run("policy", "rollback", *there)
    assert instance.get("/readyz")["policy"] == before
    assert "one elsewhere is told with --server" in run("policy", "promote", str(document), "--data", str(data))
    assert instance.get("/readyz")["policy"] == before
    run("policy", "rollback", *there)
