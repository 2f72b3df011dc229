"""What a running server logged, replayed: every decision comes out again, through a promotion, holdouts, cells, deferrals,
refunds, retries, callers side by side, and a log compacted while it grew."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from serve_app.log.reader import read_log
from serve_app.policies import promote_policy, store_policy
from serve_app.policy.document import PolicyDocument, parse_policy
from serve_app.release.flip import HttpFlip
from serve_app.vocabulary import Origin, Reason, StageBit, Surface
from simulators.replay.asking import spec_for
from simulators.replay.job import run_replay
from simulators.replay.shard import Shard
from simulators.report.tally import Tally
from tests.cluster.server_support import TOKEN, data_copy, deployed, generous, in_process

OPERATOR = {"Authorization": f"Bearer {TOKEN}"}
USERS = [f"someone {n}" for n in range(40)]
CAMPAIGNS: dict[str, dict[str, Any]] = {
    "order": {"text": "Your order is on its way", "message_class": "transactional", "channels": ["push", "sms"]},
    "restock": {"text": "Back in stock", "message_class": "informational", "channels": ["push", "email"]},
    "points": {"text": "Your points end soon", "message_class": "informational", "channels": ["email"]},
    "sale": {"text": "(광고) Everything must go", "message_class": "advertising", "channels": ["push", "email"]},
}
MARKETING = [{"campaign": name} for name in ("restock", "points", "sale")]
FREE = {"ad_consent_required": False, "night_consent_required": False, "ad_label": None}


def policy(name: str, **settings: Any) -> PolicyDocument:
    """Explores, withholds, and has cells."""
    base: dict[str, Any] = {
        "name": name,
        "other_regions": FREE,
        "message_classes": {
            "transactional": {"bypass_caps": True, "bypass_threshold": True, "bypass_min_gap": True, "priority": 100},
            "informational": {"bypass_threshold": True},
            "advertising": {"bypass_threshold": True},
        },
        "caps": [
            {"id": "day", "scope": "global", "limit": 2, "window": {"rolling_hours": 24}},
            {"id": "push", "scope": "channel", "only": ["push"], "limit": 3, "window": {"calendar": "day"}},
        ],
        "holdouts": [{"id": "all", "scope": "global", "percent": 25.0, "salt": "all of them"}],
        "cells": {
            "salt": "cells of the test", "epoch_hours": 168,
            "variants": [
                {"id": "base", "probability": 0.5},
                {"id": "tight", "probability": 0.25, "overrides": {"caps.day.limit": 1}},
                {"id": "loose", "probability": 0.25, "overrides": {"caps.day.limit": 4}},
            ],
        },
        "flips": {"probability": 0.3, "to": "either", "salt": "flips of the test"},
        "deferral": {"spread_minutes": 0},
        "surfaces": {"notification": {"head_weights": {"p_click": 1.0, "p_convert": 4.0}}},
    }  # fmt: skip
    return parse_policy(base | settings)


@dataclass
class Shop:
    """A server and its callers. promote: put a policy in force while they call."""

    client: httpx.Client
    data: Path
    promote: Callable[[PolicyDocument], None]

    def post(self, path: str, body: Any, **more: Any) -> Any:
        answer = self.client.post(path, json=body, **more)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def put(self, path: str, body: dict[str, Any]) -> None:
        answer = self.client.put(path, json=body)
        assert answer.status_code == 200, answer.text

    def open(self) -> None:
        """Campaigns and users: some in odd zones, some who cannot be reached, some without a zone."""
        for name, about in CAMPAIGNS.items():
            self.put(f"/v1/campaigns/{name}", about)
        zones = ["Asia/Seoul", "America/New_York", "Pacific/Chatham", "UTC"]
        for n, user in enumerate(USERS[:-4]):
            state = {"reachable": ["push", "email", "sms"][: 1 + n % 3], "zone": zones[n % 4]}
            self.put(f"/v1/users/{user}", state)
        self.put(f"/v1/users/{USERS[-4]}", {"reachable": ["push"]})

    def decide(self, user: str, **more: Any) -> Any:
        return self.post("/v1/notifications/decide", {"user": user, **more})

    @staticmethod
    def about(n: int) -> dict[str, Any]:
        """One to three sends of the marketing campaigns; every tenth call is about whatever is live."""
        return {"max_sends": 1 + n % 3, **({} if n % 10 == 0 else {"candidates": MARKETING})}

    def traffic(self, rounds: int) -> list[Any]:
        """Eight callers side by side: single calls, keys retried, one user from several callers at once, batches."""
        with ThreadPoolExecutor(8) as callers:
            asked = [callers.submit(self.decide, USERS[n % len(USERS)], **self.about(n)) for n in range(rounds)]
            asked += [callers.submit(self.decide, USERS[0], idempotency_key=f"again {n // 3}") for n in range(12)]
            asked += [callers.submit(self.decide, USERS[1 + n % 2], **self.about(n)) for n in range(12)]
            rows = [{"user": USERS[n % 7], "candidates": MARKETING} for n in range(30)]
            batch = self.post("/v1/notifications/decide-batch", {"rows": rows})
            found = [one.result() for one in asked]
        assert len(batch["decisions"]) == len(rows)
        return found

    def answer(self, decided: list[Any]) -> None:
        """Some messages fail to arrive, some are clicked, some users opt out of a channel."""
        sends = [(one["user"], send) for one in decided for send in one["sends"] if not one.get("replayed")]
        assert sends
        now, events = datetime.now(UTC).isoformat(), []
        for n, (user, send) in enumerate(sends):
            kind, decision = ("delivery_failed", "delivered", "seen")[n % 3], send["decision_id"]
            one = {"specversion": "1.0", "id": f"{kind} {decision}", "source": "/test", "type": kind, "subject": user}
            events.append({**one, "time": now, "data": {"decision_id": decision}})
        assert self.post("/v1/events", events)["refused"] == 0
        self.put(f"/v1/users/{USERS[3]}", {"opted_out": ["push"]})

    def compact(self) -> None:
        self.post("/v1/log/upkeep", None, headers=OPERATOR)


def soon(seconds: int) -> tuple[datetime, dict[str, Any]]:
    """Quiet hours for e-mail in everybody's zone but Chatham's, ending that soon."""
    end = datetime.now(UTC) + timedelta(seconds=seconds)
    hours = {"id": "now", "channels": ["email"], "action": "defer"}
    return end, {**hours, "start": f"{end - timedelta(minutes=9):%H:%M}", "end": f"{end:%H:%M}"}


@contextmanager
def in_this_process(data: Path, **settings: Any) -> Iterator[Shop]:
    chunks = {"decide_batch_rows_per_chunk": 5}
    with in_process(generous(data=data, topology="fused", limits=chunks, **settings)) as client:

        def promote(document: PolicyDocument) -> None:
            revision = store_policy(data, document)
            for phase in ("prepare", "commit"):
                answer = client.post(f"/v1/policies/{phase}", json={"version": revision}, headers=OPERATOR)
                assert answer.status_code == 200, answer.text

        yield Shop(client, data, promote)


def replayed(data: Path) -> Shard:
    spec = spec_for(data, {"without caps": policy("without caps", caps=[], holdouts=[], cells=None)})
    return run_replay(spec, data / "replayed", local=True)


def reproduced(data: Path, more_than: int) -> Shard:
    """The replay, after all of the log came out again."""
    result = replayed(data)
    assert result.parity.columns == {}, result.parity.examples
    assert result.parity.same == result.parity.requests > more_than
    return result


def logged(data: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Columns of the notification requests and their candidates."""
    requests = read_log(data, "requests").to_pandas()
    mine = requests[requests.surface == int(Surface.notification)]
    candidates = read_log(data, "candidates").to_pandas()
    of_mine = candidates[candidates.request_id.isin(mine.request_id)]
    return {
        "revision": mine.policy_revision.to_numpy(), "cell": mine.cell.to_numpy(), "origin": mine.origin.to_numpy(),
        "refunds": mine.refunds_read.to_numpy(), "ghost": of_mine.ghost.to_numpy(), "reason": of_mine.reason.to_numpy(),
    }  # fmt: skip


