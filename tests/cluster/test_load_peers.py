"""The peers of the benchmark answer what a user would expect, and keep what they say they keep."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from loadtests.bench_peers import ROUTES, bodies_of, compute
from loadtests.peers.full_fastapi import Kept, app_of
from loadtests.peers.lean_fastapi import app_of as lean_app_of
from loadtests.peers.model import Lean
from serve_app.log.journal import read_journal
from serve_app.release.registry import current_release


@pytest.fixture(scope="module")
def release(demo_release: Path) -> Path:
    return current_release(demo_release)


def client(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1")


async def test_lean_and_full_give_the_same_lists_and_the_full_one_is_logged(release, tmp_path) -> None:
    lean, bodies = Lean(release), bodies_of(release)
    slim, full = client(lean_app_of(lean)), client(app_of(lean, Kept(tmp_path, lean)))
    for body in bodies["related"][:10]:
        items = (await slim.post(ROUTES["related"], json=body)).json()["items"]
        told = await full.post(ROUTES["related"], json=body)
        assert told.status_code == 200, told.text
        assert [one["id"] for one in told.json()["items"]] == items
        assert len(set(items)) == len(items) == body["slots"]
        assert body["item"] not in items
    rows = read_journal(tmp_path, {}, tables=["requests", "candidates"]).rows
    assert sum(len(batch) for batch in rows["requests"]) == 10
    widths = {len(one) for batch in rows["candidates"] for one in batch["features"].to_pylist()}
    assert len(widths) == 1
    assert widths.pop() > 10


async def test_the_full_peer_keeps_its_own_limit_and_refuses_what_is_misspelt(release, tmp_path) -> None:
    lean = Lean(release)
    full = client(app_of(lean, Kept(tmp_path, lean)))
    body = bodies_of(release)["decide"][0]
    actions = [(await full.post(ROUTES["decide"], json=body)).json()["action"] for _ in range(6)]
    assert actions.count("send") <= 3
    wrong = await full.post(ROUTES["related"], json={"item": "x", "slot": 5})
    assert wrong.status_code == 422
    assert wrong.headers["content-type"] == "application/problem+json"


def test_bare_compute_answers_every_route(release) -> None:
    found = list(compute(release, bodies_of(release), 0.2))
    assert {one["route"] for one in found} == set(ROUTES)
    assert all(one["good"] > 0 for one in found)
