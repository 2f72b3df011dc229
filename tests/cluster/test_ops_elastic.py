"""Replicas come with load and go with it, and a server is updated while it serves: not one request fails on the way.

The server is deployed as `serve deploy` does it, in a process of its own, because draining keeps its production length here.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import pytest

import serve_app
from serve_app.elasticity import APPLICATION
from tests.cluster.elastic_support import Cluster, Load, until
from tests.cluster.server_support import data_copy

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(900)]
UP_S = 90.0  # starting a process that holds a release takes most of it
DOWN_S = 90.0
UPDATE_S = 240.0
GROWS = {
    "max_replicas": 2,
    "upscale_delay_s": 0,
    "downscale_delay_s": 0,
    "look_back_s": 2,
}
NEW = {
    "replicas.py": ('name = f"{part}-', 'name = f"new-{part}-'),  # of each stage's replica, as `/v1/replicas` tells it
    "ingress/calls.py": ('"title": "Hindcast"', '"title": "Hindcast, the new one"'),
}
BROKEN = {"serving/follower.py": ("class Follower:", "raise RuntimeError")}  # every replica of the application has one


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
        after = cluster.replicas()  # one that load had called for may be gone by now, but none is new
    assert after.keys() <= before.keys()
    assert set(after.values()) == set(before.values())
    assert not load.failures, load.failures[:5]


def test_a_rolling_update_fails_no_request_and_leaves_the_state_owner_alone(cluster: Cluster) -> None:
    before, owner = cluster.replicas(), cluster.state_owner()
    with Load(cluster.url, 3) as load:
        cluster.deploy(serving={"page_items": 5})

        def replaced() -> bool:
            return cluster.steady() and not before.keys() & cluster.replicas().keys()

        took = until(replaced, UPDATE_S)
        assert cluster.state_owner() == owner
        page = httpx.post(f"{cluster.url}/v1/recommendations/gateway", json={"user": "u0000001"}, timeout=60).json()
        assert max(len(one["items"]) for one in page["widgets"]) <= 5
        answered = sum(load.answers.values())
        until(lambda: sum(load.answers.values()) > answered + 10, 30)
    assert not load.failures, load.failures[:5]
    print(f"\nupdated in {took:.1f} s, answers {dict(load.answers)}")


def test_a_rolling_update_of_the_code_fails_no_request_and_leaves_the_state_owner_alone(
    cluster: Cluster, tmp_path: Path
) -> None:
    before, owner = cluster.replicas(), cluster.state_owner()
    with Load(cluster.url, 3) as load:
        cluster.roll_out(installed(tmp_path / "9.9.9", NEW))
        took = until(lambda: cluster.steady() and not before.keys() & cluster.replicas().keys(), UPDATE_S)
        assert cluster.state_owner() == owner
        after = cluster.replicas()
        assert set(after.values()) == set(before.values())
        assert all(name.startswith("new-") for name, role in after.items() if role != "ingress"), after
        said = httpx.get(f"{cluster.url}/openapi.json", timeout=60).json()["info"]
        assert (said["title"], said["version"]) == ("Hindcast, the new one", "9.9.9")
        answered = sum(load.answers.values())
        until(lambda: sum(load.answers.values()) > answered + 10, 30)
    assert not load.failures, load.failures[:5]
    print(f"\nnew code everywhere in {took:.1f} s, answers {dict(load.answers)}")


def test_code_that_does_not_start_leaves_the_old_serving_and_the_way_back_replaces_nothing(
    cluster: Cluster, tmp_path: Path
) -> None:
    before, deployed = cluster.replicas(), cluster.deployed
    with Load(cluster.url, 3) as load:
        cluster.roll_out(installed(tmp_path / "broken", BROKEN))
        told = until(lambda: cluster.status()["applications"][APPLICATION] == "DEPLOY_FAILED", UPDATE_S)
        assert cluster.replicas() == before
        cluster.deploy_file(deployed)
        back = until(cluster.steady, UPDATE_S)
        assert cluster.replicas() == before
    assert not load.failures, load.failures[:5]
    print(f"\nfailed after {told:.1f} s, taken back in {back:.1f} s, answers {dict(load.answers)}")


def installed(folder: Path, changes: Mapping[str, tuple[str, str]]) -> Path:
    """Another version of Hindcast as `pip install --no-deps --target` leaves it. changes: of a file, what to what."""
    shutil.copytree(Path(serve_app.__file__).parent, folder / "serve_app", ignore=shutil.ignore_patterns("__pycache__"))
    for name, (was, is_now) in changes.items():
        file = folder / "serve_app" / name
        assert file.read_text().count(was) == 1, (name, was)
        file.write_text(file.read_text().replace(was, is_now))
    known = folder / "hindcast_platform-9.9.9.dist-info" / "METADATA"
    known.parent.mkdir()
    known.write_text("Metadata-Version: 2.1\nName: hindcast-platform\nVersion: 9.9.9\n")
    return folder
