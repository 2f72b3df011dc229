"""Who is called over local sockets: found by the board's orders, chosen by load, dropped when they retire or die."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from serve_app.serving import nearby as nearby_module
from serve_app.serving.board import Board, Report
from serve_app.serving.local_servers import LoopServer, ThreadServer
from serve_app.serving.nearby import Nearby, Peer
from serve_app.serving.threads import Turns


def _run(main: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), 30))


def _double(n: int) -> int:
    return 2 * n


def _server() -> ThreadServer:
    server = ThreadServer({"run": _double}, Turns(2, "test", stuck_s=60), most=8)
    server.start()
    return server


async def _slow_server(method: Callable[..., Any]) -> LoopServer:
    server = LoopServer({"run": method})
    await server.start()
    return server


def _calling_ranking(*servers: ThreadServer | LoopServer) -> Nearby:
    nearby = Nearby()
    nearby.call("ranking")
    nearby.learn({"ranking": tuple(server.address for server in servers), "decision": ("another",)})
    return nearby


def _chosen(nearby: Nearby) -> Peer:
    one = nearby.choose("ranking")
    assert one is not None
    return one


def test_a_named_process_is_called_and_its_successor_after_it() -> None:
    async def main() -> None:
        first = _server()
        nearby = _calling_ranking(first)
        one = _chosen(nearby)
        assert await one.ask("run", 2) == 4
        second = _server()
        nearby.learn({"ranking": (first.address, second.address)})
        await asyncio.to_thread(first.retire)
        while not one.gone:
            await asyncio.sleep(0)
        for _ in range(3):
            assert _chosen(nearby) is not one
        assert await _chosen(nearby).ask("run", 3) == 6
        nearby.learn({"ranking": (first.address, second.address)})
        assert await asyncio.to_thread(_chosen(nearby).wait, 30, "run", 4) == 8
        await asyncio.to_thread(second.retire)

    _run(main)


def test_a_board_that_knows_nobody_yet_ends_no_connection() -> None:
    async def main() -> None:
        server = _server()
        nearby = _calling_ranking(server)
        peer = _chosen(nearby)
        nearby.learn({})
        assert nearby.choose("ranking") is peer
        assert await peer.ask("run", 1) == 2

    _run(main)


def test_calls_go_to_whoever_has_the_fewest() -> None:
    async def main() -> None:
        gate = asyncio.Event()
        servers = [await _slow_server(gate.wait) for _ in range(3)]
        nearby = _calling_ranking(*servers)
        asked = []
        for turn in range(9):
            peer = _chosen(nearby)
            call = peer.ask("run") if turn % 2 else asyncio.to_thread(peer.wait, 30, "run")
            asked.append(asyncio.ensure_future(call))
            while sum(one.under_way for one in nearby.peers("ranking")) <= turn:
                await asyncio.sleep(0)
        assert [one.under_way for one in nearby.peers("ranking")] == [3, 3, 3]
        gate.set()
        await asyncio.gather(*asked)
        for server in servers:
            server.close()

    _run(main)


def test_a_busy_neighbour_gives_way_only_where_others_are_elsewhere() -> None:
    async def main() -> None:
        gate = asyncio.Event()
        server = await _slow_server(gate.wait)
        nearby = _calling_ranking(server)
        peer = _chosen(nearby)
        asked = [asyncio.ensure_future(peer.ask("run")) for _ in range(2)]
        await asyncio.sleep(0)
        assert nearby.choose("ranking", 2) is peer
        nearby.learn({"ranking": (server.address, "hindcast-on-another-host")})
        assert nearby.choose("ranking", 2) is None
        assert nearby.choose("ranking", 3) is peer
        gate.set()
        await asyncio.gather(*asked)
        assert nearby.choose("ranking", 2) is peer
        server.close()

    _run(main)


def _report(name: str, near: str | None) -> Report:
    held = {"release": frozenset({"r"}), "policy": frozenset({"p"})}
    now = {"release": "r", "policy": "p"}
    return Report(name, "ranking", 1, False, held, now, held, {}, near)  # type: ignore[arg-type]


def test_the_board_names_who_listens_and_forgets_who_fell_silent() -> None:
    async def main() -> None:
        time_s = 0.0
        board = Board("r", "p", near={"ledger": ("owner",)}, clock=lambda: time_s)
        orders = board.orders
        assert orders.near == {"ledger": ("owner",)}
        orders = await board.poll(_report("one", None), orders.epoch, wait_s=0)
        assert orders.near == {"ledger": ("owner",)}
        first = await board.poll(_report("one", "a"), orders.epoch, wait_s=0)
        assert first.near == {"ledger": ("owner",), "ranking": ("a",)}
        assert first.epoch > orders.epoch
        again = await board.poll(_report("one", "a"), first.epoch, wait_s=0)
        assert again.epoch == first.epoch
        both = await board.poll(_report("two", "b"), first.epoch, wait_s=0)
        assert both.near["ranking"] == ("a", "b")
        time_s = 60.0
        left = await board.poll(_report("two", "b"), both.epoch, wait_s=0)
        assert left.near["ranking"] == ("b",)

    _run(main)


def test_lines_of_a_rush_are_hung_up_when_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(nearby_module, "monotonic_s", lambda: now)

    async def main() -> None:
        nonlocal now
        here = 0
        rushed = asyncio.Event()

        async def all_at_once(n: int) -> int:
            nonlocal here
            here += 1
            if here >= n:
                rushed.set()
            await rushed.wait()
            return n

        server = await _slow_server(all_at_once)
        nearby = _calling_ranking(server)
        one = _chosen(nearby)
        await asyncio.gather(*(one.ask("run", 20) for _ in range(20)))
        assert len(server.lines) == 20

        async def look(after_s: float) -> int:
            nonlocal now
            now += after_s
            nearby.learn({"ranking": (server.address,)})
            assert await one.ask("run", 1) == 1
            return len(server.lines)

        assert await look(1.0) == 20
        assert await look(5.0) == 20  # the rush was after the last look
        await one.ask("run", 1)
        while await look(5.0) > 1:  # the server hears of it a moment later
            await asyncio.sleep(0)
        assert _chosen(nearby) is one

        def called() -> int:
            return int(one.wait(10.0, "run", 1))

        assert await asyncio.gather(*(asyncio.to_thread(called) for _ in range(5))) == [1] * 5
        while await look(5.0) > 1:
            await asyncio.sleep(0)
        assert not one.gone
        server.close()

    _run(main)


def test_one_that_is_called_by_threads_alone_is_seen_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle line of the event loop tells, however long nobody needs it."""
    now = 100.0
    monkeypatch.setattr(nearby_module, "monotonic_s", lambda: now)

    async def main() -> None:
        nonlocal now
        server = _server()
        nearby = _calling_ranking(server)
        one = _chosen(nearby)
        for _ in range(4):
            assert await asyncio.to_thread(one.wait, 10.0, "run", 2) == 4
            now += 5.0
            nearby.learn({"ranking": (server.address,)})
        await asyncio.to_thread(server.retire)
        while not one.gone:
            await asyncio.sleep(0)

    _run(main)
