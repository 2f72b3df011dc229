"""Who can be called over local sockets: processes say to the promotion board where they listen, its orders name them all.

Nobody asks which of them are on this host: a name of another host's process is refused at once; it is tried now and then.
A process that was reached is called until it retires or dies, whatever the orders say meanwhile: a board that has just begun
knows nobody.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

from serve_app.clock import monotonic_s
from serve_app.serving.local_rpc import AsyncLine, Line, NotTaken

__all__ = ["Nearby", "Peer"]

_LOG = logging.getLogger("hindcast.serving")
_AGAIN_S = 5.0
_KEPT = 64
L = TypeVar("L", Line, AsyncLine)


class _Idle(Generic[L]):
    """Open lines that carry no call. The one used last is used first, so that those nobody needs stay behind."""

    def __init__(self, least: int = 0) -> None:
        """least: that are kept at all events."""
        self._lock, self._least = threading.Lock(), least
        self._lines: list[L] = []
        self._fewest = 0

    def take(self) -> L | None:
        with self._lock:
            if not self._lines:
                return None
            line = self._lines.pop()
            self._fewest = min(self._fewest, len(self._lines))
            return line

    def put(self, line: L) -> bool:
        """False where there are enough."""
        with self._lock:
            if len(self._lines) < _KEPT:
                self._lines.append(line)
                return True
        return False

    def remove(self, line: L) -> None:
        with self._lock:
            if line in self._lines:
                self._lines.remove(line)

    def unneeded(self) -> list[L]:
        """Those that no call needed since this was last asked; they are taken."""
        with self._lock:
            count = max(min(self._fewest, len(self._lines) - self._least), 0)
            lines, self._lines = self._lines[:count], self._lines[count:]
            self._fewest = len(self._lines)
            return lines

    def all(self) -> list[L]:
        """Every one; they are taken."""
        with self._lock:
            lines, self._lines = self._lines, []
            return lines


class Peer:
    """A process that listens, called over an idle line or, where all are taken, a new one. `gone`: it should not be called
    any more; idle lines of the event loop tell."""

    def __init__(self, address: str) -> None:
        """On the event loop. OSError where nobody of this user listens at `address` on this host."""
        self._address = address
        self._lock = threading.Lock()
        self.under_way = 0
        self.gone = False
        self._waiters = _Idle[Line]()
        self._lines = _Idle[AsyncLine](least=1)
        self._lines.put(AsyncLine(address, self._ended))
        self._looked_s = monotonic_s()

    async def ask(self, method: str, *arguments: Any, **keywords: Any) -> Any:
        """See AsyncLine; on the event loop."""
        with self:
            line = self._lines.take() or self._opened_async()
            try:
                return await line.ask(method, *arguments, **keywords)
            finally:
                self._back(line, self._lines)

    def wait(self, within_s: float, method: str, *arguments: Any, call_off: bool = True, **keywords: Any) -> Any:
        """See Line; in a thread. The time is no method's keyword."""
        with self:
            line = self._waiters.take() or self._opened()
            try:
                return line.ask(within_s, method, arguments, keywords, call_off=call_off)
            finally:
                self._back(line, self._waiters)

    def __enter__(self) -> None:
        """One call more is under way; a Peer may be entered by many at once."""
        with self._lock:
            self.under_way += 1

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        with self._lock:
            self.under_way -= 1
        if isinstance(error, NotTaken):
            self.gone |= error.ending

    def _opened(self) -> Line:
        try:
            return Line(self._address)
        except OSError as error:
            raise _not_reached(error) from error

    def _opened_async(self) -> AsyncLine:
        try:
            return AsyncLine(self._address, self._ended)
        except OSError as error:
            raise _not_reached(error) from error

    def _back(self, line: L, idle: _Idle[L]) -> None:
        if not (line.open and not self.gone and idle.put(line)):
            line.close()

    def _ended(self, line: AsyncLine) -> None:
        self.gone = True
        self._lines.remove(line)

    def trim(self) -> None:
        """Hang up lines that were needed by a rush that is over; on the event loop."""
        if monotonic_s() >= self._looked_s + _AGAIN_S:
            self._looked_s = monotonic_s()
            _hang_up(self._waiters.unneeded())
            _hang_up(self._lines.unneeded())

    def close(self) -> None:
        """Hang up idle lines; on the event loop."""
        self.gone = True
        _hang_up(self._waiters.all())
        _hang_up(self._lines.all())


def _hang_up(lines: Sequence[Line | AsyncLine]) -> None:
    for line in lines:
        line.close()


def _not_reached(error: OSError) -> NotTaken:
    return NotTaken(f"nobody takes calls there: {error}", ending=not isinstance(error, BlockingIOError))


class Nearby:
    """The processes of some roles that are on this host. `learn` on one event loop, `choose` anywhere."""

    def __init__(self) -> None:
        self._open: dict[str, dict[str, Peer]] = {}
        self._not_before_s: dict[str, dict[str, float]] = {}
        self._turn = 0

    def call(self, role: str) -> None:
        """This process calls `role`."""
        self._open.setdefault(role, {})
        self._not_before_s.setdefault(role, {})

    def learn(self, addresses: Mapping[str, Sequence[str]]) -> None:
        """Connect to those of `addresses` (of each role) that there is no connection to. Called now and then."""
        for role, known in self._open.items():
            named = addresses.get(role, ())
            living = {address: one for address, one in known.items() if not one.gone}
            for one in known.values():
                if one.gone:
                    one.close()
                else:
                    one.trim()
            not_before_s = {one: when for one, when in self._not_before_s[role].items() if one in named}
            for address in named:
                if address not in living and monotonic_s() >= not_before_s.get(address, -math.inf):
                    try:
                        living[address] = Peer(address)
                        not_before_s.pop(address, None)
                    except OSError as error:  # another host's, or it has ended
                        if address not in not_before_s:
                            _LOG.debug("no local connection to %s: %s", role, error)
                        not_before_s[address] = monotonic_s() + _AGAIN_S
            self._open[role], self._not_before_s[role] = living, not_before_s

    def choose(self, role: str, spread_from: float = math.inf) -> Peer | None:
        """The process with the fewest of our calls. None where there is none here now, and where each has `spread_from` of
        our calls while others of its role are elsewhere: whoever knows the way there should spread them."""
        living = self.peers(role)
        if not living:
            return None
        self._turn += 1
        least = min((living[(self._turn + n) % len(living)] for n in range(len(living))), key=lambda one: one.under_way)
        return None if self._not_before_s[role] and least.under_way >= spread_from else least

    def peers(self, role: str) -> list[Peer]:
        """Those of a role that can be called."""
        return [one for one in self._open[role].values() if not one.gone]
