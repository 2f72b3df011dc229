"""Parity on a log recorded through HTTP while everything went on that a server meets: two policies, holdouts of both kinds,
cells, flips, deferrals swept, midnight and daylight saving under way, a clock that went back, stages and a ledger out of
time, consents and opt-outs between, refunds, retries, batches in both forms, and calls that were refused."""

from __future__ import annotations

import json
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest

from serve_app.clock import monotonic_s, now_us, text_of
from serve_app.log.reader import read_log
from serve_app.policies import store_policy
from serve_app.policy.document import PolicyDocument, canonical_json, parse_policy
from serve_app.segments.refresh import refresh_segments
from serve_app.vocabulary import Action, Origin, Reason, StageBit, Surface
from tests.cluster.recorded import RecordedServer, clock_at, recorded_server
from tests.cluster.server_support import TOKEN, data_copy, generous
from tests.command_line import hindcast
from tests.unit.bad_logs import changed, with_column

OPERATOR = {"Authorization": f"Bearer {TOKEN}"}
USERS = [f"person {n}" for n in range(36)]
ZONES = ("America/New_York", "Asia/Seoul", "Europe/London", "Pacific/Chatham")
BATCH = "/v1/notifications/decide-batch"
ARROW = "application/vnd.apache.arrow.stream"
CAMPAIGNS: dict[str, dict[str, Any]] = {
    "order": {"message_class": "transactional", "channels": ["push", "sms"]},
    "restock": {"message_class": "informational", "channels": ["push", "email"]},
    "points": {"message_class": "informational", "channels": ["email"]},
    "sale": {"message_class": "advertising", "channels": ["push", "email"]},
    "club": {"message_class": "advertising", "channels": ["push", "email"], "segment": "members"},
}
MARKETING = [{"campaign": name} for name in ("restock", "points", "sale", "club")]
FREE = {"ad_consent_required": False, "night_consent_required": False, "ad_label": None}
ASKS = {**FREE, "ad_consent_required": True}


def policy(name: str, **settings: Any) -> PolicyDocument:
    base: dict[str, Any] = {
        "name": name,
        "other_regions": FREE,
        "regions": {"us": ASKS},
        "message_classes": {
            "transactional": {
                "bypass_caps": True, "bypass_threshold": True, "bypass_min_gap": True, "bypass_quiet_hours": True,
                "unledgered": True, "priority": 100,
            },
            "informational": {"bypass_threshold": True},
            "advertising": {"threshold": -10.0},
        },
        "max_sends_per_decision": 3,
        "caps": [
            {"id": "day", "scope": "global", "limit": 3, "window": {"rolling_hours": 24}},
            {"id": "local-day", "scope": "channel", "only": ["push"], "limit": 2, "window": {"calendar": "day"}},
            {"id": "week", "scope": "campaign", "limit": 4, "window": {"calendar": "week"}},
        ],
        "holdouts": [
            {"id": "all", "scope": "global", "percent": 20.0, "salt": "held out"},
            {"id": "quiet", "scope": "campaign", "campaigns": ["sale"], "percent": 20.0, "salt": "silent", "blocking": True},
        ],
        "cells": {
            "salt": "cells", "epoch_hours": 240,
            "variants": [
                {"id": "base", "probability": 0.5},
                {"id": "tight", "probability": 0.5, "overrides": {"caps.day.limit": 1}},
            ],
        },
        "flips": {"probability": 0.3, "to": "either", "salt": "flips"},
        "segments": [{"id": "members", "where": {"kind": "membership", "name": "user_id", "values": USERS[::3]}}],
        "deferral": {"spread_minutes": 20, "max_attempts": 2},
        "surfaces": {"notification": {"head_weights": {"p_click": 1.0, "p_convert": 4.0}}},
    }  # fmt: skip
    return parse_policy(base | settings)


SECOND: dict[str, Any] = {
    "caps": [{"id": "week", "scope": "global", "limit": 6, "window": {"calendar": "week"}}],
    "min_gap": {"minutes": 2},
    "quiet_hours": [{"id": "night", "start": "00:30", "end": "10:15", "channels": ["email", "push"], "action": "defer"}],
    "cells": None,
}


