"""The ledger for worker threads: over a line where its owner is near, else by the owner's coroutine."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from serve_app.errors import LedgerUnavailable, OutcomeUnknown
from serve_app.serving.assemble import bridged
from serve_app.serving.local_servers import LoopServer
from serve_app.serving.nearby import Peer


class Owner:
    """Says how it was called; hangs where it is told to. `called_off`: one that hung was."""

    def __init__(self, name: str, *, hangs: bool = False) -> None:
        self._name, self._hangs = name, hangs
        self.called_off = asyncio.Event()

    async def call(self, method: str, *arguments: Any) -> Any:
        if self._hangs:
            try:
                await asyncio.Event().wait()
            finally:
                self.called_off.set()
        return self._name, method, arguments


async def _near(owner: Owner) -> tuple[LoopServer, Peer]:
    server = LoopServer({"call": owner.call})
    await server.start()
    return server, Peer(server.address)


def test_a_near_owner_is_asked_over_its_line_and_another_when_it_has_gone() -> None:
    async def main() -> None:
        server, peer = await _near(Owner("near"))
        ledger = bridged(Owner("far").call, asyncio.get_running_loop(), 5.0, 5.0, lambda: None if peer.gone else peer)
        assert await asyncio.to_thread(ledger.get_user, 7) == ("near", "get_user", (7,))
        server.close()
        while not peer.gone:
            await asyncio.sleep(0)
        assert await asyncio.to_thread(ledger.get_user, 7) == ("far", "get_user", (7,))

    asyncio.run(asyncio.wait_for(main(), 30))


@pytest.mark.parametrize("is_near", [True, False])
def test_a_read_that_takes_too_long_is_called_off_and_a_write_goes_on(*, is_near: bool) -> None:
    async def main() -> None:
        owner = Owner("slow", hangs=True)
        server, peer = await _near(owner)
        near = peer if is_near else None
        ledger = bridged(owner.call, asyncio.get_running_loop(), 0.05, 0.05, lambda: near)
        with pytest.raises(OutcomeUnknown):
            await asyncio.to_thread(ledger.refund, 1, 2, 3)
        assert not owner.called_off.is_set()
        with pytest.raises(LedgerUnavailable):
            await asyncio.to_thread(ledger.read, [1])  # type: ignore[arg-type]
        await owner.called_off.wait()
        server.close()
        peer.close()

    asyncio.run(asyncio.wait_for(main(), 30))
