"""The HTTP API over the real stages and a real ledger, in this process."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pyarrow as pa
import pytest

from serve_app.catalogue import read_catalogue
from serve_app.ids import decision_id_text, hash_id
from serve_app.log.reader import read_log
from tests.cluster.server_support import TOKEN, data_copy, generous, in_process

NOW = "2026-11-22T03:00:00Z"
Ids = dict[str, list[str]]


@pytest.fixture(scope="module")
def data(demo_release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data_copy(demo_release, tmp_path_factory.mktemp("http") / "data")


@pytest.fixture(scope="module")
def client(data: Path) -> Iterator[httpx.Client]:
    with in_process(generous(data=data, topology="fused")) as made:
        yield made


@pytest.fixture(scope="module")
def ids(data: Path) -> Ids:
    catalogue = read_catalogue(data / "catalogue")
    return {
        "items": catalogue.items["item_id"].to_pylist(),
        "users": catalogue.users["user_id"].to_pylist(),
        "reviewed": catalogue.reviews["item_id"].to_pylist(),
        "campaigns": catalogue.campaigns["campaign_id"].to_pylist(),
    }


def post(client: httpx.Client, path: str, body: Any, status: int = 200) -> Any:
    answer = client.post(path, json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def items_of(answer: dict[str, Any]) -> list[str]:
    return [item["id"] for item in answer["items"]]


def test_related_answers_the_slots_asked_for_without_the_anchor(client: httpx.Client, ids: Ids) -> None:
    item, user = ids["items"][3], ids["users"][5]
    answer = post(client, "/v1/recommendations/related", {"item": item, "user": user, "slots": 7})
    found = items_of(answer)
    assert len(found) == len(set(found)) == 7
    assert item not in found
    assert answer["degraded"] == []
    first = answer["items"][0]
    assert first["decision_id"] == decision_id_text(hash_id(user), int(answer["request_id"], 16), 0)


def test_what_is_excluded_or_of_another_category_is_never_shown(client: httpx.Client, ids: Ids, data: Path) -> None:
    user = ids["users"][1]
    shown = items_of(post(client, "/v1/recommendations/related", {"item": ids["items"][0], "user": user, "slots": 20}))
    body = {"item": ids["items"][0], "user": user, "slots": 20, "exclude": shown[:10]}
    assert not set(shown[:10]) & set(items_of(post(client, "/v1/recommendations/related", body)))
    rows = read_catalogue(data / "catalogue").items
    category = dict(zip(rows["item_id"].to_pylist(), rows["category"].to_pylist(), strict=True))
    wanted = category[shown[0]]
    only = items_of(post(client, "/v1/recommendations/related", {**body, "exclude": [], "categories": [wanted]}))
    assert only
    assert {category[item] for item in only} == {wanted}


def test_an_explanation_names_sources_features_heads_and_reasons(client: httpx.Client, ids: Ids) -> None:
    body = {"item": ids["items"][2], "user": ids["users"][0], "slots": 3, "explain": True, "exclude": ids["items"][:40]}
    answer = post(client, "/v1/recommendations/related", body)
    explained = answer["explain"]
    chosen = [one for one in explained if one["slot"] is not None]
    assert [one["id"] for one in chosen] == items_of(answer)
    assert all(0 < one["propensity"] <= 1 for one in chosen)
    assert set(chosen[0]["heads"]) == {"p_click", "p_convert"}
    assert {value["status"] for value in chosen[0]["features"].values()} <= {"present", "stale", "missing", "defaulted"}
    assert chosen[0]["sources"]
    dropped = {one["drop_reason"] for one in explained} - {None}
    assert "excluded" in dropped
    assert all(one["slot"] is None and one["heads"] is None for one in explained if one["drop_reason"])


def test_a_page_is_ordered_widgets_of_ordered_items_and_repeats_none(client: httpx.Client, ids: Ids) -> None:
    for user in ids["users"][:12]:
        page = post(client, "/v1/recommendations/gateway", {"user": user, "widgets": 5, "slots": 8})
        everything = [item for widget in page["widgets"] for item in items_of(widget)]
        assert len(everything) == len(set(everything))
        assert [widget["slot"] for widget in page["widgets"]] == sorted(widget["slot"] for widget in page["widgets"])
        assert len({widget["request_id"] for widget in page["widgets"]}) == len(page["widgets"])


def test_a_page_is_logged_as_a_root_and_its_children(client: httpx.Client, ids: Ids, data: Path) -> None:
    page = post(client, "/v1/recommendations/gateway", {"user": ids["users"][7], "widgets": 3, "slots": 4})
    requests = read_log(data, "requests", columns=["request_id", "parent_request_id", "root_id", "surface"]).to_pylist()
    root = int(page["request_id"], 16)
    children = {int(widget["request_id"], 16) for widget in page["widgets"]}
    assert [one["surface"] for one in requests if one["request_id"] == root] == [2]
    assert children <= {one["request_id"] for one in requests if one["parent_request_id"] == root and one["surface"] == 1}
    served = read_log(data, "decisions", columns=["request_id", "slot", "item", "p_action", "granted"]).to_pylist()
    logged = {(one["request_id"], one["slot"]): one for one in served}
    for widget in page["widgets"]:
        for item in widget["items"]:
            row = logged[int(widget["request_id"], 16), item["slot"]]
            assert row["item"] == hash_id(item["id"])
            assert 0 < row["p_action"] <= 1
            assert row["granted"]


def test_an_unknown_user_gets_a_cold_start_that_says_so(client: httpx.Client) -> None:
    page = post(client, "/v1/recommendations/gateway", {"user": "never seen", "region": "kr", "widgets": 2})
    assert page["cold_start"] is True
    assert page["widgets"]


def test_recent_items_named_by_the_request_end_the_cold_start(client: httpx.Client, ids: Ids) -> None:
    body = {"user": "never seen 2", "recent_items": ids["items"][:3], "widgets": 2}
    assert post(client, "/v1/recommendations/gateway", body)["cold_start"] is False


def test_an_event_is_remembered_by_the_next_request(client: httpx.Client, ids: Ids) -> None:
    user = "fresh from events"
    event = {"specversion": "1.0", "id": f"view-{secrets.token_hex(4)}", "source": "/t", "type": "view", "subject": user}
    event |= {"time": NOW, "data": {"item": ids["items"][9]}}
    assert post(client, "/v1/events", [event])["accepted"] == 1
    assert post(client, "/v1/recommendations/gateway", {"user": user, "widgets": 1})["cold_start"] is False


def test_widgets_and_reviews_are_ranked(client: httpx.Client, ids: Ids) -> None:
    widgets = post(client, "/v1/widgets/rank", {"user": ids["users"][2], "slots": 3})["widgets"]
    assert len(widgets) == 3
    named = [widget["id"] for widget in widgets[1:]]
    assert {w["id"] for w in post(client, "/v1/widgets/rank", {"widgets": named})["widgets"]} == set(named)
    reviews = post(client, "/v1/reviews/rank", {"item": ids["reviewed"][0], "slots": 4})["reviews"]
    assert reviews


def test_a_hidden_item_is_never_shown_again_and_a_new_one_can_be(client: httpx.Client, ids: Ids) -> None:
    body = {"item": ids["items"][11], "slots": 5}
    victim = items_of(post(client, "/v1/recommendations/related", body))[0]
    assert client.put(f"/v1/items/{victim}", json={"available": False}).status_code == 200
    for _ in range(5):
        assert victim not in items_of(post(client, "/v1/recommendations/related", body))
    assert client.put(f"/v1/items/{victim}", json={"available": True}).status_code == 200
    assert client.put("/v1/items/💡", json={"title": "Lamp", "price": 3.5}).status_code == 200
    assert post(client, "/v1/recommendations/related", {"item": "💡", "slots": 3})["items"]


def test_a_dry_run_repeats_itself_and_leaves_no_trace(client: httpx.Client, ids: Ids, data: Path) -> None:
    body = {"item": ids["items"][4], "user": ids["users"][4], "slots": 10, "dry_run": True, "now": NOW}
    body["request_id"] = "00000000deadbeef"
    first, second = (post(client, "/v1/recommendations/related", body) for _ in range(2))
    assert first == second
    logged = read_log(data, "requests", columns=["request_id"])["request_id"].to_pylist()
    assert 0xDEADBEEF not in logged


@pytest.mark.parametrize(
    ("path", "body", "status", "field"),
    [
        ("/v1/recommendations/related", {}, 422, "item"),
        ("/v1/recommendations/related", {"item": "nobody has this"}, 404, "item"),
        ("/v1/recommendations/related", {"item": "x", "slots": 0}, 422, "slots"),
        ("/v1/recommendations/related", {"item": "x", "slots": 101}, 422, "slots"),
        ("/v1/recommendations/related", {"item": "x", "slotz": 1}, 422, "slotz"),
        ("/v1/recommendations/related", {"item": ""}, 422, "item"),
        ("/v1/recommendations/related", {"item": "x" * 201}, 422, "item"),
        ("/v1/recommendations/related", {"item": "x", "exclude": ["y"] * 1001}, 422, "exclude"),
        ("/v1/recommendations/related", {"item": "x", "now": NOW}, 422, "body"),
        ("/v1/recommendations/related", [], 422, "body"),
        ("/v1/recommendations/gateway", {"user": "u", "region": "Korea"}, 422, "region"),
        ("/v1/recommendations/gateway", {"user": "u", "widgets": 21}, 422, "widgets"),
        ("/v1/recommendations/gateway", {"device": "fridge"}, 422, "device"),
        ("/v1/widgets/rank", {"widgets": ["no such widget"]}, 404, "widgets"),
        ("/v1/reviews/rank", {"item": "nobody has this"}, 404, "item"),
        ("/v1/notifications/decide", {"user": "u", "candidates": [{"campaign": "none"}]}, 404, "candidates.0.campaign"),
        ("/v1/notifications/decide", {"user": "u", "max_sends": 17}, 422, "max_sends"),
        ("/v1/notifications/decide-batch", {"rows": []}, 422, "rows"),
        ("/v1/notifications/decide-batch", {"rows": [{"user": "u"}] * 10_001}, 422, "rows"),
    ],
)
def test_a_wrong_field_is_named_with_its_fix(client: httpx.Client, path: str, body: Any, status: int, field: str) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == status
    assert problem["field"] == field
    assert problem["type"].startswith("urn:hindcast:problem:")
    assert problem["detail"]
    assert problem["hint"]


def test_the_frameworks_own_errors_are_problems_too(client: httpx.Client) -> None:
    for method, path, content, status in (
        ("GET", "/v1/nothing", None, 404),
        ("PATCH", "/v1/events", None, 405),
        ("POST", "/v1/recommendations/related", b"{", 400),
        ("POST", "/v1/recommendations/related", b"\xff\xfe", 400),
        ("POST", "/v1/events", b"[1", 400),
        ("POST", "/v1/recommendations/related", b"[" * 100_000, 400),
        ("POST", "/v1/recommendations/related", b" " * 600_000, 413),
        ("GET", "/v1/decisions/d123", None, 422),
        ("GET", "/v1/users/nobody%20ever", None, 404),
    ):
        answer = client.request(method, path, content=content)
        assert answer.status_code == status, (method, path, answer.text)
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["status"] == status


def test_large_and_strange_bodies_are_answered(client: httpx.Client, ids: Ids) -> None:
    item = ids["items"][0]
    many = {"item": item, "recent_items": (ids["items"] * 40)[:10_000], "slots": 3}
    assert len(post(client, "/v1/recommendations/related", many)["items"]) == 3
    strange = {"item": item, "user": "사용자 🧑‍🚀\u0000", "exclude": ["💥", "\u202e", "a" * 200], "slots": 3}
    assert len(post(client, "/v1/recommendations/related", strange)["items"]) == 3
    megabyte = [
        {"specversion": "1.0", "id": f"big-{n}", "source": "/t", "type": "view", "subject": "big", "time": NOW,
         "data": {"item": item}, "padding": "x" * 400}
        for n in range(2_000)
    ]  # fmt: skip
    assert len(json.dumps(megabyte)) > 1_000_000
    assert post(client, "/v1/events", megabyte)["accepted"] == 2_000


def test_a_request_that_leaves_no_candidates_gets_an_empty_list(client: httpx.Client, ids: Ids) -> None:
    answer = post(client, "/v1/recommendations/related", {"item": ids["items"][0], "categories": ["no such category"]})
    assert answer["items"] == []


def test_events_are_counted_once_and_refused_one_by_one(client: httpx.Client, ids: Ids, data: Path) -> None:
    good = {"specversion": "1.0", "id": f"once-{secrets.token_hex(4)}", "source": "/t", "type": "conversion"}
    good |= {"subject": "buyer", "time": NOW, "data": {"item": ids["items"][1], "amount": 12.5, "currency": "KRW"}}
    bad = [
        {**good, "id": "no-time", "time": "yesterday"},
        {**good, "id": "no-item", "data": {}},
        {**good, "id": "typo", "data": {"item": "x", "prise": 1}},
        {**good, "id": "foreign", "data": {"item": "x", "decision_id": decision_id_text(1, 2, 0)}},
        7,
    ]
    answer = post(client, "/v1/events", [good, *bad])
    assert (answer["accepted"], answer["duplicates"], answer["refused"]) == (1, 0, 5)
    assert [error["index"] for error in answer["errors"]] == [1, 2, 3, 4, 5]
    assert [error["field"] for error in answer["errors"]][:4] == ["time", "data.item", "data.prise", "data.decision_id"]
    again = post(client, "/v1/events", [good])
    assert (again["accepted"], again["duplicates"]) == (0, 1)
    rows = read_log(data, "events", columns=["event_id", "amount"]).to_pylist()
    assert [row["amount"] for row in rows if row["event_id"] == hash_id(good["id"])] == [12.5]


def test_consent_and_opt_outs_reach_the_next_decision(client: httpx.Client) -> None:
    user = f"consenting {secrets.token_hex(4)}"
    campaign = {"text": "Your order is on its way", "message_class": "transactional", "channels": ["push"]}
    assert client.put("/v1/campaigns/order-sent", json=campaign).json()["version"] >= 1
    ask = {"user": user, "candidates": [{"campaign": "order-sent", "channel": "push"}]}
    assert post(client, "/v1/notifications/decide", ask)["reason"] == "unreachable"
    state = client.put(f"/v1/users/{user}", json={"reachable": ["push"], "zone": "Asia/Seoul", "region": "kr"}).json()
    assert state["reachable"] == ["push"]
    sent = post(client, "/v1/notifications/decide", ask)
    assert sent["action"] == "send"
    assert sent["sends"][0]["campaign"] == "order-sent"
    event = {"specversion": "1.0", "id": secrets.token_hex(8), "source": "/t", "type": "opt_out", "subject": user}
    assert post(client, "/v1/events", [{**event, "time": NOW, "data": {"channel": "push"}}])["accepted"] == 1
    assert client.get(f"/v1/users/{user}").json()["opted_out"] == ["push"]
    assert post(client, "/v1/notifications/decide", ask)["reason"] == "channel_opted_out"


def test_a_decision_can_be_asked_for_again_gate_by_gate(client: httpx.Client) -> None:
    user = f"asking {secrets.token_hex(4)}"
    client.put("/v1/campaigns/order-sent", json={"text": "x", "message_class": "transactional", "channels": ["push"]})
    client.put(f"/v1/users/{user}", json={"reachable": ["push"]})
    ask = {"user": user, "candidates": [{"campaign": "order-sent"}], "explain": True, "idempotency_key": "k"}
    made = post(client, "/v1/notifications/decide", ask)
    gates = [gate["gate"] for gate in made["explain"][0]["gates"]]
    assert gates[0] == "kill_switch"
    assert "quiet_hours" in gates
    stored = client.get(f"/v1/decisions/{made['decision_id']}").json()
    assert stored["action"] == made["action"]
    assert stored["candidates"][0]["gates"] == made["explain"][0]["gates"]
    again = post(client, "/v1/notifications/decide", {**ask, "explain": False})
    assert again["replayed"] is True
    assert again["decision_id"] == made["decision_id"]
    other = client.post("/v1/notifications/decide", json={**ask, "max_sends": 2})
    assert other.status_code == 409
    assert other.json()["field"] == "idempotency_key"


def test_a_batch_decides_row_by_row_in_json_and_arrow(client: httpx.Client, ids: Ids) -> None:
    campaign = ids["campaigns"][0]
    rows = [{"user": user, "candidates": [{"campaign": campaign}]} for user in ids["users"][:50]]
    rows.insert(7, {"user": "u", "candidates": [{"campaign": "no such campaign"}]})
    answer = post(client, "/v1/notifications/decide-batch", {"rows": rows, "dry_run": True})
    assert [row["user"] if row else None for row in answer["decisions"]][6:9] == [ids["users"][6], None, ids["users"][7]]
    assert [error["row"] for error in answer["errors"]] == [7]
    table = pa.table(
        {"user": [row["user"] for row in rows], "campaign": [[c["campaign"] for c in r["candidates"]] for r in rows]}
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    headers = {"content-type": "application/vnd.apache.arrow.stream", "x-hindcast-dry-run": "1"}
    raw = client.post("/v1/notifications/decide-batch", content=sink.getvalue().to_pybytes(), headers=headers)
    assert raw.status_code == 200, raw.text
    found = pa.ipc.open_stream(raw.content).read_all().to_pylist()
    assert [row["status"] for row in found] == [404 if n == 7 else 200 for n in range(51)]
    assert [row["action"] for row in found if row["status"] == 200] == [row["action"] for row in answer["decisions"] if row]


def test_a_user_is_forgotten_on_request(client: httpx.Client) -> None:
    client.put("/v1/users/leaving", json={"reachable": ["email"]})
    assert client.delete("/v1/users/leaving").status_code == 204
    assert client.get("/v1/users/leaving").status_code == 404


def test_an_unlabelled_advertisement_is_refused_when_stored(client: httpx.Client) -> None:
    campaign = {"text": "Sale!", "message_class": "advertising", "channels": ["push"]}
    answer = client.put("/v1/campaigns/unlabelled", json=campaign)
    assert answer.status_code == 422
    assert answer.json()["field"] == "text"
    assert "(광고)" in answer.json()["hint"]


def test_operators_calls_need_the_servers_token(client: httpx.Client) -> None:
    assert client.post("/v1/releases/prepare", json={"version": "x"}).status_code == 401
    answer = client.post("/v1/releases/prepare", json={"version": "no-such"}, headers={"Authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == 503
    assert "no release 'no-such'" in answer.json()["detail"]
    assert client.get("/readyz").json()["status"] == "ready"


def test_answers_are_what_openapi_says(client: httpx.Client, ids: Ids) -> None:
    document = client.get("/openapi.json").json()
    user, item = ids["users"][6], ids["items"][6]
    for path, body in (
        ("/v1/recommendations/related", {"item": item, "user": user, "explain": True}),
        ("/v1/recommendations/gateway", {"user": user, "explain": True}),
        ("/v1/widgets/rank", {"user": user, "explain": True}),
        ("/v1/reviews/rank", {"item": ids["reviewed"][0], "explain": True}),
        ("/v1/notifications/decide", {"user": user, "explain": True}),
        ("/v1/notifications/decide-batch", {"rows": [{"user": user}, {"user": "x", "candidates": [{"campaign": "?"}]}]}),
        ("/v1/events", [{"specversion": "1.0"}]),
    ):
        said = document["paths"][path]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
        schema = {**said, "components": document["components"]}
        jsonschema.Draft202012Validator(_closed(schema)).validate(post(client, path, body))


def _closed(schema: Any) -> Any:
    """The schema with every object closed, so that a field nobody documented is an error."""
    if isinstance(schema, list):
        return [_closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    out = {name: _closed(value) for name, value in schema.items()}
    if out.get("type") == "object" and "properties" in out and "additionalProperties" not in out:
        out["additionalProperties"] = False
    return out


def test_docs_and_openapi_name_every_call(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    page = client.get("/docs").text
    assert len(document["paths"]) >= 15
    for path in document["paths"]:
        assert path in page
    assert "<script" not in page
