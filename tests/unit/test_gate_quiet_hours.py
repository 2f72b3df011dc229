"""Quiet hours on the user's clock: ends on switch days, drop or defer, spread, expiry, attempts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from serve_app.policy.zones import local_second_of_day, zone_index
from serve_app.vocabulary import Action, Channel, MessageClass, Reason
from tests.unit.decision_support import HOUR, MINUTE, at, candidate, compiled, decided, gate_words, request

NIGHT = {"id": "night", "start": "22:00", "end": "08:00"}
NEW_YORK = "America/New_York"


def decide(rules: list[dict[str, Any]], now: int, message: dict[str, Any] | None = None, **columns: Any) -> Any:
    policy = compiled(quiet_hours=rules, deferral={"spread_minutes": 0, "max_attempts": 2})
    return decided(policy, [request([candidate(**(message or {}))], decided_at=now, **columns)])


@pytest.mark.parametrize(
    ("clock", "ends"),
    [
        ("2026-03-07T23:00:00", "2026-03-08T08:00:00"),  # spring forward: nine hours later
        ("2026-10-31T23:00:00", "2026-11-01T08:00:00"),  # fall back: ten hours later
        ("2026-11-01T03:00:00", "2026-11-01T08:00:00"),
    ],
)
def test_quiet_hours_end_at_eight_by_the_clock_on_switch_days(clock: str, ends: str) -> None:
    out = decide([NIGHT], at(clock, NEW_YORK), zone=NEW_YORK)
    assert out.requests["action"][0] == Action.defer
    assert out.requests["until"][0] == at(ends, NEW_YORK)


def test_an_end_the_clock_skips_is_the_moment_of_the_jump() -> None:
    rule = NIGHT | {"end": "02:30"}
    out = decide([rule], at("2026-03-08T01:00:00", NEW_YORK), zone=NEW_YORK)
    assert out.requests["until"][0] == at("2026-03-08T03:00:00", NEW_YORK)


def test_an_end_that_comes_twice_is_the_first_one_still_to_come() -> None:
    rule, (first, second) = NIGHT | {"end": "01:30"}, (at("2026-11-01T01:30:00", NEW_YORK, fold=f) for f in (0, 1))
    for now, until in ((at("2026-11-01T00:30:00", NEW_YORK), first), (at("2026-11-01T01:10:00", NEW_YORK, 1), second)):
        out = decide([rule], now, zone=NEW_YORK)
        assert out.requests["until"][0] == until
        assert decide([rule], until, zone=NEW_YORK).requests["action"][0] == Action.send
        assert decide([rule], until - 1, zone=NEW_YORK).requests["action"][0] == Action.defer


def test_a_rule_that_drops_goes_before_one_that_defers() -> None:
    out = decide([NIGHT, {"id": "early", "start": "00:00", "end": "05:00", "action": "drop"}], at("2026-03-10T01:00:00"))
    assert out.requests["action"][0] == Action.suppress
    assert Reason(out.requests["reason"][0]) == Reason.quiet_hours


def test_chained_rules_defer_to_the_end_of_the_chain() -> None:
    rules = [NIGHT, {"id": "commute", "start": "08:00", "end": "09:30"}]
    assert decide(rules, at("2026-03-10T23:00:00")).requests["until"][0] == at("2026-03-11T09:30:00")


def test_of_several_deferrals_the_soonest_is_the_requests() -> None:
    rules = [NIGHT | {"channels": ["push"]}, NIGHT | {"id": "late", "channels": ["sms"], "end": "10:00"}]
    policy = compiled(quiet_hours=rules)
    rows = [candidate(channel=Channel.sms, campaign=2), candidate()]
    for candidates in (rows, rows[::-1]):
        out = decided(policy, [request(candidates, decided_at=at("2026-03-10T23:00:00"))])
        assert out.requests["until"][0] == at("2026-03-11T08:00:00")
        assert sorted(out.candidates["until"].tolist()) == [at(f"2026-03-11T{hour}:00:00") for hour in ("08", "10")]


def test_a_rule_for_a_channel_and_class_leaves_the_others_alone() -> None:
    rule = NIGHT | {"channels": ["sms"], "classes": ["advertising"]}
    now = at("2026-03-10T23:00:00")
    assert decide([rule], now).requests["action"][0] == Action.send
    sms = {"channel": Channel.sms}
    assert decide([rule], now, sms).requests["action"][0] == Action.defer
    assert decide([rule], now, sms | {"message_class": MessageClass.informational}).requests["action"][0] == Action.send


def test_transactional_messages_pass_at_any_hour() -> None:
    rule = NIGHT | {"classes": ["transactional", "advertising"]}
    message = {"message_class": MessageClass.transactional}
    assert decide([rule], at("2026-03-10T23:00:00"), message).requests["action"][0] == Action.send


def test_what_expires_before_the_end_is_not_deferred() -> None:
    now = at("2026-03-10T23:00:00")
    for columns, message in (
        ({"expires_at": at("2026-03-11T08:00:00")}, {}),
        ({}, {"expires_at": at("2026-03-11T07:00:00")}),
    ):
        out = decide([NIGHT], now, message, **columns)
        assert out.requests["action"][0] == Action.suppress
        assert out.requests["until"][0] == 0
    assert decide([NIGHT], now, {"expires_at": at("2026-03-11T08:00:01")}).requests["action"][0] == Action.defer


def test_a_deferral_is_spread_no_further_than_the_expiry() -> None:
    policy = compiled(quiet_hours=[NIGHT], deferral={"spread_minutes": 60})
    now, end = at("2026-03-10T23:00:00"), at("2026-03-11T08:00:00")
    asked = [request([candidate()], decided_at=now, user=u, expires_at=end + 6 * MINUTE) for u in range(1, 201)]
    until = decided(policy, asked).requests["until"]
    assert until.min() >= end
    assert end + 5 * MINUTE < until.max() < end + 6 * MINUTE


def test_quiet_hours_round_the_clock_have_no_end() -> None:
    rules = [NIGHT, *({"id": f"q{h}", "start": f"{h:02d}:00", "end": f"{h + 1:02d}:00"} for h in range(8, 22))]
    out = decide(rules, at("2026-03-10T12:00:00"))
    assert out.requests["action"][0] == Action.suppress
    assert gate_words(out, "quiet_hours")["free"][0] == 0
    out = decide(rules[:-1], at("2026-03-10T22:30:00"))
    assert out.requests["until"][0] == at("2026-03-11T21:00:00")


def test_a_request_is_deferred_no_more_often_than_the_policy_allows() -> None:
    now = at("2026-03-10T23:00:00")
    assert decide([NIGHT], now, attempt=1).requests["action"][0] == Action.defer
    assert decide([NIGHT], now, attempt=2).requests["action"][0] == Action.suppress


def test_deferrals_spread_over_the_window_and_stay_put_when_asked_again() -> None:
    policy = compiled(quiet_hours=[NIGHT], deferral={"spread_minutes": 30})
    now, end = at("2026-03-10T23:00:00"), at("2026-03-11T08:00:00")
    asked = [request([candidate()], decided_at=now, user=u, request_id=u) for u in range(1, 401)]
    until = decided(policy, asked).requests["until"]
    assert until.min() >= end
    assert until.max() < end + 30 * MINUTE
    minutes = np.bincount((until - end) // (10 * MINUTE))
    assert minutes.min() > 90
    later = [one | {"decided_at": now + HOUR} for one in asked]
    assert np.array_equal(decided(policy, later).requests["until"], until)


def test_the_word_shows_the_users_clock() -> None:
    out = decide([NIGHT], at("2026-03-10T23:15:00"))
    word = gate_words(out, "quiet_hours")
    assert word["used"][0] == 23 * 3600 + 15 * 60
    assert word["limit"][0] == 22 * 3600
    assert local_second_of_day(out.requests["decided_at"], zone_index("Asia/Seoul"))[0] == word["used"][0]
