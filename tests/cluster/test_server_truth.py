"""One truth through HTTP: what was decided is explained, audited, kept up and forgotten, while the server runs."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest

from serve_app.audit.ledger_side import ledger_side
from serve_app.audit.run import audit
from serve_app.ids import hash_id
from serve_app.log.reader import read_log
from serve_app.policies import read_current_policy, read_policy, store_policy
from serve_app.policy.document import PolicyDocument
from tests.cluster.server_support import TOKEN, data_copy, deployed, generous, in_process

OPERATOR = {"Authorization": f"Bearer {TOKEN}"}
CAMPAIGN = {"text": "Your order is on its way", "message_class": "transactional", "channels": ["push"]}


@pytest.fixture(scope="module")
def data(demo_release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data_copy(demo_release, tmp_path_factory.mktemp("truth") / "data")


@pytest.fixture(scope="module")
def client(data: Path) -> Iterator[httpx.Client]:
    with in_process(generous(data=data, topology="fused")) as made:
        assert made.put("/v1/campaigns/order-sent", json=CAMPAIGN).status_code == 200
        yield made


def decide(client: httpx.Client, user: str, **more: Any) -> dict[str, Any]:
    answer = client.post("/v1/notifications/decide", json={"user": user, "candidates": [{"campaign": "order-sent"}], **more})
    assert answer.status_code == 200, answer.text
    said: dict[str, Any] = answer.json()
    return said


def upkeep(client: httpx.Client) -> dict[str, Any]:
    answer = client.post("/v1/log/upkeep", headers=OPERATOR)
    assert answer.status_code == 200, answer.text
    said: dict[str, Any] = answer.json()
    return said


def test_a_decision_that_sent_nothing_is_explained_before_and_after_compaction(client: httpx.Client) -> None:
    said = decide(client, f"nobody {secrets.token_hex(4)}")
    assert said["reason"] == "unreachable"
    for _ in range(2):
        kept = client.get(f"/v1/decisions/{said['decision_id']}").json()
        assert (kept["source"], kept["reason"]) == ("log", "unreachable")
        (gate,) = [one for one in kept["candidates"][0]["gates"] if one["reason"] == "unreachable"]
        assert gate["outcome"] == "suppress"
        upkeep(client)
    missing = client.get("/v1/decisions/d" + "0" * 36)
    assert missing.status_code == 404
    assert "ledger or log" in missing.json()["detail"]


def test_upkeep_is_an_operators_call(client: httpx.Client) -> None:
    assert client.post("/v1/log/upkeep").status_code in (401, 403)


def test_served_traffic_is_one_truth_and_stays_so_through_upkeep(client: httpx.Client, data: Path) -> None:
    users = [f"customer {n} {secrets.token_hex(3)}" for n in range(6)]
    for user in users:
        client.put(f"/v1/users/{user}", json={"reachable": ["push"], "zone": "Asia/Seoul", "region": "kr"})
        assert decide(client, user, idempotency_key="first")["action"] == "send"
        assert decide(client, user, idempotency_key="first")["replayed"]
    for _ in range(2):
        with ledger_side(data) as side:
            report = audit(data, side, now_us=time.time_ns() // 1000)
        assert report.clean, report.document()
        assert report.looked_at["sends counted by the ledger"] >= 6
        done = upkeep(client)
    assert done["records_unreadable"] == 0


def test_a_promotion_is_in_the_log(client: httpx.Client, data: Path) -> None:
    before, _ = read_current_policy(data)
    assert before is not None
    document = read_policy(data, before)
    body = document.model_dump(mode="json")
    switched = PolicyDocument.model_validate({**body, "kill_switches": {**body["kill_switches"], "channels": ["sms"]}})
    revision = store_policy(data, switched)
    for version in (revision, before):
        for phase in ("prepare", "commit"):
            answer = client.post(f"/v1/policies/{phase}", json={"version": version}, headers=OPERATOR)
            assert answer.status_code == 200, answer.text
    rows = [(row["kind"], json.loads(row["payload"])) for row in read_log(data, "environment").to_pylist()]
    assert ("promotion", {"policy_revision": revision, "replaced": before}) in rows
    assert [told["kill_switches"]["channels"] for kind, told in rows if kind == "switch"] == [["sms"], []]


def test_a_user_who_leaves_is_gone_from_ledger_log_and_disk(client: httpx.Client, data: Path) -> None:
    name = f"leaving-{secrets.token_hex(6)}"
    user = hash_id(name)
    client.put(f"/v1/users/{name}", json={"reachable": ["push"]})
    made = decide(client, name, idempotency_key="k")
    upkeep(client)
    decide(client, name)
    assert client.delete(f"/v1/users/{name}").status_code == 204
    assert client.get(f"/v1/users/{name}").status_code == 404
    assert client.get(f"/v1/decisions/{made['decision_id']}").status_code == 404
    for table in ("requests", "candidates", "decisions", "users"):
        assert user not in read_log(data, table, columns=["user"])["user"].to_pylist()
    assert client.delete(f"/v1/users/{name}").status_code == 204, "asking twice is no error"
    for _ in range(3):
        upkeep(client)
    for path in (data / "log").rglob("*.parquet"):
        rows = pq.read_table(path, partitioning=None)
        assert "user" not in rows.column_names or user not in rows["user"].to_pylist(), path
    text = name.encode()
    assert [path for path in data.rglob("*") if path.is_file() and text in path.read_bytes()] == []
    with ledger_side(data) as side:
        assert audit(data, side, now_us=time.time_ns() // 1000).clean


@pytest.mark.ray
def test_a_deployed_worker_keeps_the_log_up_by_itself(ray_cluster: int, demo_release: Path, tmp_path: Path) -> None:
    data = data_copy(demo_release, tmp_path / "data")
    settings = generous(data=data, topology="fused", http={"port": ray_cluster}, journal={"upkeep_s": 1.0})
    with deployed(settings) as instance, httpx.Client(base_url=instance.url, timeout=60.0) as client:
        assert client.put("/v1/campaigns/order-sent", json=CAMPAIGN).status_code == 200
        client.put("/v1/users/kept", json={"reachable": ["push"]})
        made = decide(client, "kept", idempotency_key="k")
        user = hash_id("kept")
        until = time.monotonic() + 60
        while user not in read_log(data, "decisions", columns=["user"], journal=False)["user"].to_pylist():
            assert time.monotonic() < until, "nothing was compacted"
            time.sleep(0.2)
        while user not in read_log(data, "ledger_snapshot", columns=["user"])["user"].to_pylist():
            assert time.monotonic() < until, "no snapshot was taken"
            time.sleep(0.2)
        assert client.get(f"/v1/decisions/{made['decision_id']}").json()["source"] == "ledger"
        with ledger_side(data) as side:
            assert audit(data, side, now_us=time.time_ns() // 1000).clean
