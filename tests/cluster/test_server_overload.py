"""A server that is asked for many times what it can do: it narrows, it refuses properly, and its log still replays."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve_app.catalogue import read_catalogue
from serve_app.clock import monotonic_s
from serve_app.log.reader import bucket_groups, read_log
from serve_app.policies import store_policy
from serve_app.policy.compile import compile_policy
from serve_app.policy.document import parse_policy
from serve_app.settings import EXPENDABLE
from serve_app.vocabulary import Surface
from simulators.replay.items.job import lists_spec, run_lists
from simulators.replay.items.logged import read_lists
from simulators.replay.items.retrieving import RetrievedLists
from simulators.replay.rescoring import opened_release
from tests.cluster.server_support import TOKEN, data_copy, generous, in_process

WIDTH, LEAST, SLOTS = 60, 10, 8
_LIST = {"head_weights": {"p_click": 1.0}, "temperature": 0.1, "width": WIDTH, "min_width": LEAST}
POLICY = parse_policy({"name": "wide", "surfaces": {"related": _LIST, "gateway": _LIST}})
# Budgets that a loaded machine keeps, shares that make of them what is usual: late after 0.3 s, refused beyond 1 s.
OVERLOAD: dict[str, Any] = {
    "testing": {"capacity_per_s": 40.0},
    "batching": {"run_share": 0.01, "wait_share": 0.03},
    "quality": {"target_share": 0.01},
}
CALLERS, SECONDS = 96, 5.0


@dataclass
class Overloaded:
    """answers: of the spike. kept: candidates a rehearsal ranked right after it."""

    data: Path
    answers: list[httpx.Response]
    kept: int


async def _spike(url: str, items: Sequence[str]) -> list[httpx.Response]:
    """What callers got who asked again as soon as they were answered."""
    async with httpx.AsyncClient(base_url=url, timeout=60.0, limits=httpx.Limits(max_connections=CALLERS)) as client:
        ends = monotonic_s() + SECONDS

        async def caller(n: int) -> list[httpx.Response]:
            out: list[httpx.Response] = []
            while monotonic_s() < ends:
                related = {"item": items[(n + len(out)) % 80], "slots": SLOTS, "user": f"caller {n}"}
                page = {"user": f"caller {n}", "widgets": 3, "slots": SLOTS}
                path, body = ("related", related) if n % 4 else ("gateway", page)
                out.append(await client.post(f"/v1/recommendations/{path}", json=body))
            return out

        return [one for own in await asyncio.gather(*map(caller, range(CALLERS))) for one in own]


@pytest.fixture(scope="module")
def overloaded(demo_release: Path, tmp_path_factory: pytest.TempPathFactory) -> Overloaded:
    data = data_copy(demo_release, tmp_path_factory.mktemp("overload") / "data")
    (data / EXPENDABLE).touch()
    operator = {"Authorization": f"Bearer {TOKEN}"}
    items = read_catalogue(data / "catalogue").items["item_id"].to_pylist()
    with in_process(generous(data=data, topology="fused", **OVERLOAD)) as client:
        revision = store_policy(data, POLICY)
        for phase in ("prepare", "commit"):
            assert client.post(f"/v1/policies/{phase}", json={"version": revision}, headers=operator).status_code == 200
        calm = {"related": {"item": items[0]}, "gateway": {"user": "first", "widgets": 3}}
        for path, asked in calm.items():
            assert client.post(f"/v1/recommendations/{path}", json={**asked, "slots": SLOTS}).status_code == 200
        answers = asyncio.run(_spike(str(client.base_url), items))
        body = {"item": items[0], "slots": SLOTS, "dry_run": True, "explain": True}
        said = client.post("/v1/recommendations/related", json=body).json()
        kept = sum(one["drop_reason"] is None for one in said["explain"])
        client.post("/v1/log/upkeep", headers=operator)
    return Overloaded(data, answers, kept)


def widths(overloaded: Overloaded) -> dict[Surface, Counter[int]]:
    rows = read_log(overloaded.data, "requests", columns=["surface", "width"]).to_pydict()
    out: dict[Surface, Counter[int]] = {surface: Counter() for surface in Surface}
    for surface, width in zip(rows["surface"], rows["width"], strict=True):
        out[Surface(surface)][width] += 1
    return out


def test_every_answer_is_a_list_or_a_refusal_that_says_when_to_come_back(overloaded: Overloaded) -> None:
    by_status = Counter(one.status_code for one in overloaded.answers)
    assert set(by_status) == {200, 503}, by_status
    for one in overloaded.answers:
        if one.status_code == 503:
            assert one.headers["content-type"] == "application/problem+json"
            assert int(one.headers["retry-after"]) >= 1
            assert one.json()["type"] == "urn:hindcast:problem:overloaded"


def test_lists_were_narrowed_and_the_log_says_to_what(overloaded: Overloaded) -> None:
    for surface in (Surface.related, Surface.gateway):
        found = widths(overloaded)[surface]
        assert found[WIDTH], "the first were made at the policy's width"
        assert LEAST <= min(found) < WIDTH, found
        assert max(found) == WIDTH


def test_a_narrowed_list_is_as_long_as_was_asked_for(overloaded: Overloaded) -> None:
    related = [one.json()["items"] for one in overloaded.answers if one.status_code == 200 and "items" in one.json()]
    assert {len(items) for items in related} == {SLOTS}


def test_a_rehearsal_sees_the_whole_width(overloaded: Overloaded) -> None:
    assert overloaded.kept == WIDTH


def test_narrowed_lists_come_out_again(overloaded: Overloaded, tmp_path: Path) -> None:
    spec = lists_spec(overloaded.data, {}, ("related", "gateway"), attribution_us=1)
    for name, one in run_lists(spec, tmp_path, local=True).surfaces.items():
        assert one.parity.columns == {}, (name, one.parity.examples[:3])
        assert one.parity.same > 20


def test_retrieval_run_again_takes_the_width_from_the_log(overloaded: Overloaded) -> None:
    seen = 0
    for group in bucket_groups(overloaded.data, ("requests", "candidates", "events")):
        for lists in read_lists(group, [Surface.related], features=True, asked=True)[0]:
            release = opened_release(overloaded.data, lists.release, ("catalogue", "retrieval", "features", "models"))
            policy = compile_policy(POLICY, heads={"related": lists.head_names})
            scored = RetrievedLists(release, None).score(lists, [policy], lambda _, own=policy: {"again": own})
            again = scored.targets["again"].lists
            assert again.candidates["thing"].tobytes() == lists.candidates["thing"].tobytes()
            seen += len(lists)
    assert seen > 20
