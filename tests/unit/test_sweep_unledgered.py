"""While the ledger is down: transactional messages go at least once, everything else stays closed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve_app.decide import DecidedBatch, DecideStatus
from serve_app.errors import InvalidInput, LedgerUnavailable, OutcomeUnknown
from serve_app.ids import hash_id
from serve_app.ledger.columns import LedgerView
from serve_app.ledger.memory import MemoryLedger
from serve_app.ledger.protocol import LedgerSettings
from serve_app.policy.document import parse_policy
from serve_app.serving.assemble import bridged
from serve_app.serving.unledgered import may_send_unledgered, send_unledgered
from serve_app.stages.decision import Decision
from serve_app.vocabulary import Action, Reason, StageBit
from tests.unit.decision_support import at, compiled, document
from tests.unit.ledger_support import plan
from tests.unit.sweep_support import Breaking, Shop, campaign, open_shop

NIGHT = at("2026-03-10T23:30:00")


class Down(MemoryLedger):
    """Not reachable."""

    def read(self, users: np.ndarray) -> LedgerView:
        raise LedgerUnavailable(f"{len(users)} users cannot be read")


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    made = open_shop(tmp_path, Down(), order(), campaign("spring"), message_classes={})
    yield made
    made.close()


def order(**fields: Any) -> Any:
    return campaign("order", message_class="transactional", **fields)


def sent(shop: Shop, users: list[str], **asked: Any) -> DecidedBatch:
    return send_unledgered(shop.ask(users, at=NIGHT, **asked), Decision(), shop.edition.context, shop.edition.view.hashes)


def test_a_transactional_message_goes_at_night_without_the_ledger_and_says_so(shop: Shop) -> None:
    made = sent(shop, ["u", "v"], slots=2)
    assert made.status.tolist() == [DecideStatus.unledgered] * 2
    assert made.granted.all()
    request, rows = made.batch.requests, made.batch.candidates
    assert (request["degraded"] & StageBit.ledger).all()
    assert request["read_version"].tolist() == [-1, -1]
    chosen = rows["action"] == Action.send
    assert set(rows["campaign"][chosen].tolist()) == {hash_id("order")}
    assert set(rows["reason"][~chosen].tolist()) == {Reason.ledger_unavailable}
    assert not rows["campaign_killed"].any()
    assert np.allclose(request["p_none"] + np.bincount(made.batch.owner, rows["p_choice"]), 1.0)


def test_a_message_about_an_item_goes_like_any_other(shop: Shop) -> None:
    asked = shop.ask(["u"], at=NIGHT)
    asked.batch.candidates["item"] = np.zeros(asked.batch.candidates.rows, np.int32)
    assert send_unledgered(asked, Decision(), shop.edition.context, shop.edition.view.hashes).status.tolist() == [
        DecideStatus.unledgered
    ]


def test_rows_without_one_stay_closed_beside_those_with_one(shop: Shop) -> None:
    first, second = shop.ask(["u"], at=NIGHT), shop.ask(["v"], at=NIGHT)
    only_spring = second.batch.select(second.batch.candidates["campaign"] == hash_id("spring"))
    both = type(first.batch).concat([only_spring, first.batch])
    closed = DecidedBatch(both, np.full(2, DecideStatus.ledger_unavailable, np.int8), np.zeros(2, np.bool_),
                          np.full(2, -1), [b"", b""])  # fmt: skip
    made = send_unledgered(closed, Decision(), shop.edition.context, shop.edition.view.hashes)
    assert made.status.tolist() == [DecideStatus.ledger_unavailable, DecideStatus.unledgered]
    assert made.granted.tolist() == [False, True]
    assert made.batch.requests["user"].tolist() == [hash_id("v"), hash_id("u")]
    assert made.batch.requests["reason"].tolist()[0] == Reason.ledger_unavailable


@pytest.mark.parametrize(
    ("settings", "fields"),
    [
        ({"message_classes": {"transactional": {"bypass_caps": True, "bypass_min_gap": True}}}, {}),
        ({"message_classes": {}, "kill_switches": {"channels": ["push"]}}, {}),
        ({"message_classes": {}}, {"delivery": "outbox"}),
        ({"message_classes": {}}, {"expires_at": NIGHT}),
    ],
    ids=["policy forbids", "switched off", "needs the outbox", "expired"],
)
def test_what_may_not_go_is_answered_with_the_ledgers_absence(
    tmp_path: Path, settings: dict[str, Any], fields: dict[str, Any]
) -> None:
    shop = open_shop(tmp_path, Down(), order(**fields), **settings)
    made = sent(shop, ["u"])
    assert made.status.tolist() == [DecideStatus.ledger_unavailable]
    assert not made.granted.any()


def test_a_commit_whose_outcome_is_unknown_is_never_sent_unledgered(tmp_path: Path) -> None:
    shop = open_shop(tmp_path, MemoryLedger(LedgerSettings()), order(), message_classes={})
    shop.put("u")
    whole = shop.ledger
    shop.ledger = Breaking(whole, lambda: OutcomeUnknown("gone"), at=1, after=True, methods={"commit"})  # type: ignore[assignment]
    made = sent(shop, ["u"])
    assert made.status.tolist() == [DecideStatus.outcome_unknown]
    assert not made.granted.any()
    shop.ledger = whole
    assert sent(shop, ["u"], keys=[b"k" * 16]).status.tolist() != [DecideStatus.unledgered]


def test_with_the_ledger_back_the_same_message_is_ledgered(shop: Shop) -> None:
    assert sent(shop, ["u"], keys=[b"k" * 16]).status.tolist() == [DecideStatus.unledgered]
    shop.ledger = MemoryLedger()
    shop.put("u")
    made = sent(shop, ["u"], keys=[b"k" * 16])
    assert made.status.tolist() == [DecideStatus.committed]
    assert len(shop.history("u")) == 1


def test_the_policy_says_who_may_and_refuses_what_would_be_unlawful() -> None:
    assert may_send_unledgered(compiled(message_classes={}))
    assert not may_send_unledgered(compiled(message_classes={"transactional": {}}))
    base = document().model_dump(mode="json")
    for classes, said in (
        ({"advertising": {"unledgered": True}}, "is for transactional messages"),
        ({"transactional": {"unledgered": True}}, "needs bypass_caps and bypass_min_gap"),
    ):
        with pytest.raises(InvalidInput, match=said):
            parse_policy({**base, "message_classes": classes})


async def test_a_read_that_takes_too_long_is_given_up_and_a_commit_goes_on_with_its_outcome_unknown() -> None:
    ends: dict[str, str] = {}
    let_go = asyncio.Event()

    async def slow(method: str, *_: Any) -> None:
        try:
            await let_go.wait()
            ends[method] = "done"
        except asyncio.CancelledError:
            ends[method] = "given up"
            raise

    ledger = bridged(slow, asyncio.get_running_loop(), timeout_s=0.02, read_s=0.01)
    users = np.array([1], np.uint64)
    with pytest.raises(LedgerUnavailable):
        await asyncio.to_thread(ledger.read, users)
    with pytest.raises(OutcomeUnknown):
        await asyncio.to_thread(ledger.commit, plan([1], [0], [2]))
    let_go.set()
    while len(ends) < 2:
        await asyncio.sleep(0)
    assert ends == {"read": "given up", "commit": "done"}
