"""Deferrals come back: at their time, spread, once, by every gate, whatever dies in between."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import orjson
import pytest

from serve_app.decide import DecideStatus
from serve_app.errors import LedgerUnavailable, OutcomeUnknown
from serve_app.ids import hash_id
from serve_app.ledger.columns import CommitPlan, CommitResult
from serve_app.ledger.memory import MemoryLedger
from serve_app.ledger.protocol import Deferral, Ledger, LedgerSettings, UserChanges
from serve_app.ledger.sqlite import SqliteLedger
from serve_app.serving.deciding import DecideCall, Decided
from serve_app.serving.meters import install
from serve_app.serving.sweeping import Sweeper, SweepSettings, Swept
from serve_app.stages.decision.deferrals import child_of
from serve_app.vocabulary import Action, Channel, Delivery, Origin, Reason
from tests.unit.decision_support import DAY, HOUR, MINUTE, SECOND, at
from tests.unit.sweep_support import Breaking, Shop, campaign, open_shop

EVENING, MORNING = at("2026-03-10T23:30:00"), at("2026-03-11T08:00:00")
SPREAD_OVER = MORNING + 30 * MINUTE


@pytest.fixture(params=["memory", "sqlite"])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    ledger: Ledger = MemoryLedger()
    if request.param == "sqlite":
        ledger = SqliteLedger(tmp_path / "ledger.sqlite", LedgerSettings(), durability="process")
    made = open_shop(tmp_path, ledger, campaign("spring"))
    yield made
    made.close()


def deferred(shop: Shop, *users: str, when: int = EVENING, **asked: object) -> list[Deferral]:
    """Users whose message has to wait for the morning."""
    shop.put(*users)
    made = shop.ask(list(users), at=when, **asked)  # type: ignore[arg-type]
    assert (made.batch.requests["action"] == Action.defer).all()
    return shop.ledger.due_deferrals(when + 9 * DAY, 10_000)


def swept(shop: Shop, when: int, sweeper: Sweeper | None = None) -> Swept:
    shop.now = when
    return asyncio.run((sweeper or shop.sweeper()).sweep())


def queued(shop: Shop) -> list[dict[str, object]]:
    """Sends of all outbox rows."""
    items = shop.ledger.claim_outbox(shop.now, 10_000, 1)
    return [send for one in items for send in orjson.loads(one.payload)["sends"]]


def test_a_night_deferral_is_decided_at_eight_plus_its_spread_in_seoul(shop: Shop) -> None:
    (one,) = deferred(shop, "u")
    assert MORNING <= one.until < SPREAD_OVER
    assert swept(shop, one.until - 1).due == 0
    assert swept(shop, one.until).outcomes == {"send": 1}
    (entry,) = shop.history("u")
    assert entry["at"] == one.until
    record = shop.decision("u", child_of(one.user, one.request_id))
    request = record["request"]
    assert (request["origin"], request["attempt"]) == (Origin.deferral, 1)
    assert request["parent_request_id"] == request["root_id"] == one.request_id
    assert swept(shop, one.until + DAY).due == 0


def test_what_a_deferral_grants_is_queued_though_its_campaign_has_the_caller_deliver(shop: Shop) -> None:
    (one,) = deferred(shop, "u")
    swept(shop, SPREAD_OVER)
    (send,) = queued(shop)
    assert send["campaign"] == f"{hash_id('spring'):016x}"
    record = shop.decision("u", child_of(one.user, one.request_id))
    assert record["candidates"]["delivery"].tolist() == [Delivery.outbox]


def test_a_thousand_deferrals_do_not_all_come_back_at_eight(shop: Shop) -> None:
    until = np.array([one.until for one in deferred(shop, *(f"u{k}" for k in range(1_000)))])
    minutes = (until - MORNING) / MINUTE
    assert (minutes >= 0).all()
    assert (minutes < 30).all()
    assert np.histogram(minutes, 10, (0, 30))[0].min() > 60  # 100 expected; below 60 by chance once in 10^5 bins


def test_a_sweep_takes_a_bounded_batch_earliest_first(shop: Shop) -> None:
    waiting = deferred(shop, *(f"u{k}" for k in range(20)))
    sweeper = shop.sweeper(batch=8)
    assert [swept(shop, SPREAD_OVER, sweeper).due for _ in range(4)] == [8, 8, 4, 0]
    granted = [one.user for one in waiting]
    assert len(np.unique(np.array(granted, np.uint64))) == 20
    assert all(len(shop.history(f"u{k}")) == 1 for k in range(20))


def test_two_sweepers_that_found_the_same_deferral_grant_once(shop: Shop) -> None:
    deferred(shop, "u")
    shop.now = SPREAD_OVER
    both_found = asyncio.Barrier(2)

    async def decide(call: DecideCall) -> Decided:
        await both_found.wait()
        return await shop.decide(call)

    async def both() -> list[Swept]:
        pair = [Sweeper(shop.call, shop.editions, decide, shop.pool, SweepSettings(), clock=shop.clock) for _ in range(2)]
        return list(await asyncio.gather(*(one.sweep() for one in pair)))

    outcomes = sorted(str(dict(one.outcomes)) for one in asyncio.run(both()))
    assert outcomes == ["{'answered already': 1}", "{'send': 1}"]
    assert len(shop.history("u")) == len(queued(shop)) == 1


class Slow(MemoryLedger):
    """Another sweeper decides between this one's read and its commit."""

    def __init__(self, inner: MemoryLedger, shop: Shop) -> None:
        self.__dict__ = dict(inner.__dict__)
        self.shop, self.late = shop, True

    def commit(self, plan: CommitPlan) -> CommitResult:
        if self.late:
            self.late = False
            with ThreadPoolExecutor(1) as other:
                other.submit(swept, self.shop, self.shop.now).result()
        return super().commit(plan)


