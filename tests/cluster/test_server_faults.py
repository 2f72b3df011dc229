"""Every part of the server fails and hangs in turn: answers leave in time, are right, and say what fell back; sends fail
closed; when the part is back nothing is left of it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from serve_app.catalogue import read_catalogue
from serve_app.log.reader import read_log
from serve_app.running.instance import Instance
from serve_app.vocabulary import StageBit
from tests.chaos.fire_server import processes
from tests.cluster.fault_support import Answer, Shop, chain, fused, until
from tests.cluster.server_support import data_copy
from tests.command_line import hindcast

LIST_POINTS = {
    "retrieval": ["retrieval"], "search": ["retrieval"], "features": ["features"], "ranking": ["ranking"],
    "journal": ["log"],
}  # fmt: skip
SEND_POINTS = {
    "ledger_read": "ledger-unavailable", "availability": "ledger-unavailable",
    "ledger_commit": "outcome-unknown", "decision": "outcome-unknown",
}  # fmt: skip
MODES = ("error", "hang")
CHAIN = (pytest.mark.ray,)


@pytest.fixture(scope="module", params=["fused", pytest.param("chain", marks=CHAIN)])
def both(
    request: pytest.FixtureRequest, demo_release: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Shop, Instance | None]]:
    data = data_copy(demo_release, tmp_path_factory.mktemp("faults") / "data")
    with ExitStack() as open_until:
        if request.param == "fused":
            yield open_until.enter_context(fused(data)), None
        else:
            yield open_until.enter_context(chain(data, request.getfixturevalue("ray_cluster")))


@pytest.fixture
def shop(both: tuple[Shop, Instance | None]) -> Iterator[Shop]:
    """Nothing is planted before a test, and nothing is left behind after it."""
    shop, _ = both
    inside = shop.inside
    before = inside.tasks() if inside is not None else set()
    yield shop
    if inside is not None:
        until(lambda: not inside.left_behind(), inside.left_behind())
        until(lambda: len(inside.tasks()) <= len(before), f"tasks are left: {inside.tasks() - before}")


@pytest.fixture(scope="module")
def items(demo_release: Path) -> list[str]:
    found: list[str] = read_catalogue(demo_release / "catalogue").items["item_id"].to_pylist()
    return found


def in_time(answer: Answer, budget_ms: float) -> None:
    """A machine with other work may take twice as long; one that waits for what hangs takes for ever."""
    assert answer.seconds < 2 * budget_ms / 1000, answer


def whole_again(shop: Shop, item: str) -> None:
    """The part is back: the next lists are made by all stages, and so are the next sends."""
    until(lambda: shop.related(item).body.get("degraded") == [], "lists stay degraded")
    until(lambda: shop.decide(shop.new_user(), "news").body.get("action") == "send", "nothing is sent any more")


def ids(answer: Answer) -> list[str]:
    return [one["id"] for one in answer.body["items"]]


@pytest.mark.parametrize("do", MODES)
@pytest.mark.parametrize("point", LIST_POINTS)
def test_a_list_leaves_in_time_without_the_part_and_says_so(shop: Shop, items: list[str], point: str, do: str) -> None:
    anchor, counts = items[7], shop.inside.counts if shop.inside is not None else None
    with shop.planted(**{point: {"do": do}}):
        usual = ids(shop.related(anchor, slots=20))
        hidden, excluded = usual[0], usual[1:4]
        put = shop.client.put(f"/v1/items/{hidden}", json={"available": False})
        assert put.status_code == 200, put.text
        before = dict(counts.degraded) if counts is not None else {}
        answer = shop.related(anchor, slots=20, exclude=excluded, explain=True)
        assert shop.struck(point)
    shop.client.put(f"/v1/items/{hidden}", json={"available": True})
    assert answer.status == 200, answer.body
    in_time(answer, shop.settings.budgets.request_ms)
    assert answer.body["degraded"] == LIST_POINTS[point]
    assert len(ids(answer)) == len(set(ids(answer))) == 20
    assert not {hidden, anchor, *excluded} & set(ids(answer))
    if counts is not None:
        assert dict(counts.degraded - type(counts.degraded)(before)) == dict.fromkeys(LIST_POINTS[point], 1)
    right(point, answer)
    whole_again(shop, anchor)


def right(point: str, answer: Answer) -> None:
    """What the fall-back is made of."""
    kept = [one for one in answer.body["explain"] if one["drop_reason"] is None]
    shown = sorted((one for one in kept if one["slot"] is not None), key=lambda one: one["slot"])
    assert [one["id"] for one in shown] == ids(answer)
    sources = {name for one in kept for name in one["sources"]}
    values = [value for one in kept for value in (one["features"] or {}).values()]
    match point:
        case "retrieval" | "search":
            assert sources <= {"popular", "fresh"}, sources
        case "features":
            assert values, "declared defaults were ranked"
            assert {value["status"] for value in values} <= {"defaulted", "missing"}
        case "ranking":
            scores = [one["retrieval_score"] for one in shown]
            assert scores == sorted(scores, reverse=True)
            assert {one["propensity"] for one in shown} == {1.0}
        case "journal":
            assert len(sources) > 2
            assert {value["status"] for value in values} > {"defaulted"}


@pytest.mark.parametrize("point", ["retrieval", "features", "ranking"])
def test_a_page_of_which_every_list_is_late_still_leaves_in_time(shop: Shop, items: list[str], point: str) -> None:
    """Two rankings follow each other for a page: each has what is left of one budget."""
    with shop.planted(**{point: {"do": "hang"}}):
        answer = shop.ask("/v1/recommendations/gateway", {"user": "somebody", "widgets": 3, "slots": 4})
        assert shop.struck(point)
    assert answer.status == 200, answer.body
    in_time(answer, shop.settings.budgets.request_ms)
    assert answer.body["degraded"] == [point]
    shown = [one["id"] for widget in answer.body["widgets"] for one in widget["items"]]
    assert len(shown) == len(set(shown)) > 4
    whole_again(shop, items[7])


@pytest.mark.parametrize("surface", ["widgets", "gateway"])
@pytest.mark.parametrize("point", ["retrieval", "features", "ranking"])
def test_a_page_goes_on_where_a_part_of_it_fails(shop: Shop, items: list[str], point: str, surface: str) -> None:
    """Its order of widgets and its lists are ranked one after the other; what failed for one does not spoil the other."""
    with shop.planted(**{point: {"do": "error", "surface": surface}}):
        answer = shop.ask("/v1/recommendations/gateway", {"user": "somebody", "widgets": 3, "slots": 4, "explain": True})
        whole = point == "retrieval" and surface == "widgets"  # they are given
        assert shop.struck(point) is not whole
    assert answer.status == 200, answer.body
    assert answer.body["degraded"] == ([] if whole else [point])
    assert answer.body["widgets"]
    found = {"widgets": answer.body["explain"], "gateway": [one for own in answer.body["widgets"] for one in own["explain"]]}
    ranked = {name for name, own in found.items() if all(one["features"] for one in own if one["slot"] is not None)}
    assert ranked == {"widgets", "gateway"} - ({surface} if point == "ranking" else set())
    shown = [one["id"] for widget in answer.body["widgets"] for one in widget["items"]]
    assert len(shown) == len(set(shown)) > 4
    whole_again(shop, items[7])


@pytest.mark.parametrize("do", MODES)
def test_nothing_is_served_that_cannot_be_verified(shop: Shop, items: list[str], do: str) -> None:
    with shop.planted(availability={"do": do}):
        bodies: dict[str, Any] = {
            "recommendations/related": {"item": items[7]}, "recommendations/gateway": {}, "widgets/rank": {},
        }  # fmt: skip
        for path, body in bodies.items():
            answer = shop.ask(f"/v1/{path}", body)
            refused(answer, {"not-ready", "ledger-unavailable"})
            in_time(answer, shop.settings.budgets.request_ms)
    whole_again(shop, items[7])


def refused(answer: Answer, kinds: set[str]) -> None:
    assert answer.status == 503, answer.body
    assert answer.kind in kinds
    assert answer.headers["retry-after"]
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("do", MODES)
@pytest.mark.parametrize("point", SEND_POINTS)
def test_a_send_fails_closed_and_its_key_is_good_for_one_grant(shop: Shop, point: str, do: str) -> None:
    user = shop.new_user()
    with shop.planted(**{point: {"do": do}}):
        answer = shop.decide(user, "news", idempotency_key="k")
        assert shop.struck(point)
    refused(answer, {SEND_POINTS[point]})
    in_time(answer, shop.settings.budgets.decide_ms)
    one_grant(shop, user)


def one_grant(shop: Shop, user: str, decision_id: str | None = None) -> None:
    """A retry of the key `k` gets the grant, again and again the same, and there is no other."""
    first = until(lambda: sent(shop.decide(user, "news", idempotency_key="k")), "the key was never answered")
    again = shop.decide(user, "news", idempotency_key="k")
    assert (again.status, again.body["replayed"]) == (200, True)
    assert again.body["decision_id"] == first.body["decision_id"] == (decision_id or first.body["decision_id"])
    other = shop.decide(user, "news")
    assert (other.status, other.body["action"], other.body["reason"]) == (200, "suppress", "frequency_capped")


def sent(answer: Answer) -> Answer | None:
    """An answer that grants; None for one that asks to come again."""
    if answer.status == 503:
        assert answer.headers["retry-after"]
        return None
    assert answer.status == 200, answer.body
    assert (answer.body["action"], len(answer.body["sends"])) == ("send", 1), answer.body
    return answer


@pytest.mark.parametrize("do", MODES)
def test_a_grant_needs_no_journal_and_silence_without_one_is_refused(shop: Shop, do: str) -> None:
    """The ledger holds the whole record of a send; that nothing was sent stands in the journal alone."""
    user, nobody = shop.new_user(), "never heard of"
    with shop.planted(journal={"do": do}):
        granted = shop.decide(user, "news", idempotency_key="k")
        silent = shop.decide(nobody, "news")
        events = shop.ask("/v1/events", [event(user)])
        assert shop.struck("journal")
    assert sent(granted)
    assert granted.body["degraded"] == []
    refused(silent, {"not-ready"})
    refused(events, {"log-unavailable"})
    for answer in (granted, silent, events):
        in_time(answer, shop.settings.budgets.decide_ms)
    one_grant(shop, user, granted.body["decision_id"])
    until(lambda: shop.ask("/v1/events", [event(user)]).body.get("accepted"), "events are not taken any more")


def event(user: str) -> dict[str, Any]:
    return {
        "specversion": "1.0", "id": f"seen {user}", "source": "/test", "type": "view", "subject": user,
        "time": "2026-11-22T00:00:00Z", "data": {"item": "i00001"},
    }  # fmt: skip


@pytest.mark.parametrize("do", MODES)
@pytest.mark.parametrize(("point", "degraded"), [("ranking", "ranking"), ("features", "features")])
def test_a_send_that_needs_scores_is_not_made_without_them(shop: Shop, point: str, degraded: str, do: str) -> None:
    user, other = shop.new_user(), shop.new_user()
    with shop.planted(**{point: {"do": do, "surface": "notification"}}):
        scored, unscored = shop.decide(user, "sale"), shop.decide(other, "news")
        assert shop.struck(point)
    for answer in (scored, unscored):
        assert answer.status == 200, answer.body
        assert answer.body["degraded"] == [degraded]
        in_time(answer, shop.settings.budgets.decide_ms)
    if point == "ranking":
        assert (scored.body["action"], scored.body["reason"]) == ("suppress", "not_scored")
    assert unscored.body["action"] == "send", "its class does without scores"
    usual = until(lambda: undegraded(shop.decide(shop.new_user(), "sale")), "decisions stay degraded")
    assert usual.body["action"] == "send"


def undegraded(answer: Answer) -> Answer | None:
    return answer if answer.status == 200 and answer.body["degraded"] == [] else None


def test_stages_that_hang_do_not_hold_up_what_answers_instead_of_them(shop: Shop, items: list[str]) -> None:
    """More callers than a replica has threads."""

    def ask(n: int) -> Answer:
        return shop.related(items[n], explain=n % 2 == 0, slots=5 + n % 3)

    with shop.planted(retrieval={"do": "hang"}), ThreadPoolExecutor(12) as callers:
        answers = list(callers.map(ask, range(12)))
        told = shop.ask("/v1/events", [event(f"beside what hangs {shop.url}")])
        in_time(told, shop.settings.budgets.request_ms)
        assert told.body["accepted"] == 1
    for answer in answers:
        in_time(answer, shop.settings.budgets.request_ms)
        if answer.status == 200:
            assert "retrieval" in answer.body["degraded"]
            assert len(ids(answer)) >= 5
        else:
            refused(answer, {"overloaded"})
    assert sum(answer.status == 200 for answer in answers) > 2  # more than were under way at once
    whole_again(shop, items[7])


DEPLOYED = pytest.mark.parametrize("both", [pytest.param("chain", marks=CHAIN)], indirect=True)
"""Only behind Ray's proxy does a server hear that a caller left, and has somebody to replace its replicas."""


