"""A running server decides deferrals anew by itself, hands queued messages over, and lives through its ledger's death."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psutil
import pytest

from serve_app.policies import promote_policy, read_current_policy, store_policy
from serve_app.policy.document import parse_policy
from serve_app.release.flip import HttpFlip
from serve_app.running.instance import Instance
from tests.cluster.server_support import TOKEN, data_copy, deployed, generous
from tests.unit.receiver_support import Receiver, receiver

pytestmark = pytest.mark.ray

EVERYONE = {"informational": {"bypass_threshold": True}}
SECRET = "Bearer the receiver's"


@dataclass
class Server:
    """One deployed server, a client of it, and the receiver of its messages."""

    instance: Instance
    client: httpx.Client
    post: Receiver
    data: Path

    def decide(self, user: str, campaign: str, **fields: Any) -> httpx.Response:
        body = {"user": user, "candidates": [{"campaign": campaign}], **fields}
        return self.client.post("/v1/notifications/decide", json=body)

    def put(self, path: str, body: dict[str, Any]) -> None:
        answer = self.client.put(path, json=body)
        assert answer.status_code == 200, answer.text

    def promote(self, **settings: Any) -> None:
        """Put a policy without laws, caps and holdouts in force."""
        free = {"ad_consent_required": False, "night_consent_required": False, "ad_label": None}
        policy = {"name": "deferrals", "other_regions": free, "message_classes": EVERYONE, **settings}
        base = read_current_policy(self.data)
        policy["deferral"] = {"spread_minutes": 0}
        revision = store_policy(self.data, parse_policy(policy))
        if revision != base[0]:
            promote_policy(self.data, revision, now=2, flip=HttpFlip(self.instance.url, TOKEN, "policies"))

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)

    def pids_of(self, role: str) -> set[int]:
        """Of the replicas the board has heard of lately; one that was killed is among them for a while."""
        return {one["pid"] for one in self.instance.get("/v1/replicas")["replicas"] if one["role"] == role}


@pytest.fixture(scope="module", params=["fused", "chain"] if os.environ.get("EVERY_TOPOLOGY") else ["fused"])
def server(
    request: pytest.FixtureRequest, ray_cluster: int, demo_release: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    data = data_copy(demo_release, tmp_path_factory.mktemp("deferrals") / "data")
    with receiver() as post:
        settings = generous(
            data=data, topology=request.param, http={"port": ray_cluster},
            outbox={"webhook_url": post.url, "secret": SECRET, "backoff_s": 0.2, "poll_ms": 100},
            deferrals={"poll_ms": 200},
        )  # fmt: skip
        settings = settings.model_copy(update={"budgets": settings.budgets.model_copy(update={"ledger_ms": 1_000.0})})
        with deployed(settings) as instance, httpx.Client(base_url=instance.url, timeout=60) as client:
            made = Server(instance, client, post, data)
            for user in ("u", "v", "w", "x"):
                made.put(f"/v1/users/{user}", {"zone": "UTC", "reachable": ["push"]})
            about = {"text": "hello", "channels": ["push"]}
            made.put("/v1/campaigns/news", {**about, "message_class": "informational"})
            made.put("/v1/campaigns/queued", {**about, "message_class": "informational", "delivery": "outbox"})
            made.put("/v1/campaigns/order", {**about, "message_class": "transactional"})
            yield made


def until(condition: Callable[[], Any], timeout_s: float, why: str) -> Any:
    pause = threading.Event()
    for _ in range(int(timeout_s / 0.1)):
        if found := condition():
            return found
        pause.wait(0.1)
    raise AssertionError(why)


def test_a_queued_message_reaches_the_receiver_and_is_booked(server: Server) -> None:
    server.promote()
    before = len(server.post.got)
    answer = server.decide("u", "queued").json()
    assert [send["status"] for send in answer["sends"]] == ["queued"]
    assert server.post.wait_for(before + 1, 60)
    one = server.post.got[-1]
    assert one.headers["authorization"] == SECRET
    assert one.headers["idempotency-key"] == one.body["decision_id"] == answer["sends"][0]["decision_id"]
    assert (one.body["user"], one.body["campaign"], one.body["text"]) == ("u", "queued", "hello")


@pytest.mark.long
def test_a_deferral_fires_by_itself_and_its_key_answers_the_deferral(server: Server) -> None:
    end = datetime.now(UTC) + timedelta(seconds=75)
    hours = {"id": "now", "start": f"{end - timedelta(minutes=9):%H:%M}", "end": f"{end:%H:%M}"}
    server.promote(quiet_hours=[hours])
    before = len(server.post.got)
    said = server.decide("v", "news", idempotency_key="k").json()
    assert (said["action"], said["reason"]) == ("defer", "quiet_hours")
    assert server.client.get(f"/v1/decisions/{said['decided_again_as']}").status_code == 404
    assert server.post.wait_for(before + 1, 120)
    assert datetime.now(UTC) >= datetime.fromisoformat(said["until"])
    child = server.client.get(f"/v1/decisions/{said['decided_again_as']}").json()
    assert (child["action"], child["answers_deferral"]) == ("send", said["decision_id"])
    assert server.post.got[-1].body["decision_id"] == child["sends"][0]["decision_id"]
    again = server.decide("v", "news", idempotency_key="k").json()
    assert (again["replayed"], again["action"], again["decision_id"]) == (True, "defer", said["decision_id"])
    assert len(server.post.got) == before + 1


def test_a_killed_worker_comes_back_and_delivers(server: Server) -> None:
    server.promote()
    (old,) = server.pids_of("worker")
    server.kill(old)
    before = len(server.post.got)
    answer = server.decide("w", "queued").json()
    assert server.post.wait_for(before + 1, 120)
    assert server.post.got[-1].body["decision_id"] == answer["sends"][0]["decision_id"]
    until(lambda: server.pids_of("worker") - {old}, 30, "no other worker reported")


def ledger_process() -> int:
    """Process id of the ledger's replica of the one server on the session's Ray."""
    title = "ServeReplica:hindcast:Ledger"
    found = [one.pid for one in psutil.process_iter(["cmdline"]) if title in "".join(one.info["cmdline"] or ())]
    assert len(found) == 1, found
    return found[0]


def test_while_the_ledger_is_dead_orders_go_unledgered_news_waits_and_all_comes_back(server: Server) -> None:
    server.promote()
    assert server.decide("x", "order").json().get("unledgered", False) is False
    queued = server.decide("x", "queued").json()["sends"][0]["decision_id"]
    old = ledger_process()
    server.kill(old)
    unledgered = until(lambda: unledgered_order(server), 60, "no order went while the ledger was dead")
    assert (unledgered["action"], unledgered["degraded"]) == ("send", ["ledger"])
    assert [send["status"] for send in unledgered["sends"]] == ["granted"]
    back = until(lambda: ledgered_news(server), 180, "the ledger did not come back")
    assert back["action"] == "send"
    assert ledger_process() != old
    assert server.decide("x", "order").json().get("unledgered", False) is False
    until(lambda: any(one.body["decision_id"] == queued for one in server.post.got), 60, "a queued message was lost")


def unledgered_order(server: Server) -> dict[str, Any] | None:
    """An order that went without the ledger; None where it was ledgered. It is never refused."""
    answer = server.decide("x", "order")
    assert answer.status_code == 200, answer.text
    said: dict[str, Any] = answer.json()
    return said if said.get("unledgered") else None


def ledgered_news(server: Server) -> dict[str, Any] | None:
    """News that was sent; None where the ledger is away, which is said so and never sent unledgered."""
    answer = server.decide("x", "news", idempotency_key=f"news-{uuid4()}")
    said: dict[str, Any] = answer.json()
    if answer.status_code == 200:
        assert "unledgered" not in said
        return said
    assert answer.status_code == 503
    assert said["type"].rsplit(":", 1)[1] in ("ledger-unavailable", "outcome-unknown")
    return None
