"""Speaking to Redis: whole batches per round trip, to one server or to a cluster, and errors that say what happened.

A command either was not executed (no connection, refused by the server, moved elsewhere) or its outcome is unknown (the
connection broke after sending began). The first is retried where another node may answer, or told as LedgerUnavailable;
the second is never retried here: writes raise OutcomeUnknown.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any

from redis import ConnectionPool, Redis, RedisCluster
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    ClusterError,
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

from serve_app.errors import LedgerUnavailable, OutcomeUnknown
from serve_app.ids import BUCKETS

__all__ = ["CATALOGUE", "Command", "Script", "Wire", "checked"]

Command = tuple[Any, ...]
CATALOGUE = BUCKETS
"""The tag number of the catalogue log's keys, beside the buckets."""
_SLOTS = [key_slot(b"%d" % bucket) for bucket in range(BUCKETS)] + [key_slot(b"catalogue")]
_ELSEWHERE = (MovedError, AskError, ReadOnlyError, TryAgainError)
_REFUSED = (
    *_ELSEWHERE,
    NoScriptError,
    ClusterDownError,
    BusyLoadingError,
    OutOfMemoryError,
    AuthenticationError,
    NoPermissionError,
    ExecAbortError,
)
_REFUSED_WORDS = ("MISCONF", "NOREPLICAS", "BUSY", "NOAUTH")  # codes redis-py has no class for
_ATTEMPTS = 4


class Script:
    """A Lua file of this package; `call` gives a command."""

    def __init__(self, name: str) -> None:
        self.text = resources.files("serve_app.ledger").joinpath(name).read_text(encoding="utf-8")
        self.sha = Redis().register_script(self.text).sha

    def call(self, keys: Sequence[str], *arguments: Any) -> Command:
        """EVALSHA with `keys` and `arguments`."""
        return ("EVALSHA", self.sha, len(keys), *keys, *arguments)


