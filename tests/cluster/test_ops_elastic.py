"""Replicas come with load and go with it, and a server is updated while it serves: not one request fails on the way.

The server is deployed as `serve deploy` does it, in a process of its own, because draining keeps its production length here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

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
