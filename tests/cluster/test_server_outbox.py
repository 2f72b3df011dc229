"""Senders that pull: claim over HTTP, tell outcomes, see the dead ones; a server without a worker or a webhook."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve_app.policies import promote_policy, store_policy
from serve_app.policy.document import parse_policy
from tests.cluster.server_support import data_copy, generous, in_process

POLICY = {
    "name": "pull",
    "other_regions": {"ad_consent_required": False, "night_consent_required": False, "ad_label": None},
    "message_classes": {"informational": {"bypass_threshold": True}},
}


@pytest.fixture(scope="module")
def client(demo_release: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    data = data_copy(demo_release, tmp_path_factory.mktemp("outbox") / "data")
    promote_policy(data, store_policy(data, parse_policy(POLICY)), now=2)
    with in_process(generous(data=data, topology="fused", outbox={"max_attempts": 1})) as made:
        campaign = {"text": "hello", "channels": ["push"], "message_class": "informational", "delivery": "outbox"}
        assert made.put("/v1/campaigns/queued", json=campaign).status_code == 200
        yield made


@pytest.fixture
def message(client: httpx.Client, request: pytest.FixtureRequest) -> dict[str, Any]:
    """One claimed message of a user of this test."""
    user = request.node.name[:100]
    assert client.put(f"/v1/users/{user}", json={"zone": "UTC", "reachable": ["push"]}).status_code == 200
    answer = client.post("/v1/notifications/decide", json={"user": user, "candidates": [{"campaign": "queued"}]}).json()
    assert [send["status"] for send in answer["sends"]] == ["queued"], answer
    (one,) = client.post("/v1/outbox/claim", json={"lease_s": 60}).json()["messages"]
    assert (one["user"], one["decision_id"]) == (user, answer["sends"][0]["decision_id"])
    return dict(one)


def told(client: httpx.Client, message: dict[str, Any], outcome: str, status: int = 200, **fields: Any) -> Any:
    said = {"receipt": message["receipt"], "decision_id": message["decision_id"], "outcome": outcome, **fields}
    answer = client.post("/v1/outbox/ack", json={"outcomes": [said]})
    assert answer.status_code == status, answer.text
    return answer.json()


def test_a_delivered_message_is_settled_once_however_often_it_is_told(client: httpx.Client, message: dict[str, Any]) -> None:
    assert client.post("/v1/outbox/claim", json={}).json() == {"messages": []}
    assert told(client, message, "delivered") == {"settled": 1, "retried": 0}
    assert told(client, message, "delivered") == {"settled": 0, "retried": 0}


def test_a_message_that_cannot_be_delivered_gives_its_use_back(client: httpx.Client, message: dict[str, Any]) -> None:
    assert told(client, message, "failed", reason="no token") == {"settled": 1, "retried": 0}
    assert client.get("/v1/outbox/dead").json() == {"messages": []}


def test_after_its_last_attempt_a_message_is_dead_and_can_be_revived(client: httpx.Client, message: dict[str, Any]) -> None:
    assert told(client, message, "retry") == {"settled": 0, "retried": 1}
    (dead,) = client.get("/v1/outbox/dead").json()["messages"]
    assert (dead["decision_id"], dead["attempts"]) == (message["decision_id"], 1)
    assert client.post("/v1/outbox/revive", json={"receipts": [dead["receipt"]]}).json() == {"revived": 1}
    (again,) = client.post("/v1/outbox/claim", json={}).json()["messages"]
    assert again["decision_id"] == message["decision_id"]
    told(client, again, "delivered")


def test_a_wrong_receipt_names_its_field_and_changes_nothing(client: httpx.Client, message: dict[str, Any]) -> None:
    other = {**message, "receipt": message["receipt"].rsplit(".", 1)[0] + ".7"}
    assert told(client, other, "delivered", 422)["field"] == "outcomes.0.receipt"
    assert told(client, {**message, "receipt": "nonsense"}, "delivered", 422)["field"] == "outcomes.0.receipt"
    assert told(client, {**message, "decision_id": "x" * 37}, "delivered", 422)["field"] == "outcomes.0.decision_id"
    assert told(client, message, "delivered") == {"settled": 1, "retried": 0}


def test_a_user_who_opts_out_before_the_claim_is_not_handed_out(client: httpx.Client) -> None:
    assert client.put("/v1/users/late", json={"zone": "UTC", "reachable": ["push"]}).status_code == 200
    body = {"user": "late", "candidates": [{"campaign": "queued"}]}
    assert client.post("/v1/notifications/decide", json=body).json()["action"] == "send"
    assert client.put("/v1/users/late", json={"opted_out": ["push"]}).status_code == 200
    assert client.post("/v1/outbox/claim", json={}).json() == {"messages": []}
