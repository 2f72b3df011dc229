"""Campaigns limited to a segment, through HTTP: members are sent to, others are not, old or foreign membership closes; new
sets are taken up while serving."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve_app.catalogue import read_catalogue
from serve_app.clock import now_us, text_of
from serve_app.ids import hash_id
from serve_app.log.reader import read_log
from serve_app.policies import current_policy, promote_policy, store_policy
from serve_app.policy.document import DEFAULT_POLICY, load_policy, parse_policy
from serve_app.segments.periodic import SegmentRefresher
from serve_app.segments.refresh import refresh_segments
from serve_app.segments.store import load_current, read_pointer
from tests.cluster.server_support import data_copy, generous, in_process

HOUR_US = 3_600_000_000
VIEWED = {"kind": "event_count", "event": "view", "within_days": 1, "op": ">=", "count": 2}
CAMPAIGN = {"text": "Your order is on its way", "message_class": "transactional", "channels": ["push"]}


@dataclass
class Shop:
    """A server whose policy limits the campaign `looked` to who viewed twice lately, and `listed` to two users."""

    client: httpx.Client
    data: Path
    users: list[str]
    items: list[str]

    def ask(self, user: str, campaign: str = "looked", **more: Any) -> dict[str, Any]:
        body = {"user": user, "candidates": [{"campaign": campaign}], "explain": True, **more}
        answer = self.client.post("/v1/notifications/decide", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def said(self, user: str, campaign: str = "looked", **more: Any) -> str:
        answer = self.ask(user, campaign, dry_run=True, **more)
        return "send" if answer["action"] == "send" else answer["reason"]

    def view(self, user: str, event: str) -> None:
        one = {"specversion": "1.0", "id": event, "source": "/shop", "type": "view", "subject": user}
        one |= {"time": text_of(now_us()), "data": {"item": self.items[0]}}
        answer = self.client.post("/v1/events", json=[one])
        assert answer.json()["accepted"] == 1, answer.text


def awaited(condition: Callable[[], bool]) -> None:
    """Until it holds; a minute at most."""
    ends = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < ends, "it did not come to pass"
        time.sleep(0.05)


def _promote(data: Path, users: list[str], **changes: Any) -> str:
    body = load_policy(DEFAULT_POLICY).model_dump(mode="json")
    body["segments"] = [
        {"id": "listed", "where": {"kind": "membership", "name": "user_id", "values": users[:2]}},
        {"id": "looked", "where": VIEWED},
    ]
    body["segment_staleness_hours"] = 2
    revision = store_policy(data, parse_policy(body | changes))
    promote_policy(data, revision, now=2)
    return revision


@pytest.fixture(scope="module")
def shop(demo_release: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    data = data_copy(demo_release, tmp_path_factory.mktemp("segments") / "data")
    catalogue = read_catalogue(data / "catalogue")
    users, items = (column.to_pylist() for column in (catalogue.users["user_id"], catalogue.items["item_id"]))
    _promote(data, users)
    with in_process(generous(data=data, topology="fused")) as client:
        for name in ("looked", "listed"):
            answer = client.put(f"/v1/campaigns/{name}", json={**CAMPAIGN, "segment": name})
            assert answer.status_code == 200, answer.text
        for user in users[:4]:
            client.put(f"/v1/users/{user}", json={"reachable": ["push"]})
        yield Shop(client, data, users, items)


def test_membership_follows_the_events_without_a_restart(shop: Shop) -> None:
    member, other = shop.users[0], shop.users[3]
    assert shop.said(member) == shop.said(member, "listed") == "segment_stale"  # never computed
    for event in ("one", "two"):
        shop.view(member, event)
    shop.view(other, "three")
    refresh_segments(shop.data, now=now_us())
    awaited(lambda: shop.said(member) == "send")
    assert shop.said(other) == "not_in_segment"
    assert [shop.said(user, "listed") for user in shop.users[:3]] == ["send", "send", "not_in_segment"]
    shop.client.put("/v1/users/newcomer", json={"reachable": ["push"]})
    assert shop.said("newcomer", "listed") == "not_in_segment"  # unknown when the set was made
    shop.view(other, "four")
    refresh_segments(shop.data, now=now_us())
    awaited(lambda: shop.said(other) == "send")


def test_the_log_says_which_segments_and_as_of_when(shop: Shop) -> None:
    refresh_segments(shop.data, now=now_us() - HOUR_US)
    current = load_current(shop.data)
    assert current is not None
    user = shop.users[1]
    awaited(lambda: _age_us(shop, user) > 0.9 * HOUR_US)
    made = shop.ask(user, "listed")
    assert made["action"] == "send"
    rows = read_log(shop.data, "requests", columns=["user", "request_id", "segments", "segments_at", "policy_revision"])
    own = [row for row in rows.to_pylist() if row["request_id"] == int(made["request_id"], 16)]
    assert [(row["user"], row["segments"], row["segments_at"]) for row in own] == [(hash_id(user), 1, current.computed_at)]
    assert own[0]["policy_revision"] == current_policy(shop.data).revision


def _gate(answer: dict[str, Any]) -> dict[str, Any]:
    return next(one for one in answer["explain"][0]["gates"] if one["gate"] == "segment")


def _age_us(shop: Shop, user: str) -> float:
    used = _gate(shop.ask(user, "listed", dry_run=True))["used"]
    return 0.0 if used is None else used * 1e6


def test_membership_older_than_the_policy_trusts_closes_and_says_how_old(shop: Shop) -> None:
    refresh_segments(shop.data, now=now_us())
    awaited(lambda: 0 < _age_us(shop, shop.users[1]) < HOUR_US / 2)
    assert shop.said(shop.users[1], "listed") == "send"
    later = {"dry_run": True, "now": text_of(now_us() + 3 * HOUR_US)}
    answer = shop.ask(shop.users[1], "listed", **later)
    assert answer["reason"] == "segment_stale"
    gate = _gate(answer)
    assert gate["limit"] == 2 * 3600
    assert 3 * 3600 - 60 < gate["used"] < 3 * 3600 + 3600
    refresh_segments(shop.data, now=now_us() - 3 * HOUR_US)  # a set as of then is taken up, and not trusted either
    awaited(lambda: shop.said(shop.users[1], "listed") == "segment_stale")
    refresh_segments(shop.data, now=now_us())
    awaited(lambda: shop.said(shop.users[1], "listed") == "send")


def test_a_batch_of_users_is_looked_up_row_by_row(shop: Shop) -> None:
    refresh_segments(shop.data, now=now_us())
    awaited(lambda: shop.said(shop.users[1], "listed") == "send")
    rows = [{"user": user, "candidates": [{"campaign": "listed"}]} for user in (shop.users[2], shop.users[0], shop.users[3])]
    answer = shop.client.post("/v1/notifications/decide-batch", json={"rows": rows}).json()
    assert [row["action"] for row in answer["decisions"]] == ["suppress", "send", "suppress"]
    assert answer["decisions"][0]["reason"] == "not_in_segment"


def test_a_damaged_set_leaves_the_old_one_in_force(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    refresh_segments(shop.data, now=now_us())
    awaited(lambda: shop.said(shop.users[1], "listed") == "send")
    pointer = shop.data / "segments" / "current"
    whole = pointer.read_text()
    pointer.write_text(whole[:-10])
    awaited(lambda: "a new segment membership set is not used" in caplog.text)
    assert shop.said(shop.users[1], "listed") == "send"
    pointer.write_text(whole)


def test_the_worker_refreshes_what_is_old_or_unknown_in_a_process_of_its_own(shop: Shop) -> None:
    clock = [now_us()]
    refresher = SegmentRefresher(shop.data, refresh_minutes=60, clock=lambda: clock[0])
    refresh_segments(shop.data, now=clock[0])
    assert not refresher.due()
    clock[0] += HOUR_US
    assert refresher.due()
    before = read_pointer(shop.data)
    assert asyncio.run(refresher.refresh())
    assert read_pointer(shop.data) != before
    clock[0] = now_us()
    assert not refresher.due()
    old = current_policy(shop.data)
    _promote(shop.data, shop.users[1:])
    assert refresher.due()  # nobody computed these segments
    promote_policy(shop.data, old.revision, now=3)
    assert not refresher.due()