def test_a_sweeper_that_loses_its_commit_finds_the_answer_and_grants_nothing(tmp_path: Path) -> None:
    inner = MemoryLedger()
    shop = open_shop(tmp_path, inner, campaign("spring"))
    deferred(shop, "u")
    late = Shop(Slow(inner, shop), shop.edition, shop.journal, tmp_path)
    shop.now = SPREAD_OVER
    assert swept(late, SPREAD_OVER).outcomes == {"answered already": 1}
    assert len(shop.history("u")) == len(queued(shop)) == 1


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("method", ["due_deferrals", "read", "commit"])
def test_a_crash_at_any_step_neither_loses_nor_repeats_a_grant(shop: Shop, method: str, after: bool) -> None:
    deferred(shop, "u", "v")
    whole = shop.ledger
    shop.ledger = Breaking(whole, lambda: OutcomeUnknown("gone"), at=1, after=after, methods={method})  # type: ignore[assignment]
    with contextlib.suppress(OutcomeUnknown):
        swept(shop, SPREAD_OVER)
    assert shop.ledger.broke  # type: ignore[attr-defined]
    shop.ledger = whole
    swept(shop, SPREAD_OVER + 1)
    assert [len(shop.history(user)) for user in ("u", "v")] == [1, 1]
    assert len(queued(shop)) == 2
    assert shop.ledger.queue_depths(SPREAD_OVER + DAY).deferrals == 0


def test_while_the_ledger_is_away_deferrals_wait_in_it(shop: Shop) -> None:
    deferred(shop, "u")
    whole = shop.ledger
    shop.ledger = Breaking(whole, lambda: LedgerUnavailable("away"), at=1, after=False, methods={"commit"})  # type: ignore[assignment]
    sweeper = shop.sweeper()
    assert swept(shop, SPREAD_OVER, sweeper).outcomes == {"open": 1}
    assert len(shop.history("u")) == 0
    assert swept(shop, SPREAD_OVER + MINUTE, sweeper).outcomes == {"send": 1}
    shop.ledger = whole


def test_deferrals_of_a_closed_bucket_do_not_hold_up_the_others(shop: Shop) -> None:
    stuck, free = deferred(shop, "u", "v")[:2]
    whole = shop.ledger
    closed = Closed(whole, stuck.user)
    shop.ledger = closed  # type: ignore[assignment]
    sweeper = shop.sweeper(batch=1)
    first, second = (swept(shop, SPREAD_OVER, sweeper).outcomes for _ in range(2))
    assert (first, second) == ({"open": 1}, {"send": 1})
    closed.user = 0
    assert swept(shop, SPREAD_OVER + MINUTE, sweeper).outcomes == {"send": 1}
    assert free.user != stuck.user
    shop.ledger = whole


class Closed:
    """A ledger that refuses one user's bucket."""

    def __init__(self, inner: Ledger, user: int) -> None:
        self._inner, self.user = inner, user

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def commit(self, plan: CommitPlan) -> CommitResult:
        if self.user in plan.users.tolist():
            raise LedgerUnavailable("closed")
        return self._inner.commit(plan)


def test_an_opt_out_between_decision_and_sweep_is_obeyed(shop: Shop) -> None:
    (one,) = deferred(shop, "u")
    shop.ledger.put_user(one.user, UserChanges(opted_out=1 << Channel.push))
    assert swept(shop, SPREAD_OVER).outcomes == {"suppress": 1}
    assert len(shop.history("u")) == len(queued(shop)) == 0
    record = shop.decision("u", child_of(one.user, one.request_id))
    assert record["request"]["reason"] == Reason.channel_opted_out
    assert shop.ledger.queue_depths(SPREAD_OVER + DAY).deferrals == 0


def test_a_user_who_moved_meanwhile_is_asked_by_the_clock_of_the_new_zone(shop: Shop) -> None:
    (one,) = deferred(shop, "u")
    shop.ledger.put_user(one.user, UserChanges(zone="Europe/London"))  # 23:00 there when it is 8:00 in Seoul
    assert swept(shop, SPREAD_OVER).outcomes == {"defer": 1}
    (again,) = shop.ledger.due_deferrals(SPREAD_OVER + DAY, 10)
    assert 0 <= again.until - at("2026-03-11T08:00:00", "Europe/London") < 30 * MINUTE


