"""Advertising law at its boundaries: night in Seoul to the second, two years, the label, the exceptions."""

from __future__ import annotations

from typing import Any

import pytest

from serve_app.vocabulary import Action, Channel, MessageClass, Reason
from tests.unit.decision_support import DAY, at, candidate, compiled, decided, gate_words, request

NOON = at("2026-03-10T12:00:00")
KOREAN = {"region": "KR", "consent_ad_at": NOON - 10 * DAY}


def reason(policy: dict[str, Any], message: dict[str, Any], **columns: Any) -> str:
    out = decided(compiled(**policy), [request([candidate(**message)], **columns)])
    return Reason(out.candidates["reason"][0]).name


@pytest.mark.parametrize(
    ("clock", "expected"),
    [
        ("2026-03-10T20:59:59", "chosen"), ("2026-03-10T21:00:00", "no_night_consent"),
        ("2026-03-11T07:59:59", "no_night_consent"), ("2026-03-11T08:00:00", "chosen"),
    ],
)  # fmt: skip
def test_the_night_in_seoul_runs_from_21_to_8(clock: str, expected: str) -> None:
    assert reason({}, {}, **KOREAN, decided_at=at(clock)) == expected
    with_night = KOREAN | {"consent_night_at": NOON - DAY}
    assert reason({}, {}, **with_night, decided_at=at(clock)) == "chosen"


@pytest.mark.parametrize(
    ("clock", "fold", "expected"),
    [
        ("2026-03-07T20:59:59", 0, "chosen"), ("2026-03-07T21:00:00", 0, "no_night_consent"),
        ("2026-03-08T01:59:59", 0, "no_night_consent"), ("2026-03-08T03:00:00", 0, "no_night_consent"),
        ("2026-03-08T07:59:59", 0, "no_night_consent"), ("2026-03-08T08:00:00", 0, "chosen"),
        ("2026-11-01T01:30:00", 0, "no_night_consent"), ("2026-11-01T01:30:00", 1, "no_night_consent"),
        ("2026-11-01T07:59:59", 0, "no_night_consent"), ("2026-11-01T08:00:00", 0, "chosen"),
        ("2026-11-01T20:59:59", 0, "chosen"), ("2026-11-01T21:00:00", 0, "no_night_consent"),
    ],
)  # fmt: skip
def test_the_night_follows_the_users_clock_on_both_switch_days(clock: str, fold: int, expected: str) -> None:
    now = at(clock, "America/New_York", fold)
    columns = KOREAN | {"consent_ad_at": now - DAY, "zone": "America/New_York"}
    assert reason({}, {}, **columns, decided_at=now) == expected


def test_night_without_consent_is_deferred_to_eight_when_the_policy_says_so() -> None:
    policy = compiled(regions={"kr": {"night_action": "defer"}})
    now = at("2026-03-10T23:00:00")
    out = decided(policy, [request([candidate()], **KOREAN, decided_at=now)])
    assert out.requests["action"][0] == Action.defer
    assert out.requests["until"][0] == at("2026-03-11T08:00:00")
    assert Reason(out.requests["reason"][0]) == Reason.no_night_consent


@pytest.mark.parametrize(
    ("age", "expected"), [(730 * DAY - 1, "chosen"), (730 * DAY, "consent_stale"), (0, "chosen"), (-1, "no_consent")]
)
def test_consent_holds_for_two_years_and_not_before_it_was_given(age: int, expected: str) -> None:
    assert reason({}, {}, region="KR", consent_ad_at=NOON - age, decided_at=NOON) == expected


def test_stale_night_consent_is_stale_at_night_only() -> None:
    columns = {"region": "KR", "consent_ad_at": NOON - DAY, "consent_night_at": NOON - 731 * DAY}
    assert reason({}, {}, **columns, decided_at=NOON) == "chosen"
    assert reason({}, {}, **columns, decided_at=at("2026-03-10T22:00:00")) == "consent_stale"


def test_an_existing_customer_needs_no_consent_by_day_but_still_for_the_night() -> None:
    columns = {"region": "KR", "customer_until": NOON + 30 * DAY}
    assert reason({}, {}, **columns, decided_at=NOON) == "chosen"
    assert reason({}, {}, **columns, decided_at=at("2026-03-10T22:00:00")) == "no_night_consent"
    assert reason({}, {}, region="KR", customer_until=NOON, decided_at=NOON) == "no_consent"