@dataclass
class Recorder:
    """Callers of one server. answered: statuses of decide calls by kind of call."""

    client: httpx.Client
    server: RecordedServer
    data: Path
    answered: Counter[str] = field(default_factory=Counter)
    sends: list[tuple[str, str]] = field(default_factory=list)

    def put(self, path: str, body: dict[str, Any]) -> None:
        answer = self.client.put(path, json=body)
        assert answer.status_code == 200, answer.text

    def promote(self, document: PolicyDocument) -> None:
        revision = store_policy(self.data, document)
        for phase in ("prepare", "commit"):
            answer = self.client.post(f"/v1/policies/{phase}", json={"version": revision}, headers=OPERATOR)
            assert answer.status_code == 200, answer.text

    def open(self) -> None:
        for name, about in CAMPAIGNS.items():
            self.put(f"/v1/campaigns/{name}", {"text": f"About {name}", **about})
        for n, user in enumerate(USERS):
            state: dict[str, Any] = {"reachable": ["push", "email", "sms"][: 1 + n % 3]}
            state |= {"zone": ZONES[n % 4]} if n % 9 else {}
            state |= {"region": "us"} if n % 4 == 0 else {}
            self.put(f"/v1/users/{user}", state)

    def decide(self, user: str, **more: Any) -> httpx.Response:
        answer = self.client.post("/v1/notifications/decide", json={"user": user, **more})
        said = answer.json()
        replayed = answer.status_code == 200 and said["replayed"]
        self.answered["replayed" if replayed else f"one {answer.status_code}"] += 1
        if answer.status_code == 200 and not replayed:
            self.sends += [(user, one["decision_id"]) for one in said["sends"]]
        return answer

    def traffic(self, rounds: int) -> None:
        """Six callers side by side; some users from two at once."""
        with ThreadPoolExecutor(6) as callers:
            for n in range(rounds):
                about = {} if n % 7 == 0 else {"candidates": MARKETING}
                callers.submit(self.decide, USERS[n % len(USERS)], max_sends=1 + n % 3, **about)
                if n % 5 == 0:
                    callers.submit(self.decide, USERS[n % len(USERS)], candidates=[{"campaign": "order"}])
                if n % 6 == 0:
                    callers.submit(self.decide, USERS[n % 3], candidates=MARKETING, idempotency_key=f"key {n // 18}")

    def batches(self) -> None:
        """Users who stand in several rows, several sends a row; the same again as an Arrow stream."""
        rows = [{"user": USERS[n % 11], "candidates": MARKETING, "max_sends": 1 + n % 2} for n in range(40)]
        answer = self.client.post(BATCH, json={"rows": rows})
        assert answer.status_code == 200, answer.text
        self.answered["rows"] += len(rows)
        table = pa.table({"user": [USERS[n % 13] for n in range(40)], "campaign": ["restock", "sale"] * 20})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        answer = self.client.post(BATCH, content=sink.getvalue().to_pybytes(), headers={"content-type": ARROW})
        assert answer.status_code == 200, answer.text
        self.answered["rows"] += len(table)

    def refused(self) -> None:
        """Calls that decide nothing."""
        body = {"user": USERS[0], "candidates": MARKETING, "idempotency_key": "once"}
        assert self.decide(**body).status_code == 200
        assert self.decide(**{**body, "max_sends": 2}).status_code == 409
        for wrong in ({"user": ""}, {"user": "x", "candidates": [{"campaign": "none such"}]}, {"user": "x", "what": 1}):
            answer = self.client.post("/v1/notifications/decide", json=wrong)
            assert 400 <= answer.status_code < 500, answer.text
        dry = self.client.post("/v1/notifications/decide", json={"user": USERS[1], "dry_run": True})
        assert dry.status_code == 200, dry.text

    def failures(self, every: int) -> None:
        """Some of the messages sent so far did not arrive; each is told once."""
        told, self.sends = self.sends[::every], []
        events = [
            {
                "specversion": "1.0", "id": f"failed {decision}", "source": "/test", "type": "delivery_failed",
                "subject": user, "time": text_of(now_us()), "data": {"decision_id": decision},
            }
            for user, decision in told
        ]  # fmt: skip
        answer = self.client.post("/v1/events", json=events)
        assert answer.status_code == 200, answer.text
        assert answer.json()["refused"] == 0

    def members_known(self) -> None:
        """Until the server has taken up who the members are."""
        refresh_segments(self.data, now=now_us(), extra=[policy("first")])
        body = {"user": USERS[1], "candidates": [{"campaign": "club"}], "dry_run": True}
        ends = monotonic_s() + 60
        while self.client.post("/v1/notifications/decide", json=body).json()["reason"] == "segment_stale":
            assert monotonic_s() < ends, "the segments were not taken up"
            threading.Event().wait(0.05)

    def compact(self) -> None:
        answer = self.client.post("/v1/log/upkeep", headers=OPERATOR)
        assert answer.status_code == 200, answer.text