def test_a_deferral_found_too_late_ends_as_expired_and_in_the_log(shop: Shop) -> None:
    (one,) = deferred(shop, "u", expires_at=SPREAD_OVER + HOUR)
    assert swept(shop, SPREAD_OVER + HOUR).outcomes == {"expired": 1}
    record = shop.decision("u", child_of(one.user, one.request_id))
    assert record["request"]["reason"] == Reason.expired
    assert shop.ledger.queue_depths(SPREAD_OVER + DAY).deferrals == 0


def test_a_deferral_may_be_deferred_again_a_bounded_number_of_times(shop: Shop) -> None:
    (one,) = deferred(shop, "u")
    chain = [one]
    for night in range(1, 4):
        outcomes = swept(shop, EVENING + night * DAY).outcomes
        if night < 3:
            assert outcomes == {"defer": 1}
            (following,) = shop.ledger.due_deferrals(EVENING + 9 * DAY, 10)
            assert following.request_id == child_of(one.user, chain[-1].request_id)
            chain.append(following)
    assert outcomes == {"suppress": 1}
    requests = [shop.decision("u", child_of(one.user, parent.request_id))["request"] for parent in chain]
    assert [request["attempt"] for request in requests] == [1, 2, 3]
    assert {request["root_id"] for request in requests} == {one.request_id}


def test_a_campaign_that_is_gone_is_answered_as_switched_off(shop: Shop) -> None:
    (one,) = deferred(shop, "u")
    shop.with_campaigns(campaign("summer"))
    assert swept(shop, SPREAD_OVER).outcomes == {"suppress": 1}
    record = shop.decision("u", child_of(one.user, one.request_id))
    assert record["candidates"]["reason"].tolist() == [Reason.kill_switch]


def test_a_campaign_changed_meanwhile_is_judged_as_it_is_now(shop: Shop) -> None:
    (one,) = deferred(shop, "u")
    shop.with_campaigns(campaign("spring", expires_at=SPREAD_OVER))
    assert swept(shop, SPREAD_OVER).outcomes == {"expired": 1}
    del one


def test_a_key_retried_after_its_deferral_fired_answers_the_deferral_and_sends_nothing(shop: Shop) -> None:
    key = b"K" * 16
    (one,) = deferred(shop, "u", keys=[key])
    swept(shop, SPREAD_OVER)
    again = shop.ask(["u"], at=SPREAD_OVER + HOUR, keys=[key])
    assert again.status.tolist() == [DecideStatus.duplicate]
    assert not again.granted.any()
    assert len(shop.history("u")) == len(queued(shop)) == 1
    child = shop.decision("u", child_of(one.user, one.request_id))["request"]
    assert child["action"] == Action.send


def test_a_user_erased_meanwhile_has_no_deferral_left(shop: Shop) -> None:
    (one,) = deferred(shop, "u")
    shop.ledger.delete_user(one.user)
    assert swept(shop, SPREAD_OVER).due == 0


def test_a_deferral_whose_record_cannot_be_read_is_set_aside_and_holds_up_nobody(tmp_path: Path) -> None:
    ledger = MemoryLedger()
    shop = open_shop(tmp_path, ledger, campaign("spring"))
    deferred(shop, "u")
    ledger._deferrals.put(Deferral(7, 7, MORNING - DAY, b"torn"))
    sweeper = shop.sweeper(batch=1)
    assert swept(shop, SPREAD_OVER, sweeper).outcomes == {"unreadable": 1}
    assert swept(shop, SPREAD_OVER, sweeper).outcomes == {"send": 1}
    assert swept(shop, SPREAD_OVER, sweeper).due == 0
    assert swept(shop, SPREAD_OVER + HOUR, sweeper).outcomes == {"unreadable": 1}


class Collected:
    """Takes what is measured."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self.values: dict[str, list[float]] = defaultdict(list)

    def add(self, name: str, amount: float, tags: Mapping[str, str]) -> None:
        self.counts[name, tags.get("outcome", "")] += int(amount)

    def observe(self, name: str, value: float, tags: Mapping[str, str]) -> None:
        del tags
        self.values[name].append(value)

    def set(self, name: str, value: float, tags: Mapping[str, str]) -> None:
        self.values["/".join((name, *tags.values()))] = [value]


def test_outcomes_and_lag_are_measured(tmp_path: Path) -> None:
    shop = open_shop(tmp_path, MemoryLedger(), campaign("spring"))
    (one,) = deferred(shop, "u")
    seen = Collected()
    install(seen)
    try:
        swept(shop, one.until + 3 * SECOND)
    finally:
        install(Collected())  # nobody else listens in this process
    assert seen.counts["hindcast_deferrals", "send"] == 1
    assert seen.values["hindcast_sweep_lag_ms"] == [3_000.0]
    assert seen.values["hindcast_sweep_lag_s"] == [3.0]
