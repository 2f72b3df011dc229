"""Who answers calls over lines (see `local_rpc`): coroutines of an event loop, or threads that read, work and write."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pickle
import secrets
import select
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any, cast

from serve_app.serving.line_frames import Frames, Parts, framed, send_all
from serve_app.serving.local_rpc import NotTaken, same_user, widen
from serve_app.serving.lost import called_off
from serve_app.serving.threads import Left, Turns

__all__ = ["LoopServer", "ThreadServer"]

_LOG = logging.getLogger("hindcast.serving")
_BACKLOG = 4096
_AGAIN_S = 1.0


def _new_address() -> str:
    return f"hindcast-{secrets.token_hex(16)}"


def _listening(address: str) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(f"\0{address}")
    listening.listen(_BACKLOG)
    return listening


def _strange(line: socket.socket) -> bool:
    if same_user(line):
        return False
    _LOG.error("a process of another user called at a local socket: hung up")
    return True


def _framed(answer: tuple[bool, Any]) -> Parts:
    try:
        if not answer[0]:
            pickle.loads(pickle.dumps(answer))  # noqa: S301 - one that its caller could not read would end its line
        return framed(answer)
    except Exception as error:  # noqa: BLE001 - an answer that no frame can hold is the caller's to hear of
        return framed((False, RuntimeError(f"{answer[1]!r} cannot be sent: {error}")))


class LoopServer:
    """Answers with the coroutine functions it was given, by name, on the event loop that `start` is called on."""

    def __init__(self, methods: Mapping[str, Callable[..., Any]]) -> None:
        self.methods = methods
        self.address = _new_address()
        self.lines = set[_Answering]()
        self._server: asyncio.AbstractServer | None = None

    async def start(self) -> None:
        """Listen at `address`."""
        listening = _listening(self.address)
        listening.setblocking(False)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: _Answering(self), sock=listening, backlog=_BACKLOG)

    def close(self) -> None:
        """Accept nobody any more, and hang up: whoever waits hears of it."""
        if self._server is not None:
            self._server.close()
        for one in tuple(self.lines):
            one.close()


class _Answering(asyncio.BufferedProtocol):
    """A server's end of a line. A call goes on when the line is lost, as what is begun is never cancelled."""

    def __init__(self, server: LoopServer) -> None:
        self._server, self._frames = server, Frames()
        self._transport: asyncio.Transport | None = None
        self._running: asyncio.Task[None] | None = None
        self._refused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # not every event loop's is derived from it
        self._server.lines.add(self)
        with socket.socket(fileno=socket.dup(transport.get_extra_info("socket").fileno())) as peer:
            self._refused = _strange(peer)
        if self._refused:
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._server.lines.discard(self)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        return self._frames.room()

    def buffer_updated(self, nbytes: int) -> None:
        if self._refused:
            return
        for said in self._frames.received(nbytes):
            if said is not None:
                self._running = asyncio.get_running_loop().create_task(self._answer(*said))
            elif self._running is not None:
                self._running.cancel()

    async def _answer(self, method: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        try:
            answer = True, await self._server.methods[method](*arguments, **keywords)
        except (Exception, asyncio.CancelledError) as error:  # it is raised where the call was made
            if called_off(error):
                raise
            answer = False, error if isinstance(error, Exception) else RuntimeError(f"{method} was cut short")
        self._running = None
        if self._transport is not None and not self._transport.is_closing():
            # Copied: what the line does not take now is sent later, when the owner's own arrays may hold something else.
            self._transport.write(b"".join(_framed(answer)))

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.close()


class ThreadServer:
    """Answers with the functions it was given, by name: a thread a line reads a request, waits for its turn to work, works,
    and writes the answer. Nobody else wakes for it."""

    def __init__(self, methods: Mapping[str, Callable[..., Any]], turns: Turns, *, most: int) -> None:
        """most: calls it takes at once, those included that wait for a turn; of others it says NotTaken."""
        self._methods, self._turns, self._most = methods, turns, most
        self.address = _new_address()
        self.under_way = 0
        self._listening: socket.socket | None = None
        self._lines = set[socket.socket]()
        self._changed = threading.Condition()
        self._retiring = False

    def start(self) -> None:
        """Listen at `address`."""
        self._listening = _listening(self.address)
        threading.Thread(target=self._accept, args=(self._listening,), name="lines", daemon=True).start()

    def retire(self) -> None:
        """Accept nobody any more, answer what was asked, and hang up."""
        with self._changed:
            self._retiring = True
            if self._listening is not None:
                self._listening.shutdown(socket.SHUT_RDWR)
            for line in self._lines:
                _hear_no_more(line)
            self._changed.wait_for(lambda: self._listening is None and not self._lines)

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                line, _ = listening.accept()
            except OSError:
                if self._retiring:  # it is shut down; who had come before that was accepted
                    break
                _LOG.exception("a local call could not be accepted")
                with self._changed:
                    self._changed.wait_for(lambda: self._retiring, _AGAIN_S)
            else:
                self._take(line)
        listening.close()
        with self._changed:
            self._listening = None
            self._changed.notify_all()

    def _take(self, line: socket.socket) -> None:
        if _strange(line):
            line.close()
            return
        widen(line)
        with self._changed:
            self._lines.add(line)
            if self._retiring:
                _hear_no_more(line)
        threading.Thread(target=self._serve, args=(line,), name="line", daemon=True).start()

    def _serve(self, line: socket.socket) -> None:
        frames = Frames()
        try:
            while count := line.recv_into(frames.room()):
                for said in frames.received(count):
                    if said is not None:
                        self._answer(line, *said)
        except (ConnectionError, Left):
            pass  # the caller has gone
        finally:
            with self._changed:
                self._lines.discard(line)
                line.close()
                self._changed.notify_all()

    def _answer(self, line: socket.socket, method: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        with self._changed:
            has_room = self.under_way < self._most
            self.under_way += has_room
        if not has_room:
            send_all(line, framed((False, NotTaken("it works on as many calls as it may"))))
            return
        try:
            with self._turns.taken(lambda: _hung_up(line)):
                answer = self._worked(method, arguments, keywords)
            send_all(line, answer)
        finally:
            with self._changed:
                self.under_way -= 1

    def _worked(self, method: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Parts:
        try:
            answer = True, self._methods[method](*arguments, **keywords)
        except Exception as error:  # noqa: BLE001 - it is raised where the call was made
            answer = False, error
        return _framed(answer)


def _hear_no_more(line: socket.socket) -> None:
    with contextlib.suppress(OSError):  # its caller has gone
        line.shutdown(socket.SHUT_RD)


def _hung_up(line: socket.socket) -> bool:
    watch = select.poll()
    watch.register(line, 0)
    return any(events & select.POLLHUP for _, events in watch.poll(0))
