"""Queued messages: looked at once more, handed over at least once, booked exactly once, dead ones kept."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.errors import InvalidInput, LedgerUnavailable
from serve_app.ids import hash_id
from serve_app.ledger.columns import HistoryFlag
from serve_app.ledger.memory import MemoryLedger
from serve_app.ledger.protocol import Ledger, LedgerSettings, UserChanges
from serve_app.ledger.sqlite import SqliteLedger
from serve_app.serving.outbox import OutboxDesk
from serve_app.serving.outbox_messages import Message, Outcome
from serve_app.serving.outbox_rows import Receipt, backoff_us
from serve_app.serving.webhook import WebhookSettings, WebhookWorker
from serve_app.vocabulary import Channel, EventType
from tests.unit.decision_support import DAY, HOUR, MINUTE, SECOND, at
from tests.unit.receiver_support import Receiver, receiver
from tests.unit.sweep_support import Breaking, Shop, campaign, open_shop

NOON, NIGHT = at("2026-03-10T12:00:00"), at("2026-03-10T22:00:00")
LEASE = 60 * SECOND


@pytest.fixture(params=["memory", "sqlite"])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    ledger: Ledger = MemoryLedger()
    if request.param == "sqlite":
        ledger = SqliteLedger(tmp_path / "ledger.sqlite", LedgerSettings(), durability="process")
    made = open_shop(tmp_path, ledger, campaign("spring", delivery="outbox", title="Spring", item_id="sock"))
    made.now = NOON
    yield made
    made.close()


@pytest.fixture
def post() -> Iterator[Receiver]:
    with receiver() as made:
        yield made


def granted(shop: Shop, *users: str, **asked: Any) -> None:
    """A queued message for each user."""
    shop.put(*users)
    assert shop.ask(list(users), at=shop.now, **asked).granted.all()


def claimed(shop: Shop, desk: OutboxDesk | None = None, limit: int = 10) -> list[Message]:
    return asyncio.run((desk or shop.desk()).claim(limit, LEASE))


def delivered(shop: Shop, post: Receiver, desk: OutboxDesk | None = None, **own: Any) -> int:
    """One round of a worker."""

    async def once() -> int:
        worker = WebhookWorker(desk or shop.desk(), WebhookSettings(post.url, **own))
        try:
            return await worker.deliver()
        finally:
            await worker.close()

    return asyncio.run(once())


def kinds(shop: Shop) -> list[str]:
    return [EventType(row["type"]).name for row in shop.events()]


def refunded(shop: Shop, user: str) -> list[bool]:
    return [bool(one & HistoryFlag.refunded) for one in shop.history(user)["flags"].tolist()]


def test_a_message_reaches_the_receiver_with_its_words_its_key_and_the_secret(shop: Shop, post: Receiver) -> None:
    granted(shop, "u")
    assert delivered(shop, post, headers=(("Authorization", "Bearer s3cret"),)) == 1
    (one,) = post.got
    assert one.headers["authorization"] == "Bearer s3cret"
    assert one.headers["idempotency-key"] == one.body["decision_id"]
    said = {name: one.body[name] for name in ("user", "campaign", "title", "text", "item", "channel", "attempt")}
    assert said == {
        "user": "u", "campaign": "spring", "title": "Spring", "text": "about spring", "item": "sock", "channel": "push",
        "attempt": 1,
    }  # fmt: skip
    assert kinds(shop) == ["delivered"]
    assert refunded(shop, "u") == [False]
    assert shop.ledger.queue_depths(NOON + DAY).outbox == 0
    assert delivered(shop, post) == 0


def test_only_the_holder_of_the_lease_has_the_message_until_it_ends(shop: Shop) -> None:
    granted(shop, "u")
    (first,) = claimed(shop)
    shop.now += LEASE - 1
    assert claimed(shop) == []
    shop.now += 1
    (second,) = claimed(shop)
    assert second.send.decision_id == first.send.decision_id
    assert second.send.receipt.attempts == 2
    assert asyncio.run(shop.desk().settle([Outcome.of(first.send, "delivered")])) == 1
    assert asyncio.run(shop.desk().settle([Outcome.of(second.send, "delivered")])) == 0
    assert kinds(shop) == ["delivered"]
    assert shop.ledger.queue_depths(NOON).outbox == 0


def test_connections_are_used_again_and_a_round_holds_what_can_be_under_way(shop: Shop, post: Receiver) -> None:
    granted(shop, *(f"u{k}" for k in range(40)))

    async def all_rounds() -> list[int]:
        worker = WebhookWorker(shop.desk(), WebhookSettings(post.url, concurrency=8))
        rounds = [await worker.deliver() for _ in range(6)]
        await worker.close()
        return rounds

    assert asyncio.run(all_rounds()) == [8, 8, 8, 8, 8, 0]
    assert len(post.got) == 40
    assert post.connections <= 8


def test_a_user_who_opted_out_after_the_grant_is_not_written_to_and_gets_the_use_back(shop: Shop, post: Receiver) -> None:
    granted(shop, "u", "v")
    shop.ledger.put_user(hash_id("u"), UserChanges(opted_out=1 << Channel.push))
    assert delivered(shop, post) == 1
    assert [one.body["user"] for one in post.got] == ["v"]
    withdrawn = next(row for row in shop.events() if row["type"] == EventType.delivery_failed)
    assert withdrawn["user"] == hash_id("u")
    assert json.loads(withdrawn["attributes"]) == {"outcome": "withdrawn", "reason": "channel_opted_out"}
    assert (refunded(shop, "u"), refunded(shop, "v")) == ([True], [False])
    assert shop.ledger.queue_depths(NOON + DAY).outbox == 0


@pytest.mark.parametrize(
    ("policy", "reason"),
    [({"kill_switches": {"all": True}}, "kill_switch"), ({"kill_switches": {"channels": ["push"]}}, "kill_switch")],
)
def test_a_switch_thrown_after_the_grant_stops_the_message(shop: Shop, policy: dict[str, Any], reason: str) -> None:
    granted(shop, "u")
    shop.with_policy(**policy)
    assert claimed(shop) == []
    assert [json.loads(row["attributes"])["reason"] for row in shop.events()] == [reason]


def test_a_campaign_that_is_gone_stops_the_message(shop: Shop) -> None:
    granted(shop, "u")
    shop.with_campaigns(campaign("summer"))
    assert claimed(shop) == []
    assert [json.loads(row["attributes"])["reason"] for row in shop.events()] == ["kill_switch"]


def test_advertising_needs_its_consent_at_the_moment_of_delivery(tmp_path: Path) -> None:
    shop = open_shop(
        tmp_path, MemoryLedger(), campaign("ad", delivery="outbox", message_class="advertising", text="(광고) x")
    )
    shop.now = NOON
    shop.put("u", region="KR", consent_ad=_consent(NOON - DAY))
    assert shop.ask(["u"], at=NOON).granted.all()
    shop.ledger.put_user(hash_id("u"), UserChanges(consent_ad=_consent(0)))
    assert claimed(shop) == []
    assert [json.loads(row["attributes"])["reason"] for row in shop.events()] == ["no_consent"]


def _consent(given: int) -> Any:
    from serve_app.ledger.protocol import Consent

    return Consent(given, NOON)


def test_nothing_is_handed_over_from_its_expiry_on_nor_a_day_after_its_grant(shop: Shop) -> None:
    granted(shop, "u", expires_at=NOON + HOUR)
    granted(shop, "v")
    shop.now = NOON + HOUR
    assert [one.user_id for one in claimed(shop)] == ["v"]
    shop.now = NOON + DAY
    assert claimed(shop) == []
    assert {json.loads(row["attributes"])["reason"] for row in shop.events()} == {"expired"}


def test_a_night_that_begins_before_the_delivery_holds_the_message_until_the_morning(shop: Shop) -> None:
    shop.now = NIGHT - 1
    granted(shop, "u")
    shop.now = NIGHT
    assert claimed(shop) == []
    assert kinds(shop) == []
    morning = at("2026-03-11T08:00:00")
    shop.now = morning - 1
    assert claimed(shop) == []
    shop.now = morning + 30 * MINUTE
    (one,) = claimed(shop)
    assert one.send.receipt.attempts == 1  # to be held was no attempt


@pytest.mark.parametrize(
    ("status", "outcome"), [(400, "final"), (404, "final"), (429, "again"), (503, "again"), (302, "again")]
)
def test_the_receivers_status_says_whether_to_try_again(shop: Shop, post: Receiver, status: int, outcome: str) -> None:
    post.answer = lambda _: (status, {"location": "/elsewhere"})
    granted(shop, "u")
    delivered(shop, post)
    assert len(post.got) == 1
    if outcome == "final":
        assert kinds(shop) == ["delivery_failed"]
        assert json.loads(shop.events()[0]["attributes"])["reason"] == f"status {status}"
        assert refunded(shop, "u") == [True]
        assert shop.ledger.queue_depths(NOON).outbox == 0
    else:
        assert kinds(shop) == []
        assert refunded(shop, "u") == [False]
        assert shop.ledger.queue_depths(NOON) == shop.ledger.queue_depths(NOON + 2 * SECOND)
        assert delivered(shop, post) == 0
        shop.now += 5 * SECOND
        assert delivered(shop, post) == 1


def test_a_receiver_that_names_a_time_is_left_alone_until_then(shop: Shop, post: Receiver) -> None:
    post.answer = lambda n: (503, {"retry-after": "90"}) if n == 0 else (200, {})
    granted(shop, "u")
    delivered(shop, post)
    shop.now = NOON + 89 * SECOND
    assert delivered(shop, post) == 0
    shop.now = NOON + 90 * SECOND
    assert delivered(shop, post) == 1
    assert kinds(shop) == ["delivered"]


def test_a_receiver_that_is_away_is_tried_a_stated_number_of_times_and_then_the_message_is_dead(shop: Shop) -> None:
    with receiver() as gone:
        pass
    desk = shop.desk(max_attempts=3)
    granted(shop, "u")
    rounds = 0
    while shop.ledger.queue_depths(shop.now).buried == 0:
        rounds += delivered(shop, gone, desk, timeout_s=2.0)
        shop.now += 30 * SECOND
    assert rounds == 3
    assert (kinds(shop), refunded(shop, "u")) == ([], [False])
    (dead,) = asyncio.run(desk.dead(10))
    assert (dead["attempts"], dead["channel"]) == (3, "push")
    assert asyncio.run(desk.revive([Receipt.parse(dead["receipt"])])) == 1
    with receiver() as back:
        assert delivered(shop, back, desk) == 1
    assert kinds(shop) == ["delivered"]


def test_where_nobody_claims_stale_messages_go_and_the_others_stay_untouched(shop: Shop) -> None:
    granted(shop, "u", expires_at=NOON + HOUR)
    granted(shop, "v")
    shop.now = NOON + HOUR
    desk = shop.desk(max_attempts=2)
    assert [asyncio.run(desk.tidy(10)) for _ in range(4)] == [1, 1, 1, 1]
    assert (refunded(shop, "u"), refunded(shop, "v")) == ([True], [False])
    (one,) = claimed(shop, desk)
    assert (one.user_id, one.send.receipt.attempts) == ("v", 1)


def test_a_row_whose_workers_die_again_and_again_is_dead_too(shop: Shop) -> None:
    granted(shop, "u")
    desk = shop.desk(max_attempts=3)
    for _ in range(3):
        assert len(claimed(shop, desk)) == 1
        shop.now += LEASE
    assert claimed(shop, desk) == []
    assert shop.ledger.queue_depths(shop.now).buried == 1


def test_of_two_messages_of_one_decision_only_the_failed_one_comes_again(tmp_path: Path, post: Receiver) -> None:
    both = [campaign(name, delivery="outbox") for name in ("spring", "summer")]
    shop = open_shop(tmp_path, MemoryLedger(), *both, max_sends_per_decision=2, quiet_hours=[])
    shop.now = NOON
    granted(shop, "u", slots=2)
    post.answer = lambda n: (503 if n == 1 else 200, {})
    assert delivered(shop, post, concurrency=1) == 2
    shop.now += MINUTE
    assert delivered(shop, post, concurrency=1) == 1
    said = [one.body["decision_id"] for one in post.got]
    assert len(said) == 3
    assert len(set(said)) == 2
    assert kinds(shop) == ["delivered", "delivered"]
    assert shop.ledger.queue_depths(NOON + DAY).outbox == 0


STEPS = ["claim_outbox", "read", "get_user", "dedupe_events", "refund", "ack_outbox"]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("status", [200, 400])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_crash_at_any_step_loses_no_message_and_books_it_once(
    tmp_path: Path, post: Receiver, step: str, status: int, nth: int, after: bool
) -> None:
    """Whatever broke, the message arrives under one key, its outcome stands once in the log (compaction drops copies of an
    event id), a failed one's use is refunded, and no row stays."""
    shop = open_shop(tmp_path, MemoryLedger(), campaign("spring", delivery="outbox"))
    shop.now = NOON
    granted(shop, "u")
    post.answer = lambda _: (status, {})
    whole = shop.ledger
    shop.ledger = Breaking(whole, lambda: LedgerUnavailable("gone"), at=nth, after=after, methods={step})  # type: ignore[assignment]
    for _ in range(3):
        with contextlib.suppress(LedgerUnavailable):
            delivered(shop, post)
        shop.now += HOUR
    assert len(post.got) >= 1
    assert len({one.headers["idempotency-key"] for one in post.got}) == 1
    assert len({row["event_id"] for row in shop.events()}) == 1
    assert set(kinds(shop)) == {"delivered" if status == 200 else "delivery_failed"}
    shop.ledger = whole
    assert refunded(shop, "u") == [status == 400]
    assert whole.queue_depths(shop.now).outbox == 0
    shop.close()


@given(st.integers(0, 2**63 - 1), st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=4), st.integers(0, 10**6))
def test_a_receipt_reads_back(row: int, slots: list[int], attempts: int) -> None:
    receipt = Receipt(row, tuple(slots), attempts)
    assert Receipt.parse(str(receipt)) == receipt


@pytest.mark.parametrize(
    "text", ["", "1", "1.2", "x.1.0", "1.1.", "1.1.0-", "01.1.0", "1.1.0 ", "-1.1.0", "1" * 40 + ".1.0"]
)
def test_what_is_no_receipt_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="receipt"):
        Receipt.parse(text)


@given(st.integers(1, 60), st.integers(0, 2**62))
def test_a_rest_doubles_up_to_a_bound_and_is_spread(attempts: int, row: int) -> None:
    full = min(5.0 * 2.0 ** (attempts - 1), 3600.0) * 1e6
    rest = backoff_us(row, attempts, 5.0, 3600.0)
    assert full / 2 <= rest <= full
    assert rest == backoff_us(row, attempts, 5.0, 3600.0)


def test_rows_that_failed_together_do_not_come_back_together() -> None:
    assert len({backoff_us(row, 3, 5.0, 3600.0) for row in range(1_000)}) > 990