def first_days(shop: Recorder) -> None:
    """Under the first policy: midnight in New York, then the hour it skips; consents and opt-outs between."""
    clock_at("2027-03-13T18:00")
    shop.promote(policy("first"))
    shop.open()
    shop.traffic(50)
    shop.members_known()
    shop.traffic(30)
    clock_at("2027-03-14T04:59:58")
    shop.traffic(60)
    given = {"given_at": text_of(now_us()), "proof": "a form"}
    for user in USERS[:20:4]:
        shop.put(f"/v1/users/{user}", {"consent_advertising": given})
    shop.failures(3)
    shop.batches()
    clock_at("2027-03-14T06:59:58")
    shop.traffic(60)
    for user in USERS[2:9:3]:
        shop.put(f"/v1/users/{user}", {"opted_out": ["push"]})
    shop.refused()
    shop.compact()


def second_days(shop: Recorder) -> None:
    """The second policy comes while callers call; it defers; the sweeper decides again, twice for some."""
    clock_at("2027-03-15T02:00")
    with ThreadPoolExecutor(1) as caller:
        during = caller.submit(shop.traffic, 60)
        shop.promote(policy("second", **SECOND))
        during.result()
    shop.traffic(40)
    clock_at("2027-03-15T06:00")
    shop.traffic(60)
    shop.failures(4)
    for moment in ("2027-03-15T10:16", "2027-03-15T10:40", "2027-03-15T14:40", "2027-03-16T12:00"):
        clock_at(moment)
        shop.answered.update({f"swept {name}": n for name, n in shop.server.sweep().items()})
        shop.traffic(20)
    shop.compact()


def bad_days(shop: Recorder) -> None:
    """Stages out of time, a ledger that is slow and then away, a clock that goes back."""
    clock_at("2027-03-18T15:00")
    for stage in ("ranking", "features"):
        with shop.server.without_time_for(stage):
            shop.traffic(30)
    shop.server.owner.away = True
    shop.traffic(20)
    shop.server.owner.away, shop.server.owner.delay_s = False, 3.0
    shop.traffic(6)
    shop.server.owner.delay_s = 0.0
    clock_at("2027-03-18T16:00")
    shop.traffic(30)
    clock_at("2027-03-18T15:58:40")
    shop.traffic(60)
    shop.batches()
    shop.compact()


@pytest.fixture(scope="module")
def shop(demo_release: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorder]:
    data = data_copy(demo_release, tmp_path_factory.mktemp("recorded") / "data")
    settings = generous(data=data, topology="fused", limits={"decide_batch_rows_per_chunk": 5})
    with recorded_server(settings, read_s=1.0) as (client, server):
        made = Recorder(client, server, data)
        for days in (first_days, second_days, bad_days):
            days(made)
        yield made


