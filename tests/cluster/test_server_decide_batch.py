"""`decide-batch` over HTTP: the same answers as one call each, in both forms; errors, repeated users and keys row by row."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest

from serve_app.catalogue import read_catalogue
from serve_app.ingress.decisions import row_ids
from serve_app.log.reader import read_log
from serve_app.policies import promote_policy, store_policy
from serve_app.policy.document import DEFAULT_POLICY, load_policy
from tests.cluster.server_support import data_copy, generous, in_process

NOW = "2026-11-22T03:00:00Z"
ARROW = "application/vnd.apache.arrow.stream"
BATCH, ONE = "/v1/notifications/decide-batch", "/v1/notifications/decide"
ANSWER = (
    "user",
    "action",
    "reason",
    "until",
    "sends",
    "degraded",
    "propensity_none",
    "explored",
    "decision_id",
    "request_id",
)


@pytest.fixture(scope="module")
def data(demo_release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = data_copy(demo_release, tmp_path_factory.mktemp("batch") / "data")
    several = load_policy(DEFAULT_POLICY).model_copy(update={"max_sends_per_decision": 3})
    promote_policy(made, store_policy(made, several), now=2)
    return made


@pytest.fixture(scope="module")
def client(data: Path) -> Iterator[httpx.Client]:
    # Small chunks, so that a batch is put together from many.
    with in_process(generous(data=data, topology="fused", limits={"decide_batch_rows_per_chunk": 7})) as made:
        yield made


@pytest.fixture(scope="module")
def users(client: httpx.Client, data: Path) -> list[str]:
    """Forty users of Seoul who can be reached by push and e-mail."""
    ids: list[str] = read_catalogue(data / "catalogue").users["user_id"].to_pylist()[:40]
    for user in ids:
        state = {"reachable": ["push", "email"], "zone": "Asia/Seoul", "region": "kr"}
        assert client.put(f"/v1/users/{user}", json=state).status_code == 200
    return ids


@pytest.fixture(scope="module")
def campaign(client: httpx.Client) -> str:
    body = {"text": "Your parcel has arrived", "message_class": "informational", "channels": ["push", "email"]}
    assert client.put("/v1/campaigns/parcel", json=body).status_code == 200
    return "parcel"


def post(client: httpx.Client, path: str, body: Any, status: int = 200) -> Any:
    answer = client.post(path, json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def arrow(client: httpx.Client, columns: dict[str, Any], **headers: str) -> list[dict[str, Any]]:
    table = pa.table(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    answer = client.post(BATCH, content=sink.getvalue().to_pybytes(), headers={"content-type": ARROW, **headers})
    assert answer.status_code == 200, answer.text
    rows: list[dict[str, Any]] = pa.ipc.open_stream(answer.content).read_all().to_pylist()
    return rows


def test_a_batch_answers_what_single_calls_answer(client: httpx.Client, users: list[str], data: Path) -> None:
    campaigns = read_catalogue(data / "catalogue").campaigns["campaign_id"].to_pylist()
    rng = np.random.default_rng(3)
    rows: list[dict[str, Any]] = []
    for user in users:
        chosen = rng.choice(len(campaigns), 3, replace=False).tolist()
        rows.append({"user": user, "candidates": [{"campaign": campaigns[at]} for at in chosen], "max_sends": 2})
    rows[3].pop("candidates")
    rehearsal = {"dry_run": True, "now": NOW, "request_id": "00000000000000aa"}
    batch = post(client, BATCH, {"rows": rows, **rehearsal})
    ids = row_ids(0xAA, np.arange(len(rows))).tolist()
    singles = [
        post(client, ONE, {**row, **rehearsal, "request_id": f"{one:016x}"}) for row, one in zip(rows, ids, strict=True)
    ]
    for own, alone in zip(batch["decisions"], singles, strict=True):
        assert {name: own[name] for name in ANSWER} == {name: alone[name] for name in ANSWER}
    assert {own["action"] for own in batch["decisions"]} >= {"send", "suppress"}


def test_a_user_in_several_rows_is_decided_in_their_order(client: httpx.Client, campaign: str) -> None:
    user = f"often {secrets.token_hex(4)}"
    client.put(f"/v1/users/{user}", json={"reachable": ["push"], "zone": "Asia/Seoul", "region": "kr"})
    body = {"text": "x", "message_class": "informational", "channels": ["push"]}
    assert client.put("/v1/campaigns/often", json=body).status_code == 200
    row = {"user": user, "candidates": [{"campaign": "often", "channel": "push"}]}
    others = [{"user": f"nobody {at}", "candidates": [{"campaign": campaign}]} for at in range(20)]
    said = post(client, BATCH, {"rows": [row, *others, row, row]})["decisions"]
    mine = [said[0], said[-2], said[-1]]
    granted = [len(one["sends"]) for one in mine]
    assert sum(granted) <= 1  # an hour lies between two messages
    assert len({one["decision_id"] for one in mine}) == 3


def test_rows_that_are_wrong_do_not_touch_the_others(client: httpx.Client, users: list[str], campaign: str) -> None:
    good = [{"user": user, "candidates": [{"campaign": campaign}]} for user in users[:20]]
    bad: dict[int, tuple[Any, int, str]] = {
        2: ({"user": ""}, 422, "user"),
        5: ({"user": "u", "usr": 1}, 422, "usr"),
        9: ({"user": "u", "candidates": [{"campaign": campaign}, {"campaign": "none"}]}, 404, "candidates.1.campaign"),
        11: ({"user": "u", "candidates": [{"campaign": campaign, "channel": "sms"}]}, 422, "candidates.0.channel"),
        16: ({"user": "u", "candidates": [{"campaign": campaign, "item": "no such"}]}, 404, "candidates.0.item"),
        18: (7, 422, "body"),
    }
    rows: list[Any] = list(good)
    for at, (row, _, _) in sorted(bad.items()):
        rows.insert(at, row)
    answer = post(client, BATCH, {"rows": rows, "dry_run": True})
    assert {one["row"]: (one["status"], one["field"]) for one in answer["errors"]} == {at: bad[at][1:] for at in bad}
    assert [one["user"] for one in answer["decisions"] if one] == users[:20]


def test_a_key_repeated_by_row_gives_the_first_decision(client: httpx.Client, users: list[str], campaign: str) -> None:
    stem = secrets.token_hex(4)
    rows = [
        {"user": user, "candidates": [{"campaign": campaign}], "idempotency_key": f"{stem}-{at}"}
        for at, user in enumerate(users[:12])
    ]
    first = post(client, BATCH, {"rows": rows})["decisions"]
    other = {**rows[4], "max_sends": 2}
    again = post(client, BATCH, {"rows": [*rows[:4], other, *rows[5:]]})
    assert [one and one["decision_id"] for one in again["decisions"]] == [
        None if at == 4 else one["decision_id"] for at, one in enumerate(first)
    ]
    assert all(one["replayed"] for one in again["decisions"] if one)
    assert [(one["row"], one["status"], one["field"]) for one in again["errors"]] == [(4, 409, "idempotency_key")]
    assert post(client, ONE, rows[0])["decision_id"] == first[0]["decision_id"]
    columns = {
        "user": [row["user"] for row in rows],
        "campaign": [[campaign]] * len(rows),
        "idempotency_key": [row["idempotency_key"] for row in rows],
    }
    assert [row["decision_id"] for row in arrow(client, columns)] == [one["decision_id"] for one in first]


def test_every_send_of_a_row_is_told_in_both_forms(client: httpx.Client) -> None:
    """What is granted is counted: an answer that named the first send alone would lose the others."""
    for name in ("order-1", "order-2", "order-3"):
        body = {"text": "Your order", "message_class": "transactional", "channels": ["email"]}
        assert client.put(f"/v1/campaigns/{name}", json=body).status_code == 200
    user = secrets.token_hex(4)
    client.put(f"/v1/users/{user}", json={"reachable": ["email"], "zone": "Asia/Seoul", "region": "kr"})
    ask = {"user": user, "max_sends": 3, "candidates": [{"campaign": f"order-{i}"} for i in (1, 2, 3)]}
    sends = post(client, BATCH, {"rows": [ask], "dry_run": True, "now": NOW})["decisions"][0]["sends"]
    columns = {
        "user": [user, "nobody"],
        "max_sends": [3, 1],
        "campaign": pa.array([[one["campaign"] for one in ask["candidates"]], None], pa.list_(pa.string())),
        "idempotency_key": [secrets.token_hex(4), None],
    }
    headers = {"x-hindcast-dry-run": "true", "x-hindcast-now": NOW}
    for row, other in (
        arrow(client, columns, **headers),
        arrow(client, columns),
        arrow(client, columns),
    ):  # the last repeats
        told = [row, *(row["more"] or [])]
        assert sorted(one["campaign"] for one in told) == sorted(one["campaign"] for one in sends)
        assert len({one["decision_id"] for one in told}) == len(told) == len(sends) == 3
        assert {one["delivery"] for one in told} == {"granted"}
        assert other["more"] is None


def test_the_documentation_names_every_arrow_column_and_header(client: httpx.Client) -> None:
    for page in (client.get("/docs").text, client.get("/openapi.json").text):
        for name in ("idempotency_key (string)", "list&lt;string" if "<html" in page else "list<string", "the list more"):
            assert name in page
        assert "x-hindcast-dry-run" in page


def test_a_word_that_may_have_meant_a_dry_run_is_refused(client: httpx.Client) -> None:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, pa.schema([("user", pa.string())])) as writer:
        writer.write_table(pa.table({"user": ["a"]}))
    body = sink.getvalue().to_pybytes()
    for headers in ({"x-hindcast-dry-run": "yes"}, {"x-hindcast-now": NOW}):
        answer = client.post(BATCH, content=body, headers={"content-type": ARROW, **headers})
        assert answer.status_code == 422, answer.text


def test_a_user_whose_id_holds_a_slash_can_be_told_asked_and_forgotten(client: httpx.Client) -> None:
    path = "/v1/users/shop%2F17%2Fa"
    assert client.put(path, json={"reachable": ["email"]}).status_code == 200
    assert client.get(path).json()["user"] == "shop/17/a"
    assert client.delete(path).status_code == 204
    assert client.get(path).status_code == 404
    assert client.put("/v1/users/", json={}).status_code == 422


def test_ten_thousand_rows_are_answered_and_logged(client: httpx.Client, campaign: str, data: Path) -> None:
    mark = secrets.token_hex(4)
    columns = {"user": [f"{mark}-{at}" for at in range(10_000)], "campaign": [[campaign]] * 10_000}
    rows = arrow(client, columns)
    assert len(rows) == 10_000
    assert {row["status"] for row in rows} == {200}
    assert len({row["decision_id"] for row in rows}) == 10_000
    logged = read_log(data, "requests", columns=["request_id"])["request_id"].to_pylist()
    assert {int(row["decision_id"][17:33], 16) for row in rows} <= set(logged)
