"""Redis dies and comes back: what waits stays, what could not be known is said so, and all goes on by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_app.decide import DecideStatus
from serve_app.errors import LedgerUnavailable
from serve_app.ledger.redis import RedisLedger
from serve_app.serving.outbox_messages import Outcome
from serve_app.serving.unledgered import send_unledgered
from serve_app.stages.decision import Decision
from serve_app.vocabulary import Action, Reason
from tests.unit.decision_support import MINUTE, at
from tests.unit.ledger_support import RedisServer, require_redis
from tests.unit.sweep_support import Shop, campaign, open_shop

EVENING, MORNING = at("2026-03-10T23:30:00"), at("2026-03-11T09:00:00")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    require_redis()
    made = RedisServer(tmp_path / "redis")
    yield made
    made.kill()


@pytest.fixture
def shop(server: RedisServer, tmp_path: Path) -> Iterator[Shop]:
    order = campaign("order", message_class="transactional", starts_at=MORNING)
    classes = {"transactional": {"bypass_caps": True, "bypass_min_gap": True, "bypass_threshold": True, "unledgered": True}}
    classes["informational"] = {"bypass_threshold": True}
    made = open_shop(tmp_path, RedisLedger(server.url), campaign("spring"), order, message_classes=classes)
    made.now = MORNING
    yield made
    made.close()


def test_a_deferral_waits_for_the_ledger_and_is_decided_once_it_is_back(server: RedisServer, shop: Shop) -> None:
    shop.put("u")
    assert shop.ask(["u"], at=EVENING).batch.requests["action"].tolist() == [Action.defer]
    server.kill()
    sweeper = shop.sweeper()
    with pytest.raises(LedgerUnavailable):
        asyncio.run(sweeper.sweep())
    server.start()
    assert asyncio.run(sweeper.sweep()).outcomes == {"send": 1}
    shop.now += MINUTE
    assert asyncio.run(sweeper.sweep()).due == 0
    desk = shop.desk()
    (message,) = asyncio.run(desk.claim(10, MINUTE))
    server.kill()
    with pytest.raises(LedgerUnavailable):
        asyncio.run(desk.settle([Outcome.of(message.send, "delivered")]))
    server.start()
    assert asyncio.run(desk.settle([Outcome.of(message.send, "delivered")])) == 1
    assert shop.ledger.queue_depths(shop.now).outbox == 0
    assert len({row["event_id"] for row in shop.events()}) == 1


def test_decisions_fail_closed_while_it_is_away_but_for_what_may_go_without(server: RedisServer, shop: Shop) -> None:
    shop.put("u", "v")
    server.kill()
    away = shop.ask(["u"], at=EVENING)
    assert away.status.tolist() == [DecideStatus.ledger_unavailable]
    assert away.batch.requests["reason"].tolist() == [Reason.ledger_unavailable]
    own = shop.edition.context, shop.edition.view.hashes
    assert send_unledgered(away, Decision(), *own).status.tolist() == [DecideStatus.ledger_unavailable]
    due = send_unledgered(shop.ask(["u"], at=MORNING), Decision(), *own)
    assert due.status.tolist() == [DecideStatus.unledgered]
    server.start()
    back = shop.ask(["u", "v"], at=MORNING)
    assert back.status.tolist() == [DecideStatus.committed] * 2
    assert [len(shop.history(user)) for user in ("u", "v")] == [1, 1]


def test_a_ledger_that_hangs_in_a_commit_leaves_the_outcome_unknown_and_the_key_tells_it(
    server: RedisServer, shop: Shop
) -> None:
    shop.put("u")
    key = [b"k" * 16]
    whole = shop.ledger

    class Hanging:
        """The server hangs from the read on."""

        settings = whole.settings

        def read(self, users: object) -> object:
            return whole.read(users)  # type: ignore[arg-type]

        def commit(self, plan: object) -> object:
            with server.frozen():
                return whole.commit(plan)  # type: ignore[arg-type]

    shop.ledger = Hanging()  # type: ignore[assignment]
    made = send_unledgered(shop.ask(["u"], at=MORNING, keys=key), Decision(), shop.edition.context, shop.edition.view.hashes)
    assert made.status.tolist() == [DecideStatus.outcome_unknown]
    shop.ledger = whole
    again = shop.ask(["u"], at=MORNING, keys=key)
    assert again.status.tolist()[0] in (DecideStatus.duplicate, DecideStatus.committed)
    assert len(shop.history("u")) == 1
