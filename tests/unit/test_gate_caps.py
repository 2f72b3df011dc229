"""Caps: windows to the microsecond, calendars across zones, scopes, refunds, what counts."""

from __future__ import annotations

from typing import Any

import pytest

from serve_app.ids import hash_id
from serve_app.policy.gates.caps import first_day_of, period_of
from serve_app.policy.tables import BY_DAY, BY_MONTH, BY_WEEK
from serve_app.vocabulary import Channel, MessageClass, Reason
from tests.unit.decision_support import DAY, HOUR, at, candidate, compiled, decided, entry, gate_words, request

NOW = at("2026-03-10T12:00:00")
ROLLING = {"id": "c", "scope": "global", "limit": 1, "window": {"rolling_hours": 24}}
DAILY = {"id": "c", "scope": "global", "limit": 1, "window": {"calendar": "day"}}


def reason(cap: dict[str, Any], history: list[dict[str, Any]], message: dict[str, Any] | None = None, **columns: Any) -> str:
    out = decided(compiled(caps=[cap]), [request([candidate(**(message or {}))], **columns)], [history])
    return Reason(out.candidates["reason"][0]).name


@pytest.mark.parametrize(
    ("age", "expected"), [(DAY, "chosen"), (DAY - 1, "frequency_capped"), (-3 * HOUR, "frequency_capped")]
)
def test_a_rolling_window_is_open_at_its_old_end_and_counts_faster_clocks(age: int, expected: str) -> None:
    assert reason(ROLLING, [entry(NOW - age)], decided_at=NOW) == expected


def test_a_calendar_day_begins_at_the_users_midnight() -> None:
    midnight = at("2026-03-10T00:00:00")
    assert reason(DAILY, [entry(midnight)], decided_at=NOW) == "frequency_capped"
    assert reason(DAILY, [entry(midnight - 1)], decided_at=NOW) == "chosen"


def test_moving_to_another_zone_never_widens_a_calendar_cap() -> None:
    # Sent on the 10th by Seoul's calendar; in New York it was still the 9th. Now it is the 10th in New York.
    sent, now = at("2026-03-10T08:00:00"), at("2026-03-10T09:00:00", "America/New_York")
    assert reason(DAILY, [entry(sent, zone="Asia/Seoul")], decided_at=now, zone="America/New_York") == "frequency_capped"
    # Written in New York on the 9th, seen from Seoul it was the 10th.
    moved = entry(sent, zone="America/New_York")
    assert reason(DAILY, [moved], decided_at=at("2026-03-10T12:00:00"), zone="Asia/Seoul") == "frequency_capped"
    # Neither calendar says the 10th.
    assert reason(DAILY, [moved], decided_at=now, zone="America/New_York") == "chosen"


def test_a_week_begins_on_monday_and_a_month_on_the_first() -> None:
    week = DAILY | {"window": {"calendar": "week"}}
    sunday, monday = at("2026-03-08T23:59:59"), at("2026-03-09T00:00:00")
    assert reason(week, [entry(sunday)], decided_at=NOW) == "chosen"
    assert reason(week, [entry(monday)], decided_at=NOW) == "frequency_capped"
    month = DAILY | {"window": {"calendar": "month"}}
    assert reason(month, [entry(at("2026-02-28T23:59:59"))], decided_at=NOW) == "chosen"
    assert reason(month, [entry(at("2026-03-01T00:00:00"))], decided_at=NOW) == "frequency_capped"


@pytest.mark.parametrize("kind", [BY_DAY, BY_WEEK, BY_MONTH])
def test_periods_partition_the_days(kind: int) -> None:
    before = period_of(-40_000, kind)
    for day in range(-40_000, 60_000):
        period = period_of(day, kind)
        assert period - before in (0, 1)
        if period != before:
            assert first_day_of(period, kind) == day
        before = period


def test_each_scope_counts_its_own_uses() -> None:
    past = [entry(NOW - HOUR, campaign=1, category=4, channel=Channel.push)]
    cases = [
        ("channel", {"channel": Channel.push}, {"channel": Channel.email}),
        ("category", {"category": 4}, {"category": 5}),
        ("campaign", {"campaign": 1}, {"campaign": 2}),
    ]
    for scope, same, other in cases:
        cap = ROLLING | {"scope": scope}
        unlike = {"channel": Channel.email, "category": 9, "campaign": 9}
        assert reason(cap, past, unlike | same, decided_at=NOW) == "frequency_capped"
        assert reason(cap, past, {"channel": 0, "category": 4, "campaign": 1} | other, decided_at=NOW) == "chosen"


def test_only_limits_a_cap_to_the_names_it_gives() -> None:
    cap = ROLLING | {"scope": "campaign", "only": ["spring"], "limit": 0}
    assert reason(cap, [], {"campaign": hash_id("spring")}) == "frequency_capped"
    assert reason(cap, [], {"campaign": hash_id("summer")}) == "chosen"


