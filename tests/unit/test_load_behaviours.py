"""Shoppers and senders: what they ask, given what they were answered."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from itertools import count

import orjson
import pytest

from loadtests.scenarios.audience import Audience, Campaign, SendRules
from loadtests.scenarios.cap_count import CapCount
from loadtests.scenarios.sender import errand
from loadtests.scenarios.shopper import visit
from loadtests.scenarios.step import Answer, Behaviour, Step

ITEMS = tuple(f"i{n}" for n in range(40))
AUDIENCE = Audience(
    users=tuple(f"u{n}" for n in range(20)), items=ITEMS, categories=("c1", "c2", "c3"), widgets=("w1", "w2", "w3"),
    reviewed=ITEMS[:5],
    campaigns=tuple(Campaign(id=f"k{n}", message_class="advertising", category="", channels=("push",)) for n in range(8)),
)  # fmt: skip
_IDS = count()


def served(step: Step) -> Answer:
    """A server that does everything right."""
    body = orjson.loads(step.body) if step.body else None
    if step.expect:
        field = {404: "item", 422: "slot"}[step.expect] if "related" in step.path else "rows.0.candidates.0.campaign"
        return Answer(step.expect, {"field": field, "status": step.expect, "type": "t"})
    if "related" in step.path:
        shown = [i for i in ITEMS if i not in (*body["exclude"], body["item"])][: body["slots"]]
        explain = [{"id": i, "slot": s, "drop_reason": None, "propensity": 0.5} for s, i in enumerate(shown)]
        return Answer(200, {"items": places(shown), "explain": explain})
    if "gateway" in step.path:
        left = iter(i for i in ITEMS if i not in body["exclude"])
        widgets = [
            {"id": f"w{n}", "slot": n, "items": places([next(left) for _ in range(body["slots"])])}
            for n in range(body["widgets"])
        ]
        return Answer(200, {"widgets": widgets})
    if "rank" in step.path:
        name = "widgets" if "widgets" in step.path else "reviews"
        return Answer(200, {name: places((body.get("widgets") or ["w1"])[: body["slots"]])})
    return decided(step, body)


def decided(step: Step, body: object) -> Answer:
    if "events" in step.path:
        assert isinstance(body, list)
        again = all(event["id"] in SEEN for event in body)
        SEEN.update(event["id"] for event in body)
        told = {"accepted": 0 if again else len(body), "duplicates": len(body) if again else 0}
        return Answer(200, {**told, "refused": 0, "errors": []})
    if step.method == "GET":
        return Answer(200, {**STORED[step.path.rsplit("/", 1)[1]], "cell": None, "zone": "UTC"})
    assert isinstance(body, dict)
    rows = [one_decision(row) for row in body.get("rows", [body])]
    whole = {"decided_at": "2026-11-22T03:00:00Z", "errors": [], "decisions": rows}
    return Answer(200, whole if "rows" in body else {**rows[0], "decided_at": whole["decided_at"]})


def one_decision(row: dict) -> dict:
    key = row["idempotency_key"]
    if key in KEYS:
        return {**KEYS[key], "replayed": True}
    name = f"d{next(_IDS)}"
    sends = [{"slot": 0, "campaign": "k0", "channel": "push", "propensity": 1.0, "decision_id": name, "status": "granted"}]
    sends = sends if any(one["campaign"] == "k0" for one in row.get("candidates", [{"campaign": "k0"}])) else []
    action = "send" if sends else "suppress"
    got = {
        "user": row["user"], "request_id": name, "decision_id": name, "action": action, "reason": "r", "until": None,
        "sends": sends, "replayed": False, "propensity_none": 0.0 if sends else None,
        "explain": [{"propensity": 1.0}] if sends else [],
    }  # fmt: skip
    KEYS[key] = STORED[name] = got
    return got


def places(ids: list[str]) -> list[dict]:
    return [{"id": one, "slot": slot, "decision_id": f"d{next(_IDS)}"} for slot, one in enumerate(ids)]


SEEN: set[str] = set()
KEYS: dict[str, dict] = {}
STORED: dict[str, dict] = {}


def walk(behaviour: Behaviour, serve=served) -> tuple[Counter[str], list[str]]:
    """Routes asked, and faults found."""
    asked, faults = Counter[str](), []
    step = next(behaviour)
    while True:
        asked[step.route] += 1
        got = serve(step)
        if step.check is not None and got.status == (step.expect or 200):
            faults += step.check(got)
        try:
            step = behaviour.send(got)
        except StopIteration:
            return asked, faults


def many(make, count: int = 300) -> tuple[Counter[str], list[str]]:
    asked, faults = Counter[str](), []
    for seed in range(count):
        own, found = walk(make(random.Random(seed)))
        asked += own
        faults += found
    return asked, faults


def test_shoppers_use_every_call_and_find_no_fault_in_a_right_server() -> None:
    asked, faults = many(lambda rng: visit(AUDIENCE, rng, "run"))
    assert faults == []
    wanted = {"recommendations/gateway", "recommendations/related", "widgets/rank", "reviews/rank", "events"}
    assert {route.removeprefix("POST /v1/") for route in asked} == wanted
    assert asked["POST /v1/recommendations/gateway"] == 300  # a visit begins with one page


def test_senders_use_every_call_and_find_no_fault_in_a_right_server() -> None:
    caps = CapCount(SendRules(policy="p", caps=()), AUDIENCE.campaigns)
    asked, faults = many(lambda rng: errand(AUDIENCE, caps, rng, "run", batch_share=0.2, batch_rows=5))
    assert faults == []
    assert set(asked) == {
        "POST /v1/notifications/decide", "POST /v1/notifications/decide-batch", "GET /v1/decisions/{id}", "POST /v1/events",
    }  # fmt: skip
    assert caps.counted > 100


@pytest.mark.parametrize("status", [0, 404, 503])
def test_behaviours_end_calmly_where_nothing_is_answered(status) -> None:
    problem = Answer(status, {"type": "urn:hindcast:problem:outcome-unknown", "status": status} if status else None)
    for seed in range(30):
        walk(visit(AUDIENCE, random.Random(seed), "run"), lambda _: problem)
        caps = CapCount(None, ())
        walk(errand(AUDIENCE, caps, random.Random(seed), "run", batch_share=0.5, batch_rows=3), lambda _: problem)


def test_an_unknown_outcome_is_asked_again_under_the_same_key() -> None:
    problem = Answer(503, {"type": "urn:hindcast:problem:outcome-unknown", "status": 503})
    behaviour = errand(AUDIENCE, CapCount(None, ()), random.Random(3), "run", batch_share=0, batch_rows=1)
    first = next(behaviour)
    second = behaviour.send(problem)
    assert first.expect is None
    assert second.body == first.body


def test_a_seed_gives_the_same_visit() -> None:
    bodies = []
    for _ in range(2):
        behaviour = visit(AUDIENCE, random.Random(5), "run")
        bodies.append(next(behaviour).body)
    assert bodies[0] == bodies[1]


def test_scenarios_know_nothing_of_the_server() -> None:
    """They speak HTTP: what they hold answers to must not come from the code that made them."""
    code = (
        "import sys, loadtests.scenarios.driver, loadtests.scenarios.report, loadtests.scenarios.slo\n"
        "own = {name.split('.')[0] for name in sys.modules}\n"
        "assert not own & {'serve_app', 'simulators', 'hindcast', 'ray'}, own\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