def run_shop(shop: Shop) -> None:
    """Two policies, each with traffic before and after events, the log compacted in between."""
    shop.promote(policy("first"))
    shop.open()
    shop.answer(shop.traffic(120))
    shop.traffic(60)
    shop.compact()
    tighter = [{"id": "day", "scope": "global", "limit": 3, "window": {"calendar": "day"}}]
    _, hours = soon(300)
    with ThreadPoolExecutor(1) as caller:
        during = caller.submit(shop.traffic, 120)
        shop.promote(policy("second", caps=tighter, cells=None, min_gap={"minutes": 1}, quiet_hours=[hours]))
        shop.answer(during.result())
    shop.traffic(120)
    shop.compact()


def test_what_a_server_logged_comes_out_again(demo_release: Path, tmp_path: Path) -> None:
    data = data_copy(demo_release, tmp_path / "data")
    with in_this_process(data) as shop:
        run_shop(shop)
    result = reproduced(data, 400)
    seen = logged(data)
    assert len(set(seen["revision"])) == 2
    assert {0, 1, 2} <= set(seen["cell"])
    assert seen["ghost"].any()
    assert seen["refunds"].max() > 0
    wanted = {Reason.frequency_capped, Reason.explored_off, Reason.quiet_hours, Reason.global_holdout, Reason.min_gap}
    assert wanted <= {Reason(one) for one in set(seen["reason"].tolist())}
    retries = Tally(result.counts).by("logged", "set_aside", "reason")
    assert set(retries) == {Reason.duplicate}
    assert result.requests + retries[Reason.duplicate] == len(seen["revision"])


