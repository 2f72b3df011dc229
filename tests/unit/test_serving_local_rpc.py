"""Calls over a local socket: values, errors, many at once, called off, and the other side's end."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
import uvloop

from serve_app.errors import LedgerUnavailable
from serve_app.serving.local_rpc import Busy, Connection, HungUp, RpcServer, connect

Run = Callable[[Callable[[], Awaitable[None]]], None]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a coroutine function on either event loop."""
    factory = asyncio.new_event_loop if request.param == "asyncio" else uvloop.new_event_loop

    def on_loop(main: Callable[[], Awaitable[None]]) -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(asyncio.wait_for(main(), 30))

    return on_loop


async def _double(values: Any, *, by: int = 2) -> Any:
    return values * by


async def _fail() -> None:
    raise LedgerUnavailable("nobody can reach it", field="ledger", hint="retry")


async def _unpicklable() -> Any:
    return lambda: None


async def _served(**more: Callable[..., Any]) -> RpcServer:
    server = RpcServer({"double": _double, "fail": _fail, "unpicklable": _unpicklable, **more})
    await server.start()
    return server


def test_a_call_gives_what_the_method_gave_however_large(run: Run) -> None:
    async def main() -> None:
        server = await _served()
        line = await connect(server.address)
        assert await line.ask("double", 4, by=3) == 12
        large = np.arange(3_000_000, dtype=np.float64)
        assert np.array_equal(await line.ask("double", large), large * 2)
        line.close()
        server.close()

    run(main)


def test_errors_are_raised_where_the_call_was_made(run: Run) -> None:
    async def main() -> None:
        server = await _served()
        line = await connect(server.address)
        with pytest.raises(LedgerUnavailable, match="ledger: nobody can reach it") as caught:
            await line.ask("fail")
        assert caught.value.hint == "retry"
        with pytest.raises(KeyError, match="absent"):
            await line.ask("absent")
        with pytest.raises(RuntimeError, match="cannot be sent"):
            await line.ask("unpicklable")
        assert await line.ask("double", 1) == 2
        line.close()
        server.close()

    run(main)


def test_many_calls_share_a_connection_and_none_waits_for_another(run: Run) -> None:
    async def main() -> None:
        gate = asyncio.Event()

        async def slow() -> str:
            await gate.wait()
            return "slow"

        server = await _served(slow=slow)
        line = await connect(server.address)
        first = asyncio.ensure_future(line.ask("slow"))
        assert await asyncio.gather(*(line.ask("double", n) for n in range(500))) == [2 * n for n in range(500)]
        assert not first.done()
        gate.set()
        assert await first == "slow"
        line.close()
        server.close()

    run(main)


def test_a_caller_that_goes_away_calls_the_work_off(run: Run) -> None:
    async def main() -> None:
        ended = asyncio.Event()

        async def endless() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        server = await _served(endless=endless)
        line = await connect(server.address)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(line.ask("endless"), 0.05)
        await ended.wait()
        assert await line.ask("double", 1) == 2
        line.close()
        server.close()

    run(main)


def test_work_cut_short_over_there_is_an_error_and_not_silence(run: Run) -> None:
    async def main() -> None:
        async def cut() -> None:
            raise asyncio.CancelledError

        server = await _served(cut=cut)
        line = await connect(server.address)
        with pytest.raises(RuntimeError, match="cut was cut short"):
            await line.ask("cut")
        line.close()
        server.close()

    run(main)


def test_whoever_waits_hears_that_the_other_side_hung_up(run: Run) -> None:
    async def main() -> None:
        async def never() -> None:
            await asyncio.Event().wait()

        server = await _served(never=never)
        line = await connect(server.address)
        waiting = asyncio.ensure_future(line.ask("never"))
        assert await line.ask("double", 1) == 2
        server.close()
        with pytest.raises(HungUp, match="has ended"):
            await waiting
        assert line.lost
        with pytest.raises(HungUp):
            await line.ask("double", 1)

    run(main)


class _OfTwo(Exception):
    """Pickles, and cannot be read back: its constructor wants more than its arguments say."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first + second)


def test_an_error_that_cannot_be_read_back_harms_nobody_else(run: Run) -> None:
    async def main() -> None:
        async def odd() -> None:
            raise _OfTwo("a", "b")

        server = await _served(odd=odd)
        line = await connect(server.address)
        with pytest.raises(RuntimeError, match="cannot be sent"):
            await line.ask("odd")
        assert await line.ask("double", 1) == 2
        line.close()
        server.close()

    run(main)


def test_nobody_else_on_the_machine_is_served(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        server = await _served()
        monkeypatch.setattr(os, "getuid", lambda: 4_242_424)
        with pytest.raises(ConnectionRefusedError, match="another user"):
            await connect(server.address)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stranger:
            stranger.setblocking(False)
            stranger.connect(f"\0{server.address}")
            assert await asyncio.get_running_loop().sock_recv(stranger, 1) == b""
        server.close()

    run(main)


def test_a_call_beyond_the_limit_is_sent_away_and_was_not_begun(run: Run) -> None:
    async def main() -> None:
        gate, begun = asyncio.Event(), []

        async def slow(number: int) -> int:
            begun.append(number)
            await gate.wait()
            return number

        server = RpcServer({"slow": slow}, most=2)
        await server.start()
        first, second = await connect(server.address), await connect(server.address)
        under_way = [asyncio.ensure_future(first.ask("slow", 1)), asyncio.ensure_future(second.ask("slow", 2))]
        while server.under_way < 2:
            await asyncio.sleep(0)
        with pytest.raises(Busy):
            await first.ask("slow", 3)
        gate.set()
        assert await asyncio.gather(*under_way) == [1, 2]
        assert await first.ask("slow", 4) == 4
        assert begun == [1, 2, 4]
        server.close()

    run(main)


def test_a_server_that_retires_answers_what_was_asked_and_loses_nothing(run: Run) -> None:
    async def main() -> None:
        async def turn(number: int) -> int:
            await asyncio.sleep(0)
            return number

        server = await _served(turn=turn)
        lines = [await connect(server.address) for _ in range(3)]
        asked: list[asyncio.Future[int]] = []

        async def keep_asking(line: Connection) -> None:
            while not line.retired:
                asked.append(asyncio.ensure_future(line.ask("turn", len(asked))))
                await asyncio.sleep(0)

        callers = [asyncio.ensure_future(keep_asking(line)) for line in lines]
        while len(asked) < 50:
            await asyncio.sleep(0)
        await server.retire()
        await asyncio.gather(*callers)
        assert await asyncio.gather(*asked) == list(range(len(asked)))
        assert server.under_way == 0
        with pytest.raises(OSError, match="refused"):
            await connect(server.address)

    run(main)


def test_a_server_retires_though_a_caller_dies_meanwhile(run: Run) -> None:
    async def main() -> None:
        gate = asyncio.Event()
        server = await _served(slow=gate.wait)
        line = await connect(server.address)
        asked = asyncio.ensure_future(line.ask("slow"))
        while not server.under_way:
            await asyncio.sleep(0)
        retiring = asyncio.ensure_future(server.retire())
        line.close()
        with pytest.raises(HungUp):
            await asked
        assert not retiring.done()
        gate.set()
        await retiring

    run(main)
