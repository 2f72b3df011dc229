"""The way to another deployment: near where it can be, else by its handle, within the time a thread has for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from serve_app.hop import Hop
from serve_app.serving.library import Role
from serve_app.serving.local_rpc import HungUp
from serve_app.serving.local_servers import ThreadServer
from serve_app.serving.nearby import Nearby
from serve_app.serving.threads import Turns
from serve_app.settings import DeploymentsSettings

_LONG_S = 30.0


def _run(main: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), _LONG_S))


class _Handle:
    """Stands in for Serve's handle of a deployment."""

    def __init__(self, remote: Callable[..., Awaitable[Any]]) -> None:
        self.run = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=remote))


async def _far(number: int) -> str:
    return f"far {number}"


def _hop(remote: Callable[..., Awaitable[Any]], *near: ThreadServer) -> Hop:
    nearby = Nearby()
    hop = Hop(_Handle(remote), Role.features, nearby, DeploymentsSettings())  # type: ignore[arg-type]
    nearby.learn({"features": tuple(one.address for one in near)})
    return hop


async def _both(hop: Hop, number: int) -> set[str]:
    """What a coroutine and a thread that works get."""
    turns = Turns(1, "test", stuck_s=60)

    def work() -> str:
        with turns.taken(lambda: False):
            said: str = hop.wait(turns, _LONG_S, number)
            return said

    return {await hop(number), await asyncio.to_thread(work)}


def _near(most: int = 8) -> ThreadServer:
    server = ThreadServer({"run": lambda number: f"near {number}"}, Turns(1, "test", stuck_s=60), most=most)
    server.start()
    return server


def test_who_is_near_is_asked_and_else_the_handle() -> None:
    async def main() -> None:
        server = _near()
        assert await _both(_hop(_far), 1) == {"far 1"}
        hop = _hop(_far, server)
        assert await _both(hop, 2) == {"near 2"}
        await asyncio.to_thread(server.retire)
        assert await _both(hop, 3) == {"far 3"}

    _run(main)


def test_where_the_near_one_has_its_fill_the_handle_is_asked() -> None:
    async def main() -> None:
        server = _near(most=0)
        assert await _both(_hop(_far, server), 1) == {"far 1"}
        await asyncio.to_thread(server.retire)

    _run(main)


def test_a_thread_waits_for_the_handle_no_longer_than_it_may_and_calls_it_off() -> None:
    async def main() -> None:
        off = asyncio.Event()

        async def endless(_: int) -> str:
            try:
                return str(await asyncio.Event().wait())
            finally:
                off.set()

        hop, turns = _hop(endless), Turns(1, "test", stuck_s=60)

        def work() -> None:
            with turns.taken(lambda: False):
                hop.wait(turns, 0.02, 1)

        with pytest.raises(TimeoutError):
            await asyncio.to_thread(work)
        await off.wait()

    _run(main)


def test_a_replica_that_ends_under_way_is_hung_up_and_not_asked_twice() -> None:
    async def main() -> None:
        asked: list[int] = []

        async def cut(number: int) -> str:
            asked.append(number)
            raise asyncio.CancelledError

        hop, turns, said = _hop(cut), Turns(1, "test", stuck_s=60), threading.Event()

        def work() -> None:
            with turns.taken(lambda: False):
                try:
                    hop.wait(turns, _LONG_S, 1)
                except HungUp:
                    said.set()

        with pytest.raises(HungUp):
            await hop(0)
        await asyncio.to_thread(work)
        assert said.is_set()
        assert asked == [0, 1]

    _run(main)