def test_a_refunded_use_is_given_back_only_where_the_cap_says_so() -> None:
    failed = [entry(NOW - HOUR, flags=1)]
    assert reason(ROLLING, failed, decided_at=NOW) == "chosen"
    assert reason(ROLLING | {"refund_failed_delivery": False}, failed, decided_at=NOW) == "frequency_capped"


def test_classes_that_count_and_classes_that_are_bound_are_told_apart() -> None:
    transactional = [entry(NOW - HOUR, message_class=MessageClass.transactional)]
    assert reason(ROLLING, transactional, decided_at=NOW) == "chosen"
    counting = ROLLING | {"counts": ["transactional", "advertising"]}
    assert reason(counting, transactional, decided_at=NOW) == "frequency_capped"
    # Transactional messages bypass caps by class, even those that name them.
    bound = counting | {"binds": ["transactional"]}
    assert reason(bound, transactional, {"message_class": MessageClass.transactional}, decided_at=NOW) == "chosen"


def test_another_holdouts_ghost_is_no_use() -> None:
    assert reason(ROLLING, [entry(NOW - HOUR, holdout=4711)], decided_at=NOW) == "chosen"


def test_the_word_tells_used_limit_and_when_there_is_room_again() -> None:
    cap = ROLLING | {"limit": 2}
    past = [entry(NOW - 5 * HOUR), entry(NOW - 3 * HOUR), entry(NOW - HOUR)]
    out = decided(compiled(caps=[cap]), [request([candidate()], decided_at=NOW)], [past])
    word = gate_words(out, "caps")
    assert (word["used"][0], word["limit"][0]) == (3.0, 2.0)
    # Room for one when two of the three have left.
    assert word["free"][0] == NOW - 3 * HOUR + DAY


def test_the_cap_with_the_least_room_speaks_and_the_last_to_free_up_decides() -> None:
    caps = [ROLLING, ROLLING | {"id": "d", "limit": 1, "window": {"rolling_hours": 72}}]
    out = decided(compiled(caps=caps), [request([candidate()], decided_at=NOW)], [[entry(NOW - HOUR)]])
    assert gate_words(out, "caps")["free"][0] == NOW - HOUR + 3 * DAY


def test_counts_names_the_caps_a_grant_uses_up() -> None:
    caps = [
        ROLLING,
        ROLLING | {"id": "d", "scope": "channel", "only": ["email"]},
        ROLLING | {"id": "e", "counts": ["informational"]},
    ]
    out = decided(compiled(caps=caps), [request([candidate(), candidate(channel=Channel.email)])])
    assert out.candidates["counts"].tolist() == [0b001, 0b011]


def test_an_arm_may_turn_a_rolling_window_into_a_calendar_one() -> None:
    turned = {"caps.c.window.rolling_hours": None, "caps.c.window.calendar": "day"}
    arms = [{"id": "a", "percent": 0}, {"id": "b", "percent": 100, "overrides": turned}]
    policy = compiled(caps=[ROLLING], experiments=[{"id": "e", "salt": "e", "arms": arms}])
    midnight = at("2026-03-10T00:00:00")
    past = [[entry(midnight)], [entry(midnight - 1)]]
    out = decided(policy, [request([candidate()], user=u, decided_at=NOW) for u in (1, 2)], past)
    assert [Reason(r).name for r in out.candidates["reason"]] == ["frequency_capped", "chosen"]


def test_an_arm_may_change_which_classes_count() -> None:
    arms = [{"id": "a", "percent": 0}, {"id": "b", "percent": 100, "overrides": {"caps.c.counts": ["informational"]}}]
    policy = compiled(caps=[ROLLING], experiments=[{"id": "e", "salt": "e", "arms": arms}])
    out = decided(policy, [request([candidate()], decided_at=NOW)], [[entry(NOW - HOUR)]])
    assert Reason(out.candidates["reason"][0]).name == "chosen"
    assert out.candidates["counts"].tolist() == [0]


def test_a_cap_that_has_room_today_and_none_when_another_frees_up_is_waited_for() -> None:
    """Sends of today in Kiritimati lie on tomorrow's calendar there: the daily cap is open now and full tomorrow."""
    caps = [DAILY, ROLLING | {"id": "d", "window": {"rolling_hours": 30}}]
    sent, now = at("2026-03-10T12:00:00", "Pacific/Pago_Pago"), at("2026-03-10T20:00:00", "Pacific/Pago_Pago")
    past = [entry(sent, zone="Pacific/Kiritimati")]  # there it was the 11th already, 25 hours ahead
    asked = request([candidate()], decided_at=now, zone="Pacific/Pago_Pago")
    free = gate_words(decided(compiled(caps=caps), [asked], [past]), "caps")["free"][0]
    assert free == at("2026-03-12T00:00:00", "Pacific/Pago_Pago")
    for when, reason_then in ((free - 1, "frequency_capped"), (free, "chosen")):
        out = decided(compiled(caps=caps), [asked | {"decided_at": int(when)}], [past])
        assert Reason(out.candidates["reason"][0]).name == reason_then
