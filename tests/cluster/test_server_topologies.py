"""Chain, fused and one process without Ray give the same answers to the byte."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve_app.catalogue import read_catalogue
from tests.cluster.server_support import data_copy, deployed, generous, in_process

pytestmark = pytest.mark.ray
Call = tuple[str, str, Any]
NOW = "2026-11-22T03:00:00Z"


def facts(data: Path) -> list[Call]:
    """State that all servers are given: a hidden item, a new one, a campaign, a reachable user."""
    catalogue = read_catalogue(data / "catalogue")
    items, users = catalogue.items["item_id"].to_pylist(), catalogue.users["user_id"].to_pylist()
    return [
        ("PUT", f"/v1/items/{items[20]}", {"available": False}),
        ("PUT", "/v1/items/new-one", {"title": "New", "category": catalogue.items["category"][0].as_py(), "price": 9.0}),
        ("PUT", "/v1/campaigns/shipped", {"text": "Sent", "message_class": "transactional", "channels": ["push", "email"]}),
        ("PUT", f"/v1/users/{users[3]}", {"reachable": ["push", "email"], "zone": "Asia/Seoul", "region": "kr"}),
    ]


def questions(data: Path) -> list[Call]:
    """Dry runs with fixed time and request id over every surface."""
    catalogue = read_catalogue(data / "catalogue")
    items, users = catalogue.items["item_id"].to_pylist(), catalogue.users["user_id"].to_pylist()
    reviewed = catalogue.reviews["item_id"].to_pylist()
    made: list[Call] = []

    def ask(path: str, **body: Any) -> None:
        fixed = {"dry_run": True, "now": NOW, "request_id": f"{len(made) + 1:016x}"}
        made.append(("POST", path, {**body, **fixed}))

    for n in range(12):
        ask("/v1/recommendations/related", item=items[n], user=users[n], slots=10, explain=n % 3 == 0)
        ask("/v1/recommendations/gateway", user=users[n], widgets=4, slots=6, explain=n % 4 == 0)
        ask("/v1/widgets/rank", user=users[n], slots=4)
        ask("/v1/reviews/rank", item=reviewed[n], user=users[n], slots=5, explain=n == 0)
        ask("/v1/notifications/decide", user=users[n], explain=True)
    ask("/v1/recommendations/related", item="new-one", slots=10, recent_items=items[:300])
    ask("/v1/recommendations/gateway", region="us", device="app")
    ask("/v1/notifications/decide", user=users[3], candidates=[{"campaign": "shipped"}], explain=True)
    ask("/v1/notifications/decide-batch", rows=[{"user": user} for user in users[:40]])
    return made


def answers(base_url: str, data: Path) -> list[tuple[str, int, bytes]]:
    with httpx.Client(base_url=base_url, timeout=60.0) as client:
        for method, path, body in facts(data):
            assert client.request(method, path, json=body).status_code == 200
        return [
            (path, answer.status_code, answer.content)
            for method, path, body in questions(data)
            for answer in [client.request(method, path, json=body)]
        ]


NEVER = {"refresh_minutes": 0}  # memberships that nobody computes are unknown in every topology alike


@pytest.fixture(scope="module")
def fresh(demo_release: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A data folder of its own for each server: same release, empty ledger."""

    def make(name: str) -> Path:
        return data_copy(demo_release, tmp_path_factory.mktemp(name) / "data")

    return make


@pytest.fixture(scope="module")
def alone(fresh: Callable[[str], Path]) -> list[tuple[str, int, bytes]]:
    data = fresh("alone")
    with in_process(generous(data=data, topology="fused", segments=NEVER)) as client:
        return answers(str(client.base_url), data)


@pytest.fixture(params=["chain", pytest.param("fused", marks=pytest.mark.long)])
def topology(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_every_topology_answers_the_same_bytes(
    ray_cluster: int, topology: str, alone: list[tuple[str, int, bytes]], fresh: Callable[[str], Path]
) -> None:
    data = fresh(topology)
    scored = ("related", "gateway", "widgets", "notifications")
    with deployed(generous(data=data, topology=topology, http={"port": ray_cluster}, segments=NEVER)) as instance:
        found = answers(instance.url, data)
    for (path, status, body), (_, other_status, other) in zip(alone, found, strict=True):
        assert status == other_status == 200, (path, body, other)
        scored_surface = "batch" not in path and any(name in path for name in scored)
        assert not scored_surface or b'"degraded":[]' in body, (path, body[:400])
        assert other == body, path
