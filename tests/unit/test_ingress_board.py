"""The promotion board, its followers and the version stores, without a server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from serve_app.errors import DamagedArtifact, InvalidInput, NotReady
from serve_app.serving.board import Board, Orders, Report
from serve_app.serving.follower import Follower
from serve_app.serving.versions import VersionStore


def load(version: str) -> str:
    if "damaged" in version:
        raise DamagedArtifact("checksum differs", field=version)
    return f"content of {version}"


class Replica:
    """One follower with its stores, as a server's process has them."""

    def __init__(self, board: Board, name: str, *, admits: bool, loader: object = load) -> None:
        self.releases: VersionStore[str] = VersionStore("release", loader)  # type: ignore[arg-type]
        self.policies: VersionStore[str] = VersionStore("policy", load)
        self.pool = ThreadPoolExecutor(1)
        stores = {"release": self.releases, "policy": self.policies}
        self.follower = Follower(name, "test", stores, board.poll, self.pool, admits=admits)  # type: ignore[arg-type]


@pytest.fixture
async def world() -> AsyncIterator[tuple[Board, list[Replica]]]:
    board = Board("r1", "p1")
    replicas = [Replica(board, "ingress", admits=True), Replica(board, "stage", admits=False)]
    for replica in replicas:
        await replica.follower.start()
    yield board, replicas
    for replica in replicas:
        await replica.follower.stop()
        replica.pool.shutdown()


World = tuple[Board, list[Replica]]


async def settled(condition: object) -> None:
    for _ in range(500):
        if condition():  # type: ignore[operator]
            return
        await asyncio.sleep(0.01)
    raise AssertionError("never happened")


async def test_a_follower_stops_though_its_cancellation_is_swallowed() -> None:
    board = Board("r1", "p1")
    replica = Replica(board, "ingress", admits=True)
    polling = asyncio.Event()
    patient = replica.follower._poll

    async def poll(report: Report, epoch: int) -> Orders:
        if epoch == 0:
            return await patient(report, epoch)
        polling.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return await patient(report, 0)

    replica.follower._poll = poll
    await replica.follower.start()
    await polling.wait()
    await asyncio.wait_for(replica.follower.stop(), 5)
    replica.pool.shutdown()


async def test_prepare_loads_everywhere_and_flips_nothing(world: World) -> None:
    board, replicas = world
    await board.prepare("release", "r2", timeout_s=10)
    assert all(one.releases.loaded() == {"r1", "r2"} for one in replicas)
    assert all(one.releases.current == "r1" for one in replicas)


async def test_commit_flips_and_the_old_version_goes(world: World) -> None:
    board, replicas = world
    await board.prepare("release", "r2", timeout_s=10)
    await board.commit("release", "r2", timeout_s=10)
    assert replicas[0].releases.current == "r2"
    await settled(lambda: all(one.releases.loaded() == {"r2"} for one in replicas))


async def test_a_pinned_version_stays_until_its_last_pin_is_gone(world: World) -> None:
    board, replicas = world
    with replicas[0].releases.pinned() as (version, content):
        await board.prepare("release", "r2", timeout_s=10)
        await board.commit("release", "r2", timeout_s=10)
        await asyncio.sleep(0.1)
        assert (version, content) == ("r1", "content of r1")
        assert all("r1" in one.releases.loaded() for one in replicas)
    await settled(lambda: all(one.releases.loaded() == {"r2"} for one in replicas))


async def test_a_version_that_one_replica_cannot_load_is_refused_and_forgotten(world: World) -> None:
    board, replicas = world
    with pytest.raises(NotReady, match="checksum differs"):
        await board.prepare("release", "damaged", timeout_s=10)
    assert board.orders.current["release"] == "r1"
    await settled(lambda: all(one.releases.loaded() == {"r1"} for one in replicas))


async def test_what_was_not_prepared_cannot_be_committed(world: World) -> None:
    with pytest.raises(InvalidInput, match="not prepared"):
        await world[0].commit("policy", "p9", timeout_s=1)


async def test_a_replica_that_starts_later_holds_what_is_in_force(world: World) -> None:
    board, _ = world
    await board.prepare("policy", "p2", timeout_s=10)
    late = Replica(board, "late", admits=True)
    await late.follower.start()
    assert late.policies.loaded() == {"p1", "p2"}
    assert late.policies.current == "p1"
    await board.commit("policy", "p2", timeout_s=10)
    assert late.policies.current == "p2"
    await late.follower.stop()
    late.pool.shutdown()


async def test_going_back_to_the_version_before_works_while_it_is_still_pinned(world: World) -> None:
    board, replicas = world
    with replicas[0].releases.pinned():
        for version in ("r2", "r1"):
            await board.prepare("release", version, timeout_s=10)
            await board.commit("release", version, timeout_s=10)
    assert replicas[0].releases.current == "r1"
    await settled(lambda: all(one.releases.loaded() == {"r1"} for one in replicas))


async def test_a_replica_not_heard_of_is_not_waited_for() -> None:
    now = 0.0
    board = Board("r1", "p1", clock=lambda: now)
    living = Replica(board, "living", admits=True)
    dead = Replica(board, "dead", admits=True)
    await living.follower.start()
    await dead.follower.start()
    await dead.follower.stop()
    now = 100.0
    await board.prepare("release", "r2", timeout_s=10)
    assert [report.replica for report in board.replicas()] == ["living"]
    await living.follower.stop()
    for one in (living, dead):
        one.pool.shutdown()
