"""Volume under another policy, counted by hand: each user's requests one after the other, decided in plain Python that
shares no code with the gates, deferrals decided again. And a policy that logged, on its own course, gives its own log."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve_app.ids import hash_id
from serve_app.policy.document import PolicyDocument, parse_policy
from serve_app.vocabulary import Channel, MessageClass, Reason
from simulators.replay.asking import spec_for
from simulators.replay.job import run_replay
from simulators.replay.shard import Shard
from simulators.report.tally import Tally
from simulators.world.publish import BEHAVIOUR, publish
from simulators.world.settings import world_settings
from tests.unit.decision_oracle_whole import decide, holdouts_of, key_of
from tests.unit.decision_support import candidate, entry, request
from tests.unit.granted_log import DAY, HOUR, START, Send, write_log

ZONES = {"a": "UTC", "b": "America/New_York", "c": "Asia/Kathmandu"}
USERS = [f"{zone}{n}" for zone in ZONES for n in range(3)]
PUSH = {"channel": Channel.push, "message_class": MessageClass.advertising}
FREE = {"ad_consent_required": False, "night_consent_required": False, "ad_label": None}
Volume = dict[str, Any]


# --- by hand


def by_hand(policy: PolicyDocument, sends: list[Send]) -> Volume:
    """What the policy would have sent."""
    volume: Volume = {"reasons": Counter(), "sends": 0, "carried": 0, "days": Counter()}
    for user in sorted({name for name, _, _ in sends}):
        asked = [(at, place + 1, campaign) for place, (name, at, campaign) in enumerate(sends) if name == user]
        _one_user(policy, user, asked, volume)
    return volume


def _one_user(policy: PolicyDocument, user: str, asked: list[tuple[int, int, int]], volume: Volume) -> None:
    history: list[dict[str, Any]] = []
    waiting: list[dict[str, Any]] = []  # deferrals: due, root, campaign, attempt
    later = [{"due": at, "root": root, "campaign": campaign, "attempt": 0} for at, root, campaign in asked]
    while later or waiting:
        soonest = min(waiting, key=lambda one: one["due"], default=None)
        first = later[0] if later and (soonest is None or later[0]["due"] < soonest["due"]) else soonest
        assert first is not None
        (later if later and first is later[0] else waiting).remove(first)
        said = _asked_now(policy, user, first, history)
        volume["reasons"]["chosen" if said["action"] == "send" else said["reason"]] += 1
        if said["action"] == "send":
            volume["sends"] += 1
            volume["days"][first["due"] // DAY] += 1
        if said["action"] == "defer":
            waiting.append({**first, "due": said["until"], "attempt": first["attempt"] + 1})
            volume["carried"] += 1


def _asked_now(policy: PolicyDocument, user: str, what: dict[str, Any], history: list[dict[str, Any]]) -> dict[str, Any]:
    row = candidate(campaign=hash_id(f"c{what['campaign']}"), category=hash_id("k"), heads=(np.nan, np.nan), **PUSH)
    own = what["root"] if not what["attempt"] else 1_000_000 * what["attempt"] + what["root"]
    asked = request(
        [row], request_id=own, root_id=what["root"], attempt=what["attempt"], decided_at=what["due"], user=hash_id(user),
        zone=ZONES[user[0]], reachable=1 << Channel.push,
    )  # fmt: skip
    said = decide(policy, asked, history)
    (one,) = said["candidates"]
    if one["slot"] >= 0 or one["ghost"]:
        under = key_of(holdouts_of(policy)[one["holdout"]]) if one["ghost"] else 0
        kept = {"campaign": row["campaign"], "category": row["category"], **PUSH}
        history.append(entry(what["due"], request_id=own, zone=ZONES[user[0]], holdout=under, **kept))
    return said


# --- policies and logs


@st.composite
def a_policy(draw: st.DrawFn) -> PolicyDocument:
    windows = st.one_of(
        st.sampled_from((1.0, 24.0, 49.0)).map(lambda hours: {"rolling_hours": hours}),
        st.sampled_from(("day", "week")).map(lambda period: {"calendar": period}),
    )
    times = st.integers(0, 23).map(lambda hour: f"{hour:02d}:30")
    caps = [
        {"id": f"cap{n}", "scope": draw(st.sampled_from(("global", "campaign"))), "limit": draw(st.integers(0, 3)),
         "window": draw(windows)}
        for n in range(draw(st.integers(0, 2)))
    ]  # fmt: skip
    quiet = [
        {"id": f"quiet{n}", "start": start, "end": end, "action": draw(st.sampled_from(("defer", "defer", "drop")))}
        for n in range(draw(st.integers(0, 2)))
        if (start := draw(times)) != (end := draw(times))
    ]
    held = {
        "id": "h",
        "scope": "global",
        "percent": 50.0,
        "salt": draw(st.sampled_from("xy")),
        "blocking": draw(st.booleans()),
    }
    return parse_policy(
        {
            "name": "drawn", "other_regions": FREE, "message_classes": {"advertising": {"bypass_threshold": True}},
            "caps": caps, "quiet_hours": quiet, "min_gap": {"minutes": draw(st.sampled_from((0, 45)))},
            "deferral": {"spread_minutes": draw(st.sampled_from((0, 30))), "max_attempts": draw(st.integers(1, 3))},
            "holdouts": [held] if draw(st.booleans()) else [],
            "flips": {"probability": draw(st.sampled_from((0.0, 0.4))), "to": "none", "salt": "f"},
        }
    )  # fmt: skip


@st.composite
def a_log(draw: st.DrawFn) -> list[Send]:
    """In order of time; several at one moment too."""
    steps = st.sampled_from((0, 1, HOUR // 4, HOUR, 5 * HOUR, 12 * HOUR, 30 * HOUR))
    sends, at = [], START + draw(st.integers(0, 23)) * HOUR
    for _ in range(draw(st.integers(1, 60))):
        at += draw(steps)
        sends.append((draw(st.sampled_from(USERS)), at, draw(st.integers(1, 2))))
    return sends


def replayed(policies: dict[str, PolicyDocument], sends: list[Send]) -> Shard:
    with tempfile.TemporaryDirectory() as name:
        data = write_log(Path(name) / "data", sends, zones={user: ZONES[user[0]] for user in USERS})
        return run_replay(spec_for(data, policies), Path(name) / "out", local=True)


@settings(max_examples=8, suppress_health_check=[HealthCheck.too_slow])
@given(drawn=st.lists(a_policy(), min_size=6, max_size=6), sends=a_log())
def test_volume_under_any_rules_is_what_a_count_by_hand_gives(drawn: list[PolicyDocument], sends: list[Send]) -> None:
    policies = {f"policy {n}": one for n, one in enumerate(drawn)}
    result = replayed(policies, sends)
    tally = Tally(result.counts)
    assert result.parity.same == result.parity.requests == tally.total("logged", "sends") == len(sends)
    for name, policy in policies.items():
        expected = by_hand(policy, sends)
        reasons = {Reason(int(key)).name: n for key, n in tally.by(name, "decisions", "reason").items()}
        assert reasons == dict(expected["reasons"]), name
        assert tally.total(name, "sends") == expected["sends"]
        assert tally.total(name, "carried") == expected["carried"]
        assert {day: n for day, n in tally.days(name, "sends").items() if day >= 0} == dict(expected["days"])


# --- the log's own policy


@settings(max_examples=3, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 10**6), limit=st.integers(1, 3), action=st.sampled_from(("defer", "drop")), gap=st.integers(0, 300)
)
def test_the_policy_that_logged_is_its_own_log_on_its_own_course(seed: int, limit: int, action: str, gap: int) -> None:
    settled = yaml.safe_load(BEHAVIOUR.read_text())
    settled["caps"][0]["limit"], settled["quiet_hours"][0]["action"] = limit, action
    settled["min_gap"]["minutes"], settled["name"] = gap, "drawn"
    policy = parse_policy(settled)
    with tempfile.TemporaryDirectory() as name:
        data = Path(name) / "data"
        publish(world_settings(users=40, items=40, days=4, seed=seed), data, policy=policy)
        result = run_replay(spec_for(data, {"drawn": policy}), Path(name) / "out", local=True)
    assert result.parity.same == result.parity.requests > 0
    counts = result.counts
    compared = ["decisions", "sends", "candidates", "users", "users_reached"]
    tables = [
        counts.filter(pc.and_(pc.equal(counts["policy"], who), pc.is_in(counts["measure"], pa.array(compared))))
        .drop_columns(["policy"])
        .to_pylist()
        for who in ("logged", "drawn")
    ]
    assert tables[0] == tables[1]
    tally = Tally(counts)
    assert tally.total("drawn", "decisions_beyond_divergence") == tally.total("drawn", "carried") == 0
