"""Events as parsed: what is refused, what they change, and the rows they become."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from serve_app.ids import decision_id_text, hash_id
from serve_app.ingress.events import MAX_EVENTS, event_rows, parse_events, refund_of, state_change, views_of
from serve_app.ingress.problems import ProblemError
from serve_app.vocabulary import Channel, EventType

NOW = 1_795_000_000_000_000
BASE = {"specversion": "1.0", "id": "e", "source": "/t", "subject": "u", "time": "2026-11-22T03:00:00+09:00"}


def parse(*events: Any) -> Any:
    return parse_events(orjson.dumps(list(events)))


def event(kind: str, **data: Any) -> dict[str, Any]:
    return {**BASE, "type": kind, "data": data}


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({**event("view", item="i"), "specversion": "0.3"}, "specversion"),
        ({**event("view", item="i"), "id": ""}, "id"),
        ({**event("view", item="i"), "time": "2026-11-22T03:00:00"}, "time"),
        ({**event("viewed", item="i")}, "type"),
        (event("view"), "data.item"),
        (event("view", item="i", colour="red"), "data.colour"),
        (event("conversion", item="i", amount=float("inf")), "data.amount"),
        (event("conversion", item="i", currency="won"), "data.currency"),
        (event("consent", consent="advertising"), "data.given"),
        (event("zone", zone="Mars/Olympus"), "zone"),
        (event("delivery_failed"), "data.decision_id"),
        (event("click", decision_id="d12"), "data.decision_id"),
        (event("click", decision_id=decision_id_text(1, 2, 3)), "data.decision_id"),
        ("text", "event"),
        (None, "event"),
    ],
)
def test_a_wrong_event_is_refused_alone_and_named(wrong: Any, field: str) -> None:
    good = event("view", item="i")
    found = parse(good, wrong) if not _infinite(wrong) else parse_events(_raw(good, wrong))
    assert len(found.events) == 1
    assert [(error.index, error.field) for error in found.errors] == [(1, field)]


def test_what_is_wrong_is_said_in_words_of_ours() -> None:
    found = parse(event("click", decision_id="zz"))
    assert found.errors[0].detail == "'zz' is not a decision id; send the id as the decision's answer gave it"


def _infinite(wrong: Any) -> bool:
    return isinstance(wrong, dict) and wrong.get("data", {}).get("amount") == float("inf")


def _raw(good: Any, wrong: Any) -> bytes:
    return orjson.dumps([good, {**wrong, "data": {**wrong["data"], "amount": "1e999"}}])


def test_one_event_needs_no_array() -> None:
    assert len(parse_events(orjson.dumps(event("view", item="i"))).events) == 1


def test_too_many_events_and_broken_json_are_refused_whole() -> None:
    with pytest.raises(ProblemError, match="at most"):
        parse(*[event("view", item="i")] * (MAX_EVENTS + 1))
    with pytest.raises(ProblemError) as error:
        parse_events(b"[{]")
    assert error.value.problem.status == 400


def test_rows_hold_what_was_said_and_null_for_the_rest() -> None:
    decision = decision_id_text(hash_id("u"), 99, 2)
    found = parse(event("conversion", item="i", decision_id=decision, amount=3.5, currency="KRW", channel="push"))
    row = event_rows(found.events, NOW).to_pylist()[0]
    assert row["user"] == hash_id("u")
    assert row["event_id"] == hash_id("e")
    assert row["type"] == EventType.conversion
    assert (row["decision_request_id"], row["slot"]) == (99, 2)
    assert (row["item"], row["amount"], row["currency"]) == (hash_id("i"), 3.5, "KRW")
    assert row["ts"] == 1_795_284_000_000_000
    assert row["ingested_at"] == NOW
    assert row["campaign"] is None


def test_behaviour_on_items_makes_them_recent_and_nothing_else_does() -> None:
    found = parse(event("view", item="a"), event("seen", item="b"), event("conversion", item="c"), event("click"))
    users, items, at = views_of(found.events)
    assert items.tolist() == [hash_id("a"), hash_id("c")]
    assert set(users.tolist()) == {hash_id("u")}
    assert len(at) == 2


def test_what_changes_a_users_state() -> None:
    push = 1 << Channel.push
    out, back, consent, zone, view = parse(
        event("opt_out", channel="push"),
        event("opt_in"),
        event("consent", consent="night", given=False, proof="call"),
        event("zone", zone="Asia/Seoul"),
        event("view", item="i"),
    ).events
    assert state_change(out, NOW)[1].out == push  # type: ignore[index,union-attr]
    assert state_change(back, NOW)[1].back & push  # type: ignore[index,union-attr]
    withdrawn = state_change(consent, NOW)[0].consent_night  # type: ignore[index]
    assert (withdrawn.at, withdrawn.recorded_at, withdrawn.proof) == (0, NOW, "call")  # type: ignore[union-attr]
    assert state_change(zone, NOW)[0].zone == "Asia/Seoul"  # type: ignore[index]
    assert state_change(view, NOW) is None


def test_a_failed_delivery_names_the_grant_to_refund() -> None:
    decision = decision_id_text(hash_id("u"), 7, 1)
    found = parse(event("delivery_failed", decision_id=decision), event("view", item="i"))
    assert refund_of(found.events[0]) == (hash_id("u"), 7, 1)
    assert refund_of(found.events[1]) is None
