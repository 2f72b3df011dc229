"""What a load test holds answers to: lists, decisions, their form, and the policy's caps."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import orjson
import pytest

from loadtests.scenarios.answers import Contract
from loadtests.scenarios.audience import Campaign, CapRule, SendRules
from loadtests.scenarios.cap_count import CapCount, Grant, Suspect
from loadtests.scenarios.lists import faults_of_explained, faults_of_list, faults_of_page
from loadtests.scenarios.sends import faults_of_decision, faults_of_explained_decision
from loadtests.scenarios.step import Answer

NOON = datetime(2026, 11, 22, 3, 0, tzinfo=UTC)  # 12:00 in Seoul


def places(*ids: str) -> list[dict]:
    return [{"id": one, "slot": slot} for slot, one in enumerate(ids)]


def test_a_sound_list_has_no_faults() -> None:
    assert faults_of_list(places("a", "b"), slots=5, excluded=["c"], among=["a", "b", "c"]) == []


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        (places("a", "b", "c"), "3 places where 2"),
        (places("a", "a"), "twice"),
        (places("x"), "excluded"),
        ([{"id": "a", "slot": 1}], "slots"),
        (places("z"), "not among"),
    ],
)
def test_a_fault_of_a_list_is_named(shown, words) -> None:
    found = faults_of_list(shown, slots=2, excluded=["x"], among=["a", "b", "c", "x"])
    assert any(words in one for one in found)


def test_a_product_twice_on_a_page_is_a_fault_and_an_empty_slot_is_not() -> None:
    widgets = [{"id": "w1", "slot": 0, "items": places("a")}, {"id": "w2", "slot": 2, "items": places("b")}]
    assert faults_of_page({"widgets": widgets}, widgets=3, slots=4) == []
    widgets[1]["items"] = places("a")
    assert faults_of_page({"widgets": widgets}, widgets=3, slots=4) == ["a product stands on the page twice"]
    assert faults_of_page({"widgets": widgets[::-1]}, widgets=3, slots=4)


def test_what_was_dropped_may_not_be_shown() -> None:
    explain = [
        {"id": "a", "slot": 0, "drop_reason": None, "propensity": 0.5},
        {"id": "b", "slot": None, "drop_reason": "excluded", "propensity": None},
    ]
    content = {"items": places("a"), "explain": explain}
    assert faults_of_explained(content, "items") == []
    explain[0]["drop_reason"] = "seen"
    assert "dropped" in faults_of_explained(content, "items")[0]
    explain[0] |= {"drop_reason": None, "propensity": 1.5}
    assert "propensity 1.5" in faults_of_explained(content, "items")[0]


def decision(**changes) -> dict:
    send = {"slot": 0, "campaign": "c1", "channel": "push", "propensity": 0.9, "decision_id": "d1"}
    return {"user": "u", "action": "send", "sends": [send], "until": None, "propensity_none": 0.1, **changes}


CHANNELS = {"c1": ("push", "email"), "c2": ("sms",)}


@pytest.mark.parametrize(
    ("asked", "got", "words"),
    [
        ({}, {"user": "v"}, "answered of 'v'"),
        ({}, {"sends": []}, "action send with 0"),
        ({}, {"action": "suppress"}, "action suppress with 1"),
        ({"candidates": [{"campaign": "c2"}]}, {}, "not among the candidates"),
        ({"candidates": [{"campaign": "c1", "channel": "email"}]}, {}, "not among the candidates"),
        ({}, {"sends": [{**decision()["sends"][0], "channel": "sms"}]}, "does not use"),
        ({}, {"sends": [{**decision()["sends"][0], "propensity": 0}]}, "propensity 0"),
        ({}, {"action": "defer", "sends": [], "until": "2026-11-22T02:00:00Z"}, "not later"),
        ({}, {"propensity_none": 1.2}, "propensity_none"),
    ],
)
def test_a_fault_of_a_decision_is_named(asked, got, words) -> None:
    sound = {"user": "u", "candidates": [{"campaign": "c1"}]}
    assert faults_of_decision(sound, decision(), NOON.isoformat(), CHANNELS) == []
    found = faults_of_decision({**sound, **asked}, decision(**got), NOON.isoformat(), CHANNELS)
    assert any(words in one for one in found), found


def test_probabilities_of_all_choices_are_one_in_sum() -> None:
    got = decision(explain=[{"propensity": 0.7}, {"propensity": 0.2}, {"propensity": None}])
    assert faults_of_explained_decision(got) == []
    got["explain"][0]["propensity"] = 0.6
    assert "0.9" in faults_of_explained_decision(got)[0]


DOCUMENT = {
    "paths": {
        "/x/{id}": {
            "get": {
                "responses": {
                    "200": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Thing"}}}},
                    "4XX": {"content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}},
                    "5XX": {"content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}},
                }
            }
        }
    },
    "components": {
        "schemas": {
            "Thing": {"type": "object", "required": ["id"], "properties": {"id": {"type": "string"}}},
            "Problem": {"type": "object", "required": ["type", "status"]},
        }
    },
}


def answer(status: int, content: object, media: str = "application/json", retry: str | None = None) -> Answer:
    return Answer(status, content, media, retry, "", orjson.dumps(content))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (answer(200, {"id": "a"}), None),
        (answer(200, {"id": 5}), "schema"),
        (answer(200, {}), "schema"),
        (Answer(200, None, "text/plain", None, "", b"hello"), "without JSON"),
        (answer(404, {"type": "t", "status": 404}, "application/problem+json"), None),
        (answer(404, {"type": "t", "status": 404}), "not as a problem"),
        (answer(404, {"type": "t", "status": 400}, "application/problem+json"), "says status 400"),
        (answer(503, {"type": "t", "status": 503}, "application/problem+json"), "Retry-After"),
        (answer(503, {"type": "t", "status": 503}, "application/problem+json", "1"), None),
        (Answer(500, None, "text/html", None, "", b"<html>"), "without JSON"),
    ],
)
def test_answers_are_what_the_server_promised(given, words) -> None:
    found = Contract(DOCUMENT).faults("GET /x/{id}", given)
    assert (words is None) == (not found), found
    assert words is None or words in found[0]


CAMPAIGNS = [Campaign(id=f"c{n}", message_class="advertising", category="shoes", channels=("push",)) for n in range(9)] + [
    Campaign(id="t", message_class="transactional", category="", channels=("push",))
]


def rule(**said) -> SendRules:
    cap = {"id": "cap", "scope": "global", "limit": 2, "rolling_s": 3600.0, "classes": {"advertising"}, **said}
    return SendRules(policy="p", caps=(CapRule(**cap),))


def grants(*minutes: float, campaign: str = "c1") -> list[Grant]:
    return [Grant("u", f"d{campaign}{m}", campaign, "push", NOON + timedelta(minutes=m)) for m in minutes]


STORED = {"cell": None, "zone": "Asia/Seoul"}


def breaches(rules: SendRules, given: list[Grant], stored=STORED) -> list[str]:
    count = CapCount(rules, CAMPAIGNS)
    return [words for suspect in count.add(given) for words in count.judge(suspect, stored)]


def test_a_third_grant_within_the_window_is_found_in_any_order() -> None:
    given = grants(0, 30, 59)
    random.Random(1).shuffle(given)
    assert "granted 3" in breaches(rule(), given)[0]


def test_a_grant_after_the_window_and_one_told_twice_are_none() -> None:
    assert breaches(rule(), [*grants(0, 30, 60), *grants(30)]) == []


def test_what_the_cap_does_not_bind_does_not_count() -> None:
    assert breaches(rule(), [*grants(0, 1), *grants(2, 3, 4, campaign="t")]) == []


def test_campaigns_are_counted_apart_by_their_own_cap() -> None:
    given = [*grants(0, 1, campaign="c1"), *grants(2, 3, campaign="c2")]
    assert breaches(rule(scope="campaign"), given) == []
    assert breaches(rule(scope="campaign", only=("c1",), limit=1), given) != []
    assert breaches(rule(scope="campaign", only=("c3",), limit=1), given) == []


def test_a_cell_may_allow_more_and_the_stored_decision_says_which() -> None:
    rules = rule(limits={0: 1, 1: 3}, limit=2)
    count = CapCount(rules, CAMPAIGNS)
    assert count.add(grants(0)) == []
    suspects = count.add(grants(1))
    assert [one.user for one in suspects] == ["u"]  # above the lowest limit of any cell
    assert count.judge(suspects[0], {"cell": 1, "zone": None}) == []
    assert count.add(grants(2)) == []  # the cell is known now
    assert "limit 3" in count.judge(count.add(grants(3))[0], {"cell": 1, "zone": None})[0]
    assert "limit 1" in count.judge(suspects[0], {"cell": 0, "zone": None})[0]


def test_calendar_days_are_the_users_own() -> None:
    rules = rule(rolling_s=None, calendar="day", limit=1)
    given = grants(11 * 60, 13 * 60)  # 23:00 and 01:00 in Seoul, one day in UTC
    assert breaches(rules, given) == []
    assert breaches(rules, given, {"cell": None, "zone": "UTC"}) != []


def test_without_a_policy_nothing_is_counted() -> None:
    count = CapCount(None, CAMPAIGNS)
    assert count.add(grants(0, 1, 2)) == []
    assert (count.judges, count.counted) == (False, 0)
    assert count.judge(Suspect("u", "d"), STORED) == []
