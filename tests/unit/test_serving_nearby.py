"""Who is called over local sockets: found by the board's orders, chosen by load, dropped when they retire or die."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from serve_app.serving.board import Board, Report
from serve_app.serving.local_rpc import Connection, RpcServer
from serve_app.serving.nearby import Nearby


def _run(main: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), 30))


async def _server(method: Callable[..., Any]) -> RpcServer:
    server = RpcServer({"run": method})
    await server.start()
    return server


def _calling_ranking() -> Nearby:
    nearby = Nearby()
    nearby.call("ranking")
    return nearby


async def _chosen(nearby: Nearby, role: str = "ranking") -> Connection:
    while (one := nearby.choose(role)) is None:
        await asyncio.sleep(0)
    return one


async def _all_connected(nearby: Nearby, count: int) -> None:
    while len({id(nearby.choose("ranking")) for _ in range(4 * count)} - {id(None)}) < count:
        await asyncio.sleep(0)


def test_a_named_process_is_called_and_its_successor_after_it() -> None:
    async def main() -> None:
        async def double(n: int) -> int:
            return 2 * n

        first, nearby = await _server(double), _calling_ranking()
        nearby.learn({"ranking": (first.address,), "decision": ("another",)})
        assert nearby.choose("ranking") is None  # it is being made
        assert await (await _chosen(nearby)).ask("run", 2) == 4
        second = await _server(double)
        nearby.learn({"ranking": (first.address, second.address)})
        await first.retire()
        one = await _chosen(nearby)
        while one.retired:
            one = await _chosen(nearby)
        assert await one.ask("run", 3) == 6
        second.close()

    _run(main)


def test_a_board_that_knows_nobody_yet_ends_no_connection() -> None:
    async def main() -> None:
        async def double(n: int) -> int:
            return 2 * n

        server, nearby = await _server(double), _calling_ranking()
        nearby.learn({"ranking": (server.address,)})
        line = await _chosen(nearby)
        nearby.learn({})
        assert nearby.choose("ranking") is line
        server.close()

    _run(main)


def test_calls_go_to_whoever_has_the_fewest() -> None:
    async def main() -> None:
        gate = asyncio.Event()
        servers = [await _server(gate.wait) for _ in range(3)]
        nearby = _calling_ranking()
        nearby.learn({"ranking": tuple(server.address for server in servers)})
        await _all_connected(nearby, 3)
        asked = []
        for _ in range(9):
            line = nearby.choose("ranking")
            assert line is not None
            asked.append(asyncio.ensure_future(line.ask("run")))
            await asyncio.sleep(0)
        while sum(server.under_way for server in servers) < 9:
            await asyncio.sleep(0)
        assert [server.under_way for server in servers] == [3, 3, 3]
        gate.set()
        await asyncio.gather(*asked)
        for server in servers:
            server.close()

    _run(main)


def test_a_busy_neighbour_gives_way_only_where_others_are_elsewhere() -> None:
    async def main() -> None:
        gate = asyncio.Event()
        server, nearby = await _server(gate.wait), _calling_ranking()
        nearby.learn({"ranking": (server.address,)})
        line = await _chosen(nearby)
        asked = [asyncio.ensure_future(line.ask("run")) for _ in range(2)]
        await asyncio.sleep(0)
        assert nearby.choose("ranking", 2) is line
        nearby.learn({"ranking": (server.address, "hindcast-on-another-host")})
        while nearby.choose("ranking", 2) is not None:
            await asyncio.sleep(0)
        assert nearby.choose("ranking", 3) is line
        gate.set()
        await asyncio.gather(*asked)
        assert nearby.choose("ranking", 2) is line
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
