"""Remote calls between processes of one user on one host, over Unix sockets: the callers' side (`local_servers`: the other).

A call through a deployment handle of Ray Serve costs milliseconds of processor on both sides (routing, metrics, gRPC in
Python). `serve_app.serving.nearby` finds out who can be called so.

Words: a *line* is a connection; it carries one call at a time, in frames (`line_frames`): a request (method, arguments,
keywords), then a response (whether it succeeded, what it gave or raised). A request of None calls the one before it off.
`Line` is for threads, which wait in the kernel and wake nobody else; `AsyncLine` for an event loop.

A server that is to end shuts the receiving half of its lines (shutdown(2)): it answers what has come whole, and the kernel
refuses what is sent later. So both sides know which calls were begun, and none is lost between them.

The socket has an abstract name (unix(7)): no file is left when its process is killed. Pickles run code, so both ends ask the
kernel who the other is (SO_PEERCRED) and hang up on any other user.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from serve_app.clock import monotonic_s
from serve_app.serving.line_frames import Frames, Parts, framed, send

__all__ = ["AsyncLine", "HungUp", "Line", "NotTaken", "same_user", "widen"]

_PEER = struct.Struct("3i")
_LEAST_S = 1e-3
_SEND_ROOM = 1 << 20
_OFF = b"".join(framed(None))


class HungUp(ConnectionResetError):
    """The process at the other end has ended, or was about to; whether it did what was asked is unknown."""


class NotTaken(Exception):
    """The process did not take the call: it has its fill, or (`ending`) is about to end. It has not begun it."""

    def __init__(self, said: str, *, ending: bool = False) -> None:
        super().__init__(said)
        self.ending = ending


def same_user(peer: socket.socket) -> bool:
    """Whether the process at the other end is this one's user's."""
    _, uid, _ = _PEER.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return bool(uid == os.getuid())


def widen(line: socket.socket) -> None:
    """Let a whole micro-batch lie in the line, where the kernel allows it: nobody wakes twice for it."""
    line.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_ROOM)


def _connected(address: str) -> socket.socket:
    """Raises OSError where nobody of this user listens at `address` on this host."""
    line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        line.setblocking(False)
        line.connect(f"\0{address}")  # at once, or not at all
        if not same_user(line):
            raise ConnectionRefusedError(f"{address} belongs to another user")
        widen(line)
    except BaseException:
        line.close()
        raise
    return line


def _given(answer: tuple[bool, Any]) -> Any:
    succeeded, value = answer
    if succeeded:
        return value
    raise value


class Line:
    """A caller's end of a line, for threads. `open`: it can be used (again). Raises OSError where it cannot be made."""

    def __init__(self, address: str) -> None:
        self._socket, self._frames = _connected(address), Frames()
        self.open = True

    def ask(
        self,
        within_s: float,
        method: str,
        arguments: Sequence[Any] = (),
        keywords: Mapping[str, Any] | None = None,
        *,
        call_off: bool = True,
    ) -> Any:
        """What `method` gives over there. Raises what it raised; NotTaken; HungUp where the other process has ended;
        TimeoutError after `within_s`: it is called off then, or goes on by itself (`call_off` False)."""
        request = framed((method, tuple(arguments), dict(keywords or {})))
        try:
            answer = self._answer(request, within_s)
        except BaseException as error:
            if call_off and isinstance(error, TimeoutError):
                with contextlib.suppress(OSError):
                    self._socket.settimeout(0)
                    self._socket.send(_OFF)
            self.close()
            raise
        return _given(answer)

    def _answer(self, request: Parts, within_s: float) -> tuple[bool, Any]:
        ends_s = monotonic_s() + within_s
        self._socket.settimeout(within_s)
        try:
            while request := send(self._socket, request):
                self._socket.settimeout(max(ends_s - monotonic_s(), _LEAST_S))
        except TimeoutError:
            raise
        except OSError as error:  # what has not come whole is not begun
            raise NotTaken("the process asked has ended", ending=True) from error
        while True:
            try:
                count = self._socket.recv_into(self._frames.room())
            except ConnectionError:
                count = 0
            if not count:
                raise HungUp("the process asked has ended")
            if said := self._frames.received(count):
                answer: tuple[bool, Any] = said[0]
                return answer
            self._socket.settimeout(max(ends_s - monotonic_s(), _LEAST_S))

    def close(self) -> None:
        """Hang up."""
        self.open = False
        self._socket.close()


class AsyncLine:
    """A caller's end of a line, for the event loop that runs. `open`: it can be used (again). `ended` is called where the
    other end hangs up. Raises OSError where it cannot be made."""

    def __init__(self, address: str, ended: Callable[[AsyncLine], None]) -> None:
        self._socket, self._frames = _connected(address), Frames()
        self._loop, self._ended = asyncio.get_running_loop(), ended
        self._waiting: asyncio.Future[tuple[bool, Any]] | None = None
        self.open = True
        self._loop.add_reader(self._socket.fileno(), self._readable)

    async def ask(self, method: str, *arguments: Any, **keywords: Any) -> Any:
        """What `method` gives over there. Raises what it raised; NotTaken; HungUp where the other process has ended. A
        caller that goes away calls the method off."""
        request = framed((method, arguments, keywords))
        self._waiting = waiting = self._loop.create_future()
        try:
            await self._send(request)
            answer = await waiting
        except BaseException as error:
            if self.open and isinstance(error, asyncio.CancelledError):
                with contextlib.suppress(OSError):
                    self._socket.send(_OFF)
            waiting.cancel()
            self.close()
            raise
        finally:
            self._waiting = None
        return _given(answer)

    async def _send(self, request: Parts) -> None:
        try:
            with contextlib.suppress(BlockingIOError):
                request = send(self._socket, request)
            for part in request:
                await self._loop.sock_sendall(self._socket, part)
        except OSError as error:  # what has not come whole is not begun
            raise NotTaken("the process asked has ended", ending=True) from error

    def _readable(self) -> None:
        try:
            count = self._socket.recv_into(self._frames.room())
        except BlockingIOError:
            return
        except OSError:
            count = 0
        waiting = self._waiting
        if not count:
            self.close()
            self._ended(self)
            if waiting is not None and not waiting.done():
                waiting.set_exception(HungUp("the process asked has ended"))
            return
        try:
            said = self._frames.received(count)
        except Exception as error:  # noqa: BLE001 - an answer that cannot be read is its caller's to hear of
            self.close()
            if waiting is not None and not waiting.done():
                waiting.set_exception(error)
            return
        if said and waiting is not None and not waiting.done():
            waiting.set_result(said[0])

    def close(self) -> None:
        """Hang up."""
        if self.open:
            self.open = False
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
