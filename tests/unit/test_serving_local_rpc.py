"""Calls over a local socket: values, errors, many at once, called off, sent away, and the other side's end."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
import uvloop

from serve_app.errors import LedgerUnavailable
from serve_app.serving.local_rpc import HungUp, Line, NotTaken
from serve_app.serving.local_servers import LoopServer, ThreadServer
from serve_app.serving.nearby import Peer
from serve_app.serving.threads import Turns

Run = Callable[[Callable[[], Awaitable[None]]], None]
_LONG_S = 30.0


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a coroutine function on either event loop."""
    factory = asyncio.new_event_loop if request.param == "asyncio" else uvloop.new_event_loop

    def on_loop(main: Callable[[], Awaitable[None]]) -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(asyncio.wait_for(main(), _LONG_S))

    return on_loop


class _OfTwo(Exception):
    """Pickles, and cannot be read back: its constructor wants more than its arguments say."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first + second)


def _double(values: Any, *, by: int = 2) -> Any:
    return values * by


def _fail() -> None:
    raise LedgerUnavailable("nobody can reach it", field="ledger", hint="retry")


def _odd() -> None:
    raise _OfTwo("a", "b")


def _unpicklable() -> Any:
    return lambda: None


_METHODS: dict[str, Callable[..., Any]] = {"double": _double, "fail": _fail, "odd": _odd, "unpicklable": _unpicklable}


def _coroutine(function: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    async def called(*arguments: Any, **keywords: Any) -> Any:
        return function(*arguments, **keywords)

    return called


def _threads(most: int = 64, at_once: int = 4, **more: Callable[..., Any]) -> ThreadServer:
    server = ThreadServer({**_METHODS, **more}, Turns(at_once, "test", stuck_s=60), most=most)
    server.start()
    return server


async def _loop(**more: Callable[..., Any]) -> LoopServer:
    server = LoopServer({**{name: _coroutine(one) for name, one in _METHODS.items()}, **more})
    await server.start()
    return server


@pytest.fixture(params=["threads", "loop"])
def served(request: pytest.FixtureRequest) -> Callable[[], Awaitable[ThreadServer | LoopServer]]:
    """Starts a server of either kind."""

    async def start() -> ThreadServer | LoopServer:
        return _threads() if request.param == "threads" else await _loop()

    return start


async def _end(server: ThreadServer | LoopServer) -> None:
    if isinstance(server, LoopServer):
        server.close()
    else:
        await asyncio.to_thread(server.retire)


Served = Callable[[], Awaitable[ThreadServer | LoopServer]]


def test_a_call_gives_what_the_method_gave_however_large(run: Run, served: Served) -> None:
    async def main() -> None:
        server = await served()
        peer = Peer(server.address)
        large = np.arange(3_000_000, dtype=np.float64)
        for _ in range(2):
            assert await peer.ask("double", 4, by=3) == 12
            assert np.array_equal(await peer.ask("double", large), large * 2)
            assert await asyncio.to_thread(peer.wait, _LONG_S, "double", 4, by=3) == 12
            assert np.array_equal(await asyncio.to_thread(peer.wait, _LONG_S, "double", large), large * 2)
        peer.close()
        await _end(server)

    run(main)


def test_an_answer_is_what_the_method_gave_though_its_arrays_change_later(run: Run) -> None:
    kept = np.ones(1 << 20)

    async def look() -> Any:
        asyncio.get_running_loop().call_soon(kept.fill, 0.0)  # as soon as it was answered
        return kept

    async def main() -> None:
        server = LoopServer({"look": look})
        await server.start()
        assert (await Peer(server.address).ask("look")).all()
        assert not kept.any()
        server.close()

    run(main)


def test_errors_are_raised_where_the_call_was_made_and_harm_nobody_else(run: Run, served: Served) -> None:
    async def main() -> None:
        server = await served()
        peer = Peer(server.address)

        async def in_thread(method: str) -> Any:
            return await asyncio.to_thread(peer.wait, _LONG_S, method)

        for ask in (peer.ask, in_thread):
            with pytest.raises(LedgerUnavailable, match="ledger: nobody can reach it") as caught:
                await ask("fail")
            assert caught.value.hint == "retry"
            with pytest.raises(KeyError, match="absent"):
                await ask("absent")
            for method in ("unpicklable", "odd"):
                with pytest.raises(RuntimeError, match="cannot be sent"):
                    await ask(method)
        assert await peer.ask("double", 1) == 2
        peer.close()
        await _end(server)

    run(main)


def test_none_of_many_calls_waits_for_another(run: Run, served: Served) -> None:
    async def main() -> None:
        gate = asyncio.Event()
        server = await _loop(slow=gate.wait)
        peer = Peer(server.address)
        first = asyncio.ensure_future(peer.ask("slow"))
        assert await asyncio.gather(*(peer.ask("double", n) for n in range(500))) == [2 * n for n in range(500)]
        assert not first.done()
        gate.set()
        assert await first
        assert peer.under_way == 0
        peer.close()
        server.close()

    run(main)


@pytest.mark.parametrize("in_thread", [False, True])
def test_a_caller_that_goes_away_calls_the_work_of_a_loop_off(run: Run, in_thread: bool) -> None:
    async def main() -> None:
        ended = asyncio.Event()

        async def endless() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        server = await _loop(endless=endless)
        peer = Peer(server.address)
        asked = asyncio.to_thread(peer.wait, 0.05, "endless") if in_thread else asyncio.wait_for(peer.ask("endless"), 0.05)
        with pytest.raises(TimeoutError):
            await asked
        await ended.wait()
        assert await peer.ask("double", 1) == 2
        server.close()

    run(main)


def test_what_is_to_go_on_goes_on_though_its_caller_went(run: Run) -> None:
    async def main() -> None:
        gate, done = asyncio.Event(), asyncio.Event()

        async def write() -> None:
            await gate.wait()
            done.set()

        server = await _loop(write=write)
        peer = Peer(server.address)
        with pytest.raises(TimeoutError):
            await asyncio.to_thread(lambda: peer.wait(0.05, "write", call_off=False))
        while len(server.lines) > 1:
            await asyncio.sleep(0)
        gate.set()
        await done.wait()
        server.close()

    run(main)


def test_who_left_before_his_turn_is_not_worked_for() -> None:
    gate, first_begun, begun = threading.Event(), threading.Event(), []

    def work(number: int) -> None:
        begun.append(number)
        first_begun.set()
        assert gate.wait(_LONG_S)

    server = _threads(at_once=1, work=work)

    def ask(within_s: float, number: int) -> None:
        Line(server.address).ask(within_s, "work", (number,))

    first = threading.Thread(target=ask, args=(_LONG_S, 1))
    first.start()
    assert first_begun.wait(_LONG_S)
    with pytest.raises(TimeoutError):
        ask(0.05, 2)
    while server.under_way > 1:
        pass
    gate.set()
    first.join(_LONG_S)
    ask(_LONG_S, 3)
    assert begun == [1, 3]
    server.retire()


def test_who_left_while_others_were_asked_is_worked_for_no_more() -> None:
    turns, gate, done = Turns(1, "test", stuck_s=60), threading.Event(), []

    def work() -> None:
        with turns.given_up():
            assert gate.wait(_LONG_S)
        done.append(True)

    server = ThreadServer({"work": work}, turns, most=64)
    server.start()
    with pytest.raises(TimeoutError):
        Line(server.address).ask(0.05, "work")
    gate.set()
    server.retire()
    assert not done


def test_a_thread_that_waits_for_others_lets_others_work() -> None:
    turns = Turns(1, "test", stuck_s=60)
    inner = ThreadServer({"double": _double}, turns, most=64)
    inner.start()

    def through(number: int) -> Any:
        """As a stage asks another one, though only one thread at a time works."""
        with turns.given_up():
            return Line(inner.address).ask(_LONG_S, "double", (number,))

    outer = ThreadServer({"through": through}, turns, most=64)
    outer.start()
    assert Line(outer.address).ask(_LONG_S, "through", (3,)) == 6
    outer.retire()
    inner.retire()


def test_work_cut_short_over_there_is_an_error_and_not_silence(run: Run) -> None:
    async def main() -> None:
        async def cut() -> None:
            raise asyncio.CancelledError

        server = await _loop(cut=cut)
        with pytest.raises(RuntimeError, match="cut was cut short"):
            await Peer(server.address).ask("cut")
        server.close()

    run(main)


def test_whoever_waits_hears_that_the_other_side_hung_up(run: Run) -> None:
    async def main() -> None:
        server = await _loop(never=asyncio.Event().wait)
        peer = Peer(server.address)
        waiting = [
            asyncio.ensure_future(peer.ask("never")),
            asyncio.ensure_future(asyncio.to_thread(peer.wait, _LONG_S, "never")),
        ]
        while len(server.lines) < 2:
            await asyncio.sleep(0)
        assert await peer.ask("double", 1) == 2
        server.close()
        for one in waiting:
            with pytest.raises(HungUp, match="has ended"):
                await one
        assert peer.gone
        for again in (peer.ask("double", 1), asyncio.to_thread(peer.wait, _LONG_S, "double", 1)):
            with pytest.raises(NotTaken) as refused:
                await again
            assert refused.value.ending

    run(main)


def test_nobody_else_on_the_machine_is_served(run: Run, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        server = await served()
        monkeypatch.setattr(os, "getuid", lambda: 4_242_424)
        with pytest.raises(ConnectionRefusedError, match="another user"):
            Peer(server.address)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stranger:
            stranger.setblocking(False)
            stranger.connect(f"\0{server.address}")
            assert await asyncio.get_running_loop().sock_recv(stranger, 1) == b""
        await _end(server)

    run(main)


def test_a_call_beyond_the_limit_is_sent_away_and_was_not_begun(run: Run) -> None:
    async def main() -> None:
        gate, begun = threading.Event(), []

        def slow(number: int) -> int:
            begun.append(number)
            assert gate.wait(_LONG_S)
            return number

        server = _threads(most=2, slow=slow)
        first, second = Peer(server.address), Peer(server.address)
        under_way = [
            asyncio.ensure_future(first.ask("slow", 1)),
            asyncio.ensure_future(asyncio.to_thread(second.wait, _LONG_S, "slow", 2)),
        ]
        while len(begun) < 2:
            await asyncio.sleep(0)
        for refused in (first.ask("slow", 3), asyncio.to_thread(first.wait, _LONG_S, "slow", 3)):
            with pytest.raises(NotTaken) as caught:
                await refused
            assert not caught.value.ending
        gate.set()
        assert await asyncio.gather(*under_way) == [1, 2]
        while server.under_way:
            await asyncio.sleep(0)
        assert await first.ask("slow", 4) == 4
        assert sorted(begun) == [1, 2, 4]
        await _end(server)

    run(main)


def test_a_server_that_retires_answers_what_was_asked_and_loses_nothing(run: Run) -> None:
    """Each call is answered, or was not begun."""

    async def main() -> None:
        begun: list[int] = []
        enough = threading.Event()

        def turn(number: int, load: bytes) -> int:
            begun.append(number)
            if len(begun) == 50:
                enough.set()
            return number + len(load)

        server = _threads(turn=turn)
        peers = [Peer(server.address) for _ in range(2)]
        answered: list[int] = []

        async def keep_asking(peer: Peer, number: int, load: bytes) -> None:
            while not peer.gone:
                try:
                    assert await peer.ask("turn", number, load) == number + len(load)
                    answered.append(number)
                except NotTaken:
                    assert peer.gone
                number += 1

        def keep_waiting(peer: Peer, number: int, load: bytes) -> None:
            while not peer.gone:
                try:
                    assert peer.wait(_LONG_S, "turn", number, load) == number + len(load)
                    answered.append(number)
                except NotTaken:
                    assert peer.gone
                number += 1

        loads = (b"", bytes(1_500_000))  # the latter fits no socket's buffer
        callers = [
            asyncio.ensure_future(keep_asking(peer, (4 * at + k) * 1_000_000, load))
            for at, peer in enumerate(peers)
            for k, load in enumerate(loads)
        ] + [
            asyncio.ensure_future(asyncio.to_thread(keep_waiting, peer, (4 * at + 2 + k) * 1_000_000, load))
            for at, peer in enumerate(peers)
            for k, load in enumerate(loads)
        ]
        assert await asyncio.to_thread(enough.wait, _LONG_S)
        await asyncio.to_thread(server.retire)
        await asyncio.gather(*callers)
        assert sorted(answered) == sorted(begun)
        assert server.under_way == 0
        with pytest.raises(OSError, match="refused"):
            Peer(server.address)

    run(main)


_SERVER = """
import threading
from serve_app.serving.local_servers import ThreadServer
from serve_app.serving.threads import Turns
methods = {"never": threading.Event().wait, "busy": lambda: server.under_way}
server = ThreadServer(methods, Turns(4, "test", stuck_s=60), most=8)
server.start()
print(server.address, flush=True)
threading.Event().wait()
"""


def test_a_process_that_is_killed_is_heard_of_at_once_and_not_called_again(run: Run) -> None:
    async def main() -> None:
        with subprocess.Popen([sys.executable, "-c", _SERVER], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            peer = Peer(process.stdout.readline().strip())
            asked = [
                asyncio.ensure_future(peer.ask("never")),
                asyncio.ensure_future(asyncio.to_thread(peer.wait, _LONG_S, "never")),
            ]
            while await peer.ask("busy") < 3:
                pass
            assert await asyncio.to_thread(peer.wait, _LONG_S, "busy") == 3  # it leaves an idle line behind
            process.kill()
        for one in asked:
            with pytest.raises(HungUp):
                await one
        with pytest.raises(NotTaken) as refused:
            await asyncio.to_thread(peer.wait, _LONG_S, "busy")
        assert refused.value.ending
        assert peer.gone

    run(main)


def test_a_server_retires_though_a_caller_dies_meanwhile(run: Run) -> None:
    async def main() -> None:
        gate, begun = threading.Event(), threading.Event()

        def slow() -> None:
            begun.set()
            assert gate.wait(_LONG_S)

        server = _threads(slow=slow)
        peer = Peer(server.address)
        asked = asyncio.ensure_future(peer.ask("slow"))
        while not begun.is_set():
            await asyncio.sleep(0)
        retiring = asyncio.ensure_future(asyncio.to_thread(server.retire))
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert not retiring.done()
        gate.set()
        await retiring

    run(main)