@pytest.fixture(scope="module")
def report(shop: Recorder, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of the command on a copy of the log, under a policy with a cap of one a day."""
    folder = tmp_path_factory.mktemp("replayed")
    for part in ("log", "policies", "catalogue"):
        shutil.copytree(shop.data / part, folder / "data" / part)
    tight = policy("tight", caps=[{"id": "one", "scope": "global", "limit": 1, "window": {"rolling_hours": 24}}], cells=None)
    (folder / "tight.json").write_bytes(canonical_json(tight))
    where = ["--log", folder / "data", "--out", folder / "out", "--policy", folder / "tight.json", "--in-process"]
    done = hindcast("replay", *where)
    found: dict[str, Any] = json.loads((folder / "out" / "report.json").read_text())
    assert done.exit_code == 0, (done.text[-3000:], found["parity"])
    return found


def requests_of(shop: Recorder) -> dict[str, Any]:
    rows = read_log(shop.data, "requests").to_pandas()
    return {name: rows[rows.surface == int(Surface.notification)][name].to_numpy() for name in rows}


def test_every_decision_comes_out_again_or_is_set_aside_by_name(shop: Recorder, report: dict[str, Any]) -> None:
    assert report["parity"]["columns"] == {}, report["parity"]["examples"]
    assert report["parity"]["same"] == report["parity"]["requests"] > 700
    aside = report["left_out"]["set_aside"]
    assert set(aside) <= {"duplicate", "ledger_unavailable", "outcome_unknown", "chosen"}
    logged = len(requests_of(shop)["request_id"])
    assert report["parity"]["requests"] + sum(aside.values()) == logged


def test_every_answer_is_in_the_log_and_no_refused_call_is(shop: Recorder) -> None:
    rows = requests_of(shop)
    by_origin = Counter(Origin(int(one)) for one in rows["origin"])
    swept = sum(n for name, n in shop.answered.items() if name.startswith("swept"))
    answered = shop.answered["one 200"] + shop.answered["rows"]
    away = sum(n for name, n in shop.answered.items() if name == "one 503")
    assert by_origin[Origin.deferral] == swept
    logged = len(rows["origin"]) - swept
    assert answered <= logged <= answered + away + shop.answered["replayed"], shop.answered
    known = {"one 200", "one 503", "one 409", "rows", "replayed"}
    assert {name for name in shop.answered if not name.startswith("swept")} <= known
    assert shop.answered["one 409"] == 1


def test_everything_this_is_about_has_happened(shop: Recorder, report: dict[str, Any]) -> None:
    """Or parity would be cheap."""
    rows = requests_of(shop)
    ids = set(rows["request_id"].tolist())
    every = read_log(shop.data, "candidates").to_pandas()
    candidates = every[every.request_id.isin(ids)]
    decisions = read_log(shop.data, "decisions").to_pandas()
    decisions = decisions[decisions.request_id.isin(ids)]
    reasons = {Reason(one).name for one in candidates.reason.unique().tolist()}
    assert {
        "frequency_capped", "explored_off", "quiet_hours", "global_holdout", "campaign_holdout", "min_gap", "no_consent",
        "channel_opted_out", "not_in_segment", "segment_stale", "not_scored", "preempted",
    } <= reasons, reasons  # fmt: skip
    assert len(set(rows["policy_revision"])) == 2
    assert {0, 1} <= set(rows["cell"].tolist())
    assert rows["refunds_read"].max() > 0
    assert rows["attempt"].max() >= 1
    assert {Action.send, Action.defer, Action.suppress} <= set(decisions.action.tolist())
    assert decisions.slot.max() >= 1, "several sends of one request"
    assert decisions.explored.any()
    assert candidates.ghost.any()
    degraded = np.bitwise_or.reduce(rows["degraded"])
    assert degraded & StageBit.ranking
    assert degraded & StageBit.ledger
    assert report["left_out"]["set_aside"]["duplicate"] > 0
    backwards = 0
    for _, one in decisions[decisions.commit_version >= 0].sort_values("commit_version").groupby("user"):
        backwards += int((np.diff(one.ts.to_numpy()) < 0).sum())
    assert backwards > 10, "the clock went back within users"


def test_a_changed_decision_would_have_been_noticed(shop: Recorder, tmp_path: Path) -> None:
    for part in ("log", "policies", "catalogue"):
        shutil.copytree(shop.data / part, tmp_path / "data" / part)

    def other(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        values[np.flatnonzero(np.isfinite(values))[:1]] += 1e-12
        return values

    changed(tmp_path / "data", "candidates", with_column("value", other))
    (tmp_path / "same.json").write_bytes(canonical_json(policy("same")))
    where = ["--log", tmp_path / "data", "--out", tmp_path / "out", "--policy", tmp_path / "same.json", "--in-process"]
    done = hindcast("replay", *where)
    assert done.exit_code == 13, done.text[-2000:]
    assert ": value " in done.out