class Caller:
    """One who may leave in the middle of a call."""

    def __init__(self, shop: Shop, path: str, body: dict[str, Any]) -> None:
        content = orjson.dumps(body)
        host = shop.url.removeprefix("http://")
        lines = [f"POST {path} HTTP/1.1", f"host: {host}", "content-type: application/json"]
        head = "\r\n".join([*lines, f"content-length: {len(content)}", "", ""])
        name, port = host.split(":")
        self._socket = socket.create_connection((name, int(port)), timeout=60)
        self._socket.sendall(head.encode() + content)

    def leave(self) -> None:
        self._socket.close()


@DEPLOYED
def test_who_leaves_while_a_send_is_committed_finds_it_under_its_key(shop: Shop) -> None:
    user = shop.new_user()
    body = {"user": user, "candidates": [{"campaign": "news"}], "idempotency_key": "k"}
    with shop.planted(ledger_commit={"do": "hang"}):
        caller = Caller(shop, "/v1/notifications/decide", body)
        until(lambda: shop.struck("ledger_commit"), "the commit was not reached")
        caller.leave()
    one_grant(shop, user)


@DEPLOYED
def test_who_leaves_before_a_decision_is_begun_is_granted_nothing(shop: Shop) -> None:
    """Both lanes are taken by decisions that hang; a third waits, and its caller does not."""
    user, busy = shop.new_user(), [shop.new_user(), shop.new_user()]
    with shop.planted(decision={"do": "hang"}):
        for place, one in enumerate(busy):
            Caller(shop, "/v1/notifications/decide", {"user": one, "candidates": [{"campaign": "news"}]})
            until(lambda: shop.struck("decision", times=place + 1), "a lane stays free")  # noqa: B023
        caller = Caller(shop, "/v1/notifications/decide", {"user": user, "candidates": [{"campaign": "news"}]})
        for _ in range(10):  # each behind the caller's bytes on its way in
            assert shop.client.get("/healthz").status_code == 200
        caller.leave()
        for _ in range(10):
            assert shop.client.get("/healthz").status_code == 200
    until(lambda: shop.decide(shop.new_user(), "news").body.get("action") == "send", "lanes are not free again")
    answer = until(lambda: sent(shop.decide(user, "news")), "the user stays undecided")
    assert answer.body["replayed"] is False