def test_mail_is_exempt_from_the_night_rule_and_not_from_consent() -> None:
    mail = {"channel": Channel.email}
    night = at("2026-03-10T22:00:00")
    assert reason({}, mail, **KOREAN, decided_at=night) == "chosen"
    assert reason({}, mail, region="KR", decided_at=night) == "no_consent"


def test_an_unlabelled_advertisement_is_never_sent_where_a_label_is_demanded() -> None:
    assert reason({}, {"labelled": False}, **KOREAN) == "unlabelled_ad"
    assert reason({}, {"labelled": False}, region="US") == "chosen"


def test_a_missing_label_is_not_waited_for() -> None:
    policy = compiled(regions={"kr": {"night_action": "defer"}})
    now = at("2026-03-10T23:00:00")
    out = decided(policy, [request([candidate(labelled=False)], **KOREAN, decided_at=now)])
    assert out.requests["action"][0] == Action.suppress


@pytest.mark.parametrize("kind", [MessageClass.transactional, MessageClass.informational])
def test_other_classes_need_no_consent_at_any_hour(kind: MessageClass) -> None:
    message = {"message_class": kind, "labelled": False}
    assert reason({}, message, region="KR", decided_at=at("2026-03-10T23:00:00")) == "chosen"


def test_an_unknown_region_falls_under_the_strictest_rule() -> None:
    strict: dict[str, Any] = {"other_regions": {}}
    assert reason(strict, {}, region="", consent_ad_at=0) == "no_consent"


def test_the_phones_own_permission_is_no_consent() -> None:
    """Reachable by push, opted out of nothing, and still nobody agreed to advertising."""
    assert reason({}, {}, region="KR", reachable=1 << Channel.push, opted_out=0, decided_at=NOON) == "no_consent"


def test_night_consent_alone_is_no_consent() -> None:
    columns = {"region": "KR", "consent_night_at": NOON - DAY}
    assert reason({}, {}, **columns, decided_at=NOON) == "no_consent"
    assert reason({}, {}, **columns, decided_at=at("2026-03-10T22:00:00")) == "no_consent"


def test_the_exception_for_customers_ends_with_its_last_microsecond() -> None:
    ends = NOON + 182 * DAY  # six months after the transaction, as the caller puts it into the user's state
    assert reason({}, {}, region="KR", customer_until=ends, decided_at=ends - 1) == "chosen"
    assert reason({}, {}, region="KR", customer_until=ends, decided_at=ends) == "no_consent"


@pytest.mark.parametrize(
    ("columns", "waits"),
    [
        ({"consent_ad_at": NOON - DAY}, True),
        ({"consent_ad_at": at("2026-03-11T03:00:00") - 730 * DAY}, False),  # goes stale during the night
        ({"customer_until": at("2026-03-11T08:00:00")}, False),
        ({"customer_until": at("2026-03-11T08:00:01")}, True),
    ],
)
def test_an_advertisement_waits_for_the_morning_only_if_it_may_be_sent_then(columns: dict[str, Any], waits: bool) -> None:
    rules = {"kr": {"night_action": "defer", "existing_customer_exception": True}}
    out = decided(
        compiled(regions=rules), [request([candidate()], region="KR", decided_at=at("2026-03-10T23:00:00"), **columns)]
    )
    assert (out.requests["action"][0] == Action.defer) == waits
    assert gate_words(out, "consent")["free"][0] == (at("2026-03-11T08:00:00") if waits else 0)


def test_a_night_that_never_ends_has_no_next_free_time() -> None:
    rules = {"kr": {"night_action": "defer", "night_start": "00:00", "night_end": "24:00"}}
    out = decided(compiled(regions=rules), [request([candidate()], **KOREAN, decided_at=NOON)])
    assert out.requests["action"][0] == Action.suppress
    assert gate_words(out, "consent")["free"][0] == 0


def test_the_word_says_how_old_the_consent_is() -> None:
    out = decided(compiled(), [request([candidate()], **KOREAN, decided_at=NOON)])
    word = gate_words(out, "consent")
    assert word["used"][0] == 10.0
    assert word["limit"][0] == 730.0
