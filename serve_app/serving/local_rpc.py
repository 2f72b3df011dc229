"""Remote calls between processes of one user on one host, over a Unix socket.

A call through a deployment handle of Ray Serve costs milliseconds of processor on both sides (routing, metrics, gRPC in
Python). Where nothing is routed, as with the one state owner, none of that is needed.

Words: a *frame* is a length (u32, little endian), the call's number (u64) and a pickle (protocol 5). A request's pickle is
(method, arguments, keywords), or None: the call of that number is called off. A response's is (whether it succeeded, what it
gave or raised). Many calls share a connection, in no order.

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
from collections.abc import Awaitable, Callable
from typing import Any, cast

from serve_app.serving.lost import called_off

__all__ = ["Connection", "Near", "RpcServer", "connect"]

_LOG = logging.getLogger("hindcast.serving")
_HEAD = struct.Struct("<IQ")
_PEER = struct.Struct("3i")
_PROTOCOL = 5
_AGAIN_S = 5.0


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

    def _send(self, number: int, payload: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(_HEAD.pack(len(payload), number) + payload)


def _same_user(peer: socket.socket) -> bool:
    _, uid, _ = _PEER.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return bool(uid == os.getuid())


class RpcServer:
    """Answers calls with the coroutine functions it was given, by name."""

    def __init__(self, methods: dict[str, Callable[..., Any]]) -> None:
        self._methods = methods
        self._server: asyncio.AbstractServer | None = None
        self._connections = set[_Answering]()
        self.address = f"hindcast-{secrets.token_hex(16)}"

    async def start(self) -> None:
        """Listen at `address`."""
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listening.setblocking(False)
        listening.bind(f"\0{self.address}")
        self._server = await asyncio.get_running_loop().create_unix_server(self._answering, sock=listening)

    def _answering(self) -> _Answering:
        return _Answering(self._methods, self._connections)

    def close(self) -> None:
        """Accept nobody any more, and hang up: whoever waits hears of it."""
        if self._server is not None:
            self._server.close()
        for one in tuple(self._connections):
            one.close()


class _Answering(_Frames):
    """A server's end of a connection. Calls go on when it is lost, as what is begun is never cancelled."""

    def __init__(self, methods: dict[str, Callable[..., Any]], living: set[_Answering]) -> None:
        """living: the connections of a server, this one while it lives."""
        super().__init__()
        self._methods, self._living = methods, living
        self._running: dict[int, asyncio.Task[None]] = {}
        self._refused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._living.add(self)
        with socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as peer:
            self._refused = not _same_user(peer)
        if self._refused:
            _LOG.error("a process of another user called at a local socket: hung up")
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._living.discard(self)

    def data_received(self, data: bytes) -> None:
        if not self._refused:
            super().data_received(data)

    def _received(self, number: int, said: Any) -> None:
        if said is None:
            if (task := self._running.get(number)) is not None:
                task.cancel()
            return
        task = asyncio.get_running_loop().create_task(self._answer(number, *said))
        self._running[number] = task
        task.add_done_callback(lambda _: self._running.pop(number, None))

    async def _answer(self, number: int, method: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        try:
            answer = True, await self._methods[method](*arguments, **keywords)
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
    """A client's end. `ask` makes a call; `lost` says that none will be answered any more."""

    def __init__(self) -> None:
        super().__init__()
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self.lost = False

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        waiting, self._waiting = self._waiting, {}
        for answer in waiting.values():
            if not answer.done():
                answer.set_exception(ConnectionResetError(f"the process asked has ended: {exc or 'it hung up'}"))

    async def ask(self, method: str, *arguments: Any, **keywords: Any) -> Any:
        """What `method` gives over there. Raises what it raised, ConnectionResetError where the other process has ended; a
        caller that goes away calls the method off."""
        if self.lost:
            raise ConnectionResetError("the process asked has ended")
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


class Near:
    """A connection to a process that may be on this host, may end and be replaced. Nobody waits for it to be made."""

    def __init__(self, address: Callable[[], Awaitable[str]]) -> None:
        """address: asks the process, by whatever way, where it listens."""
        self._address = address
        self._connection: Connection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._not_before_s = -math.inf

    def connection(self) -> Connection | None:
        """The connection; None where there is none now."""
        if self._connection is not None and not self._connection.lost:
            return self._connection
        loop = asyncio.get_running_loop()
        if self._connecting is None and loop.time() >= self._not_before_s:
            self._connecting = loop.create_task(self._connect())
        return None

    async def _connect(self) -> None:
        try:
            self._connection = await connect(await self._address())
        except Exception as error:  # noqa: BLE001 - there is another way; it is tried again
            self._not_before_s = asyncio.get_running_loop().time() + _AGAIN_S
            _LOG.info("no local connection: %s: %s", type(error).__name__, error)
        finally:
            self._connecting = None