@DEPLOYED
def test_who_leaves_in_the_middle_of_a_list_leaves_nothing_behind(shop: Shop, items: list[str]) -> None:
    with shop.planted(ranking={"do": "hang"}):
        callers = [Caller(shop, "/v1/recommendations/related", {"item": items[n], "slots": 10}) for n in range(6)]
        until(lambda: shop.struck("ranking"), "ranking was not reached")
        for caller in callers:
            caller.leave()
    whole_again(shop, items[7])


@DEPLOYED
def test_replicas_with_a_thread_that_never_returns_are_replaced_and_nobody_waits_for_them(
    both: tuple[Shop, Instance], shop: Shop, items: list[str]
) -> None:
    _, instance = both
    features, ledger = pids(instance, "features"), owners()
    with shop.planted(features={"do": "stick", "surface": "related"}, ledger_read={"do": "stick"}):
        listed, asked = shop.related(items[7]), shop.decide(shop.new_user(), "news")
        assert shop.struck("features")
        assert shop.struck("ledger_read")
    assert (listed.status, listed.body["degraded"]) == (200, ["features"])
    refused(asked, {"ledger-unavailable"})
    until(lambda: owners() - ledger and not owners() & ledger, "the ledger's owner stays", 120)
    until(lambda: pids(instance, "features") - features and not pids(instance, "features") & features, "it stays", 120)
    whole_again(shop, items[7])