def test_answers_without_scores_come_out_again(demo_release: Path, tmp_path: Path) -> None:
    data = data_copy(demo_release, tmp_path / "data")
    hurried = {"request_ms": 30_000, "decide_ms": 30_000, "live_ms": 30_000, "journal_ms": 30_000, "ranking_ms": 1}
    scored = policy("scored", message_classes={}, threshold=-10.0)
    with in_this_process(data, budgets=hurried) as shop:
        shop.promote(scored)
        shop.open()
        shop.traffic(60)
    with in_this_process(data) as shop:
        shop.promote(scored)
        shop.traffic(60)
        shop.compact()
    reproduced(data, 200)
    requests = read_log(data, "requests").to_pandas()
    mine = requests[requests.surface == int(Surface.notification)]
    assert (mine.degraded & int(StageBit.ranking) != 0).any()
    assert Reason.not_scored in {Reason(one) for one in set(logged(data)["reason"].tolist())}


@pytest.mark.long
def test_deferrals_that_came_back_by_themselves_come_out_again(ray_cluster: int, demo_release: Path, tmp_path: Path) -> None:
    data = data_copy(demo_release, tmp_path / "data")
    settings = generous(data=data, topology="chain", http={"port": ray_cluster}, deferrals={"poll_ms": 200})
    with deployed(settings) as instance, httpx.Client(base_url=instance.url, timeout=60) as client:

        def promote(document: PolicyDocument) -> None:
            promote_policy(data, store_policy(data, document), now=2, flip=HttpFlip(instance.url, TOKEN, "policies"))

        shop = Shop(client, data, promote)
        end, hours = soon(70)
        promote(policy("deferring", quiet_hours=[hours]))
        shop.open()
        waiting = [shop.decide(user, candidates=[{"campaign": "points"}], idempotency_key="k") for user in USERS]
        deferred = [one for one in waiting if one["action"] == "defer"]
        assert deferred
        shop.answer(shop.traffic(60))
        promote(policy("after", cells=None))
        _until_answered(client, [one["decided_again_as"] for one in deferred], end)
        shop.traffic(40)
        shop.compact()
    result = reproduced(data, 150)
    origins = logged(data)["origin"]
    assert (origins == Origin.deferral).sum() >= len(deferred)
    assert result.requests + Tally(result.counts).total("logged", "set_aside", "reason") == len(origins)


def _until_answered(client: httpx.Client, decisions: list[str], end: datetime) -> None:
    pause, give_up = threading.Event(), end.timestamp() + 90
    while any(client.get(f"/v1/decisions/{one}").status_code != 200 for one in decisions):
        assert time.time() < give_up, "the deferrals were not decided again"
        pause.wait(0.5)
