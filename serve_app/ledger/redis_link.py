"""One Redis node: its connections, what it must promise, and what became of each command sent to it.

A command either was not executed (no connection, not sent to its end, refused by the server) or was answered, or its
outcome is unknown (sent, and the connection broke or fell silent before its reply). The first is LedgerUnavailable, the
last OutcomeUnknown for a write. Nothing is sent twice here.

A node that broke or fell silent is asked by one caller at a time until it answers again; the others are told at once, so
that no threads pile up before a server that hangs. Settings that an operator changes are noticed at each new connection, and
within a second on old ones.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    ExecAbortError,
    MovedError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)

from serve_app.errors import LedgerUnavailable, NotReady, OutcomeUnknown
from serve_app.ledger.redis_keys import Command, command

__all__ = ["ELSEWHERE", "Exchange", "Link", "require_settings", "told"]

ELSEWHERE = (MovedError, AskError, ReadOnlyError, TryAgainError)
"""Refusals that another node, or the same a moment later, may not give."""
_REFUSED = (
    *ELSEWHERE,
    NoScriptError,
    ClusterDownError,
    ExecAbortError,
    BusyLoadingError,
    OutOfMemoryError,
    AuthenticationError,
    NoPermissionError,
)
_REFUSED_WORDS = ("MISCONF", "NOREPLICAS", "BUSY", "NOAUTH", "MASTERDOWN")  # codes redis-py has no class for
_WANTED = {b"appendonly": b"yes", b"appendfsync": b"always", b"maxmemory-policy": b"noeviction"}
_ASK_SETTINGS = command("CONFIG", "GET", "append*").data + command("CONFIG", "GET", "maxmemory-policy").data
_CHECK_EVERY_S = 1.0
_PATIENCE_S = 0.1
_TOGETHER = 1 << 16
_SCAN = 5_000


def require_settings(found: dict[bytes, bytes], *, weaker: bool) -> None:
    """NotReady, with the fix, when a server with these settings could forget an answered grant (weaker: could evict it)."""
    for name, value in _WANTED.items():
        if found.get(name) != value and (name == b"maxmemory-policy" or not weaker):
            hint = f"set `{name.decode()} {value.decode()}` in redis.conf"
            if name != b"maxmemory-policy":
                hint += ', or accept losing grants with require="weaker"'
            raise NotReady(f"Redis has {name.decode()} {found.get(name, b'?').decode()}", field="ledger", hint=hint)


def told(reply: Any, *, write: bool) -> Any:
    """A reply; the server's refusal or failure in the ledger's words."""
    if not isinstance(reply, RedisError):
        return reply
    refused = isinstance(reply, _REFUSED) or str(reply).startswith(_REFUSED_WORDS)
    kind = LedgerUnavailable if refused or not write else OutcomeUnknown
    return kind(f"Redis refused: {reply}" if refused else f"Redis failed: {reply}")


def _read(connection: Any) -> Any:
    """The next reply; errors the server answered with are replies, others are raised."""
    try:
        return connection.read_response(disable_decoding=True, disconnect_on_error=False)
    except (ResponseError, BusyLoadingError) as error:
        return error


def _answer(connection: Any, sent: Command) -> Any:
    """The reply to a command, after those to the commands that prepare it."""
    if not sent.lead:
        return _read(connection)
    lead = [_read(connection) for _ in range(sent.lead)]
    reply = _read(connection)
    if isinstance(reply, RedisError):
        return next((one for one in lead if isinstance(one, RedisError)), reply)  # why, and not only that
    return reply[-1] if sent.atomic else reply


class Link:
    """A node. `connect()` makes a connection object (redis-py's), not yet connected; `write_confirmed`: (replicas, ms) that
    each write waits for, or None."""

    def __init__(
        self, name: str, connect: Callable[[], Any], *, weaker: bool, write_confirmed: tuple[int, int] | None = None
    ) -> None:
        self.name = name
        self._connect, self._weaker, self._confirmed = connect, weaker, write_confirmed
        self._idle: list[Any] = []
        self._broken = False
        self._probe = threading.Lock()
        self._checked_at = float("-inf")

    @property
    def broken(self) -> bool:
        """It did not answer when it was last asked."""
        return self._broken

    def close(self) -> None:
        """Drop connections not in use."""
        while self._idle:
            self._idle.pop().disconnect()

    def ask(self, *arguments: bytes | str | float) -> Any:
        """The reply to one command that writes nothing; raises LedgerUnavailable."""
        (reply,) = self.begin([command(*arguments)], write=False).finish()
        answer = told(reply, write=False)
        if isinstance(answer, LedgerUnavailable):
            raise answer
        return answer

    def scan(self, pattern: str) -> Iterator[bytes]:
        """Keys of this node, some perhaps twice."""
        cursor = b"0"
        while True:
            cursor, keys = self.ask("SCAN", cursor, "MATCH", pattern, "COUNT", _SCAN)
            yield from keys
            if cursor == b"0":
                return

    def begin(self, commands: Sequence[Command], *, write: bool) -> Exchange:
        """Send commands; their replies are read by `Exchange.finish`. Raises LedgerUnavailable: nothing was sent."""
        connection = self._ready()
        exchange = Exchange(self, connection, commands, write, self._confirmed if write else None)
        sent = [one.data for one in commands]
        if exchange.confirmed:
            sent.append(command("WAIT", *exchange.confirmed).data)
        try:
            connection.send_packed_command(_joined(sent), check_health=False)
        except (RedisError, OSError) as error:
            # The last command did not leave to its end, so it cannot have been executed.
            exchange.broke(error, sent_whole=max(0, len(commands) - 1) if not exchange.confirmed else len(commands))
        return exchange

    def failed(self, connection: Any) -> None:
        """The connection broke or fell silent: all are suspect until the node answers again."""
        connection.disconnect()
        self._broken = True
        self.close()

    def give_back(self, connection: Any) -> None:
        """Keep the connection for the next call."""
        self._idle.append(connection)

    def _ready(self) -> Any:
        if not self._broken:
            return self._connected()
        if not self._probe.acquire(timeout=_PATIENCE_S):
            raise LedgerUnavailable(f"Redis at {self.name} does not answer", hint="it is being asked again; retry")
        try:
            connection = self._connected(check=self._broken)
            self._broken = False
            return connection
        finally:
            self._probe.release()

    def _connected(self, *, check: bool = False) -> Any:
        """A connection to a server whose settings are known to be right."""
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._connect()
        try:
            if connection.is_connected and _stale(connection):
                connection.disconnect()
            if not connection.is_connected:
                connection.connect()
                check = True
            if check or time.monotonic() - self._checked_at > _CHECK_EVERY_S:
                self._check(connection)
        except NotReady as error:
            connection.disconnect()
            raise LedgerUnavailable(f"{error.message}: nothing is granted on it", hint=error.hint) from error
        except (RedisError, OSError) as error:
            self.failed(connection)
            raise LedgerUnavailable(f"Redis at {self.name} cannot be reached: {error}") from error
        return connection

    def _check(self, connection: Any) -> None:
        connection.send_packed_command([_ASK_SETTINGS], check_health=False)
        found: dict[bytes, bytes] = {}
        for reply in [_read(connection), _read(connection)]:
            if isinstance(reply, RedisError):
                raise NotReady(f"Redis does not tell its settings: {reply}", field="ledger", hint="allow it CONFIG GET")
            found |= dict(zip(reply[::2], reply[1::2], strict=True))
        require_settings(found, weaker=self._weaker)
        self._checked_at = time.monotonic()


class Exchange:
    """Commands sent to one node, their replies to come."""

    def __init__(
        self, link: Link, connection: Any, commands: Sequence[Command], write: bool, confirmed: tuple[int, int] | None
    ) -> None:
        self.confirmed = confirmed
        self._link, self._connection, self._commands, self._write = link, connection, commands, write
        self._count = len(commands)
        self._replies: list[Any] = []
        self._done = False

    def broke(self, error: Exception, sent_whole: int) -> None:
        """The connection is gone; of the commands without a reply, those from number `sent_whole` on were not executed."""
        self._link.failed(self._connection)
        self._done = True
        text = f"the connection to Redis broke: {error}"
        unknown = OutcomeUnknown if self._write else LedgerUnavailable
        self._replies += [unknown(text, hint="retry the same key") for _ in range(len(self._replies), sent_whole)]
        self._replies += [LedgerUnavailable(text) for _ in range(len(self._replies), self._count)]

    def finish(self) -> list[Any]:
        """One reply a command; where there is none, a LedgerUnavailable (not executed) or OutcomeUnknown in its place."""
        if self._done:
            return self._replies
        try:
            for one in self._commands:
                self._replies.append(_answer(self._connection, one))
            if self.confirmed:
                self._confirm(_read(self._connection), self.confirmed[0])
        except (RedisError, OSError) as error:
            if self.confirmed and len(self._replies) == self._count:  # executed, but who has it besides this server?
                self._confirm(error, self.confirmed[0])
            self.broke(error, self._count)
        except BaseException:
            self._link.failed(self._connection)
            raise
        else:
            self._link.give_back(self._connection)
        return self._replies

    def _confirm(self, reply: Any, replicas: int) -> None:
        if not isinstance(reply, int) or reply < replicas:
            text = f"fewer than {replicas} replicas confirmed the write"
            answer = OutcomeUnknown(text, hint="retry the same key")
            self._replies = [one if isinstance(one, RedisError) else answer for one in self._replies]


def _stale(connection: Any) -> bool:
    """The server has closed it, or something unasked lies in it."""
    try:
        return bool(connection.can_read(timeout=0))
    except (RedisError, OSError):
        return True


def _joined(commands: list[bytes]) -> list[bytes]:
    """Small commands in few buffers; large ones uncopied."""
    out: list[bytes] = []
    small: list[bytes] = []
    size = 0
    for one in commands:
        if len(one) >= _TOGETHER:
            out += [b"".join(small), one] if small else [one]
            small, size = [], 0
        else:
            small.append(one)
            size += len(one)
            if size >= _TOGETHER:
                out.append(b"".join(small))
                small, size = [], 0
    return [*out, b"".join(small)] if small else out
