"""Remote calls between processes of one user on one host, over a Unix socket.

A call through a deployment handle of Ray Serve costs milliseconds of processor on both sides (routing, metrics, gRPC in
Python). `serve_app.serving.nearby` finds out who can be called so.

Words: a *frame* is a length (u32, little endian), the call's number (u64) and a pickle (protocol 5). A request's pickle is
(method, arguments, keywords), or None: the call of that number is called off. A response's is (whether it succeeded, what it
gave or raised). Many calls share a connection, in no order. Calls are numbered from 1. Number 0 with None is a *farewell*: a
server that is to end says it, its client says it back behind its last call, and so no call is lost between them.

The socket has an abstract name (unix(7)): no file is left when its process is killed. Pickles run code, so both ends ask the
kernel who the other is (SO_PEERCRED) and hang up on any other user.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import os
import pickle
import secrets
import socket
import struct
from collections.abc import Callable
from typing import Any, cast

from serve_app.serving.lost import called_off

__all__ = ["Busy", "Connection", "HungUp", "RpcServer", "connect"]

_LOG = logging.getLogger("hindcast.serving")
_HEAD = struct.Struct("<IQ")
_PEER = struct.Struct("3i")
_PROTOCOL = 5
_FAREWELL = 0


class HungUp(ConnectionResetError):
    """The process at the other end has ended, or was about to; whether it did what was asked is unknown."""


class Busy(Exception):
    """The process works on as many calls as it may; it has not begun this one."""


class _Frames(asyncio.Protocol):
    """Cuts a stream into frames and hands each to `_received`."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # not every event loop's is derived from it

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        at = 0
        while len(self._buffer) - at >= _HEAD.size:
            length, number = _HEAD.unpack_from(self._buffer, at)
            end = at + _HEAD.size + length
            if len(self._buffer) < end:
                break
            self._received(number, pickle.loads(memoryview(self._buffer)[at + _HEAD.size : end]))  # noqa: S301 - our own user's
            at = end
        del self._buffer[:at]

    def _received(self, number: int, said: Any) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.close()

    def _say_farewell(self) -> None:
        self._send(_FAREWELL, pickle.dumps(None, _PROTOCOL))

    def _send(self, number: int, payload: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(_HEAD.pack(len(payload), number) + payload)


def _same_user(peer: socket.socket) -> bool:
    _, uid, _ = _PEER.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return bool(uid == os.getuid())


class RpcServer:
    """Answers calls with the coroutine functions it was given, by name. It begins when `start` is called."""

    def __init__(self, methods: dict[str, Callable[..., Any]], *, most: float = math.inf) -> None:
        """most: calls it works on at once; to others it says Busy."""
        self.methods, self.most = methods, most
        self.under_way = 0
        self._server: asyncio.AbstractServer | None = None
        self._connections = set[_Answering]()
        self._changed = asyncio.Event()
        self.address = f"hindcast-{secrets.token_hex(16)}"

    async def start(self) -> None:
        """Listen at `address`."""
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listening.setblocking(False)
        listening.bind(f"\0{self.address}")
        self._server = await asyncio.get_running_loop().create_unix_server(lambda: _Answering(self), sock=listening)

    async def retire(self) -> None:
        """Accept nobody any more, answer what was asked, and hang up when all callers know."""
        if self._server is not None:
            self._server.close()
        for one in self._connections:
            one.retire()
        while self.under_way or not all(one.left for one in self._connections):
            self._changed.clear()
            await self._changed.wait()
        self.close()

    def close(self) -> None:
        """Accept nobody any more, and hang up: whoever waits hears of it."""
        if self._server is not None:
            self._server.close()
        for one in tuple(self._connections):
            one.close()

    def connected(self, connection: _Answering, *, living: bool) -> None:
        """A connection was made or lost."""
        (self._connections.add if living else self._connections.discard)(connection)
        self.changed()

    def ended(self) -> None:
        """A call under way has ended."""
        self.under_way -= 1
        self.changed()

    def changed(self) -> None:
        """Whoever waits for everybody to leave should look again."""
        self._changed.set()


class _Answering(_Frames):
    """A server's end of a connection. Calls go on when it is lost, as what is begun is never cancelled."""

    def __init__(self, server: RpcServer) -> None:
        super().__init__()
        self._server = server
        self._running: dict[int, asyncio.Task[None]] = {}
        self._refused = False
        self.left = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._server.connected(self, living=True)
        with socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as peer:
            self._refused = not _same_user(peer)
        if self._refused:
            _LOG.error("a process of another user called at a local socket: hung up")
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._server.connected(self, living=False)

    def data_received(self, data: bytes) -> None:
        if not self._refused:
            super().data_received(data)

    def retire(self) -> None:
        """Ask the caller to say farewell; `left` says that it has."""
        self._say_farewell()

    def _received(self, number: int, said: Any) -> None:
        if number == _FAREWELL:
            self.left = True
            self._server.changed()
        elif said is None:
            if (task := self._running.get(number)) is not None:
                task.cancel()
        elif self._server.under_way >= self._server.most:
            self._send(number, pickle.dumps((False, Busy("works on as many calls as it may")), _PROTOCOL))
        else:
            self._server.under_way += 1
            task = asyncio.get_running_loop().create_task(self._answer(number, *said))
            self._running[number] = task
            task.add_done_callback(lambda _: self._ended(number))

    def _ended(self, number: int) -> None:
        self._running.pop(number, None)
        self._server.ended()

    async def _answer(self, number: int, method: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        try:
            answer = True, await self._server.methods[method](*arguments, **keywords)
        except (Exception, asyncio.CancelledError) as error:  # it is raised where the call was made
            if called_off(error):
                raise
            answer = False, error if isinstance(error, Exception) else RuntimeError(f"{method} was cut short")
        self._send(number, _pickled(answer))


def _pickled(answer: tuple[bool, Any]) -> bytes:
    try:
        content = pickle.dumps(answer, _PROTOCOL)
        if not answer[0]:
            pickle.loads(content)  # noqa: S301 - one that its caller could not read would end everybody's connection
        return content
    except Exception as error:  # noqa: BLE001 - an answer that no frame can hold is the caller's to hear of
        return pickle.dumps((False, RuntimeError(f"{answer[1]!r} cannot be sent: {error}")), _PROTOCOL)


class Connection(_Frames):
    """A client's end. `ask` makes a call. `lost`: none will be answered any more; `retired`: none should be made."""

    def __init__(self) -> None:
        super().__init__()
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self.lost = self.retired = False

    @property
    def under_way(self) -> int:
        """Calls that have not been answered."""
        return len(self._waiting)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = self.retired = True
        waiting, self._waiting = self._waiting, {}
        for answer in waiting.values():
            if not answer.done():
                answer.set_exception(HungUp(f"the process asked has ended: {exc or 'it hung up'}"))

    async def ask(self, method: str, *arguments: Any, **keywords: Any) -> Any:
        """What `method` gives over there. Raises what it raised, HungUp where the other process has ended, Busy where it has
        no room; a caller that goes away calls the method off."""
        if self.lost:
            raise HungUp("the process asked has ended")
        number, answer = next(self._numbers), asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            self._send(number, pickle.dumps((method, arguments, keywords), _PROTOCOL))
            return await answer
        except asyncio.CancelledError:
            self._send(number, pickle.dumps(None, _PROTOCOL))
            raise
        finally:
            self._waiting.pop(number, None)

    def _received(self, number: int, said: Any) -> None:
        if number == _FAREWELL:
            self.retired = True
            self._say_farewell()
            return
        answer = self._waiting.get(number)
        if answer is None or answer.done():
            return
        succeeded, value = said
        if succeeded:
            answer.set_result(value)
        else:
            answer.set_exception(value)


async def connect(address: str) -> Connection:
    """Raises OSError where nobody of this user listens at `address` on this host."""
    line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        line.setblocking(False)
        line.connect(f"\0{address}")  # at once, or not at all
        if not _same_user(line):
            raise ConnectionRefusedError(f"{address} belongs to another user")
        _, connection = await asyncio.get_running_loop().create_unix_connection(Connection, sock=line)
    except BaseException:
        line.close()
        raise
    return connection
