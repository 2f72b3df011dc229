"""Who can be called over a local socket: processes say to the promotion board where they listen, its orders name them all.

Nobody asks which of them are on this host: a name of another host's process is refused at once; it is tried now and then.
A connection lasts until its other end retires or dies, whatever the orders say meanwhile: a board that has just begun knows
nobody.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping, Sequence

from serve_app.serving.local_rpc import Connection, connect

__all__ = ["Nearby"]

_LOG = logging.getLogger("hindcast.serving")
_AGAIN_S = 5.0


class _Role:
    """The processes of one role."""

    def __init__(self) -> None:
        self.open: dict[str, Connection] = {}
        self.connecting: dict[str, asyncio.Task[None]] = {}
        self.not_before_s: dict[str, float] = {}


class Nearby:
    """Connections to the processes of some roles. Nobody waits for one to be made. Used from one event loop."""

    def __init__(self) -> None:
        self._roles: dict[str, _Role] = {}
        self._turn = 0

    def call(self, role: str) -> None:
        """This process calls `role`."""
        self._roles.setdefault(role, _Role())

    def learn(self, addresses: Mapping[str, Sequence[str]]) -> None:
        """Begin to connect to those of `addresses` (of each role) that there is no connection to."""
        loop = asyncio.get_running_loop()
        for name, role in self._roles.items():
            named = addresses.get(name, ())
            role.not_before_s = {one: when for one, when in role.not_before_s.items() if one in named}
            for address in named:
                known = address in role.open or address in role.connecting
                if not known and loop.time() >= role.not_before_s.get(address, -math.inf):
                    role.connecting[address] = loop.create_task(self._connect(name, role, address))

    def choose(self, role: str, spread_from: float = math.inf) -> Connection | None:
        """The process with the fewest of our calls. None where there is none here now, and where each has `spread_from` of
        our calls while others of its role are elsewhere: whoever knows the way there should spread them."""
        known = self._roles[role]
        if gone := [address for address, one in known.open.items() if one.retired]:
            for address in gone:
                known.open.pop(address)
        living = list(known.open.values())
        if not living:
            return None
        self._turn += 1
        least = min((living[(self._turn + n) % len(living)] for n in range(len(living))), key=lambda one: one.under_way)
        return None if known.not_before_s and least.under_way >= spread_from else least

    async def _connect(self, name: str, role: _Role, address: str) -> None:
        try:
            role.open[address] = await connect(address)
            role.not_before_s.pop(address, None)
        except OSError as error:  # another host's, or it has ended
            if address not in role.not_before_s:
                _LOG.debug("no local connection to %s: %s", name, error)
            role.not_before_s[address] = asyncio.get_running_loop().time() + _AGAIN_S
        finally:
            role.connecting.pop(address)