def owners() -> set[int]:
    """Process ids of the ledger's owner."""
    return {one.pid for one in processes("Ledger")}


def pids(instance: Instance, role: str) -> set[int]:
    """Of the replicas that report to the board; none while the board itself is replaced."""
    try:
        replicas = instance.get("/v1/replicas")["replicas"]
    except httpx.HTTPError:
        return set()
    return {one["pid"] for one in replicas if one["role"] == role}


def test_log_metrics_and_audit_agree_with_what_answers_said(shop: Shop, items: list[str]) -> None:
    """The last of this file: on everything before it, and on one of each kind."""
    for point in LIST_POINTS:
        with shop.planted(**{point: {"do": "error"}}):
            assert shop.related(items[7]).body["degraded"] == LIST_POINTS[point]
    shop.compact()
    rows = read_log(shop.data, "requests").to_pandas()
    logged = {f"{int(one):016x}": int(bits) for one, bits in zip(rows.request_id, rows.degraded, strict=True)}
    met: set[str] = set()
    for request_id, answer in shop.told.items():
        degraded = answer["degraded"]
        if request_id in logged:
            said = sum(StageBit[name] for name in degraded if name != "log")
            assert logged[request_id] & ~StageBit.log == said, answer
            met.update(degraded)
        elif "log" not in degraded:  # a grant of just now that the journal missed: it is copied from the ledger later
            assert answer["action"] == "send", answer
            kept = shop.client.get(f"/v1/decisions/{answer['decision_id']}")
            assert (kept.status_code, kept.json()["action"]) == (200, "send"), answer
    assert met >= {"retrieval", "features", "ranking"}, met
    if shop.inside is None:
        until(lambda: all_counted(shop), "fall-backs do not reach the metrics")
        until(lambda: not still_busy(shop), "a batch is under way for ever")
    done = hindcast("audit", "--data", shop.data) if shop.inside is not None else None
    assert done is None or done.exit_code == 0, done.text


def still_busy(shop: Shop) -> list[str]:
    """Gauges of batches, told every second or two, that do not stand at none."""
    gauges = ("ray_hindcast_batcher_in_flight", "ray_hindcast_batcher_queued")
    lines = [line for line in shop.client.get("/metrics").text.splitlines() if line.startswith(gauges)]
    return [line for line in lines if float(line.rsplit(" ", 1)[1])]


def all_counted(shop: Shop) -> bool:
    text = shop.client.get("/metrics").text
    stages = ("retrieval", "features", "ranking", "log")
    counted = [line for line in text.splitlines() if line.startswith("ray_hindcast_degraded")]
    return all(any(f'stage="{stage}"' in line for line in counted) for stage in stages)