class Wire:
    """Routes commands by bucket. `url`: redis:// or rediss:// of the server, or of any node of a cluster."""

    def __init__(self, url: str, scripts: Sequence[Script], *, timeout_s: float, replicas: int) -> None:
        self._scripts = {script.sha: script.text for script in scripts}
        self._closed = False
        self._replicas, self._wait_ms = replicas, int(timeout_s * 700)
        options = {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s, "protocol": 2}
        self._single = Redis.from_url(url, **options)
        try:
            clustered = self._single.info("cluster").get("cluster_enabled") == 1
            self._cluster = RedisCluster.from_url(url, **options) if clustered else None
        except (RedisError, OSError) as error:
            self._single.close()
            raise LedgerUnavailable(f"Redis cannot be reached: {error}", hint="check the ledger's url") from error

    def close(self) -> None:
        """Drop all connections; `run` refuses from now on."""
        self._closed = True
        self._single.close()
        if self._cluster is not None:
            self._cluster.close()

    def primaries(self) -> list[Redis]:
        """A client of each primary."""
        if self._cluster is None:
            return [self._single]
        nodes: list[Any] = self._cluster.get_primaries()  # type: ignore[no-untyped-call]
        return [self._cluster.get_redis_connection(node) for node in nodes]

    def run(self, commands: Sequence[Command], buckets: Sequence[int], *, write: bool) -> list[Any]:
        """One reply per command; `buckets[i]` routes commands[i].

        A command that no node executed has a LedgerUnavailable in its place, a write that failed half-way (a script's
        error) an OutcomeUnknown. Raises LedgerUnavailable when none was executed, OutcomeUnknown when a connection broke
        under a write (LedgerUnavailable under a read).
        """
        if self._closed:
            raise LedgerUnavailable("the ledger is closed")
        replies: list[Any] = [None] * len(commands)
        waiting = list(range(len(commands)))
        for attempt in range(_ATTEMPTS):
            missing: set[str] = set()
            retry: list[int] = []
            for pool, group in self._grouped(waiting, buckets).items():
                for index, reply in zip(group, self._node(pool, [commands[i] for i in group], write=write), strict=True):
                    replies[index] = reply
                    if isinstance(reply, NoScriptError):
                        missing.add(commands[index][1])
                        retry.append(index)
                    elif isinstance(reply, _ELSEWHERE):
                        retry.append(index)
            if not retry or attempt == _ATTEMPTS - 1:
                break
            self._refresh(missing)
            waiting = retry
        replies = [_told(reply, write=write) for reply in replies]
        if replies and all(isinstance(reply, LedgerUnavailable) for reply in replies):
            raise replies[0]
        return replies

    def all_buckets(self, command_of: Callable[[str], Command], *, write: bool) -> list[Any]:
        """`command_of(counter key)` on every bucket; raises when any of them fails."""
        commands = [command_of(f"hc:{{{bucket}}}:n") for bucket in range(BUCKETS)]
        return [checked(reply) for reply in self.run(commands, range(BUCKETS), write=write)]

    def _grouped(self, waiting: list[int], buckets: Sequence[int]) -> dict[ConnectionPool, list[int]]:
        if self._cluster is None:
            return {self._single.connection_pool: waiting} if waiting else {}
        groups: defaultdict[ConnectionPool, list[int]] = defaultdict(list)
        try:
            pools: dict[str, ConnectionPool] = {}
            for index in waiting:
                node = self._cluster.nodes_manager.get_node_from_slot(_SLOTS[buckets[index]])
                if node.name not in pools:
                    pools[node.name] = self._cluster.get_redis_connection(node).connection_pool
                groups[pools[node.name]].append(index)
        except (ClusterError, RedisError, OSError) as error:
            raise LedgerUnavailable(f"the Redis cluster has no node for a bucket: {error}") from error
        return groups

    def _node(self, pool: Any, commands: list[Command], *, write: bool) -> list[Any]:
        """Send all commands to one node, read all replies."""
        connection: Any  # redis-py leaves its connections half typed
        try:
            connection = pool.get_connection()
        except (RedisError, OSError) as error:
            self._forget_topology()
            return [LedgerUnavailable(f"Redis cannot be reached: {error}") for _ in commands]
        try:
            wait = [("WAIT", self._replicas, self._wait_ms)] if write and self._replicas else []
            together = write and self._cluster is None and len(commands) > 1
            sent = [("MULTI",), *commands, ("EXEC",), *wait] if together else [*commands, *wait]
            connection.send_packed_command(connection.pack_commands(sent), check_health=False)
            replies = _transaction(connection, len(commands)) if together else [_reply(connection) for _ in commands]
            if wait and int(checked(_reply(connection))) < self._replicas:
                raise OutcomeUnknown(f"fewer than {self._replicas} replicas confirmed the write", hint="retry the same key")
            return replies
        except (RedisError, OSError) as error:
            connection.disconnect()
            self._forget_topology()
            kind = OutcomeUnknown if write else LedgerUnavailable
            raise kind(f"the connection to Redis broke: {error}") from error
        finally:
            pool.release(connection)

    def _forget_topology(self) -> None:
        """Where a node is gone, ask the others who serves its buckets now (at the next call)."""
        if self._cluster is not None:
            try:
                self._cluster.nodes_manager.initialize()
            except (RedisError, OSError):
                return  # nobody answers: the next call tries again

    def _refresh(self, missing: set[str]) -> None:
        """Load scripts a server has forgotten; learn where slots have moved."""
        self._forget_topology()
        for client in self.primaries() if missing else ():
            try:
                for sha in missing:
                    client.script_load(self._scripts[sha])
            except (RedisError, OSError) as error:
                raise LedgerUnavailable(f"Redis cannot be reached: {error}") from error


def _transaction(connection: Any, count: int) -> list[Any]:
    """Replies inside MULTI and EXEC. One server syncs its file once for all of them, and not once per few kilobytes."""
    opened, *queued = [_reply(connection) for _ in range(count + 1)]
    outcome = _reply(connection)
    if isinstance(outcome, list):
        return outcome
    refusals = [reply for reply in (opened, *queued) if isinstance(reply, RedisError)]
    return [refusals[0] if refusals else outcome] * count


def _reply(connection: Any) -> Any:
    try:
        return connection.read_response(disable_decoding=True)
    except (ResponseError, BusyLoadingError) as error:
        return error


def _told(reply: Any, *, write: bool) -> Any:
    """A refusal, or a failure, in the ledger's words."""
    if not isinstance(reply, RedisError):
        return reply
    refused = isinstance(reply, _REFUSED) or str(reply).startswith(_REFUSED_WORDS)
    kind = LedgerUnavailable if refused or not write else OutcomeUnknown
    return kind(f"Redis refused: {reply}" if refused else f"Redis failed: {reply}")


def checked(reply: Any) -> Any:
    """The reply, raised if it is an error."""
    if isinstance(reply, LedgerUnavailable | OutcomeUnknown):
        raise reply
    return reply
