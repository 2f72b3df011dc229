"""Routing commands to one Redis server or to the nodes of a cluster: all nodes work at the same time.

Where a node says that a slot lies elsewhere, or is being moved, or that it has forgotten a script, it has executed nothing,
and the command is sent again a few times.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from redis import ConnectionPool
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import NoScriptError, RedisError
from redis.retry import Retry

from serve_app.errors import LedgerUnavailable, NotReady, OutcomeUnknown
from serve_app.ledger.redis_keys import SHARDS, Command, Script, command
from serve_app.ledger.redis_link import ELSEWHERE, Link, told

__all__ = ["Wire", "checked"]

_SLOTS = [key_slot(b"%03d" % shard) for shard in range(SHARDS)] + [key_slot(b"catalogue")]
_ATTEMPTS = 4
_PAUSE_S = 0.02


class Wire:
    """Routes commands by shard. `url`: redis:// or rediss:// of the server, or of any node of a cluster. weaker: take a
    server that may lose answered writes; replicas: how many must confirm each write."""

    def __init__(self, url: str, *, timeout_s: float, replicas: int, weaker: bool) -> None:
        options = {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s, "protocol": 2}
        self._pool = ConnectionPool.from_url(url, retry=Retry(NoBackoff(), 0), **options)
        self._closed = False
        self._weaker = weaker
        self._confirmed = (replicas, int(timeout_s * 700)) if replicas else None
        self._links: dict[tuple[str, int] | None, Link] = {}
        self._lock = threading.Lock()
        self._seed = self._link(None)
        try:
            self.clustered = b"cluster_enabled:1" in self._seed.ask("INFO", "cluster")
            self._owners = [self._seed] * len(_SLOTS)
            if self.clustered:
                self._learn()
            for link in self.primaries():
                self._require_replicas(link, replicas)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Drop all connections; `run` refuses from now on."""
        self._closed = True
        for link in self._links.values():
            link.close()

    def primaries(self) -> list[Link]:
        """The node, or those that own slots of ours."""
        return list(dict.fromkeys(self._owners))

    def run(self, commands: Sequence[Command], routes: Sequence[int], *, write: bool) -> list[Any]:
        """One reply per command; `routes[i]` is the shard of commands[i], or CATALOGUE.

        A command that no node executed has a LedgerUnavailable in its place, one that may or may not have been executed (or
        failed half-way) an OutcomeUnknown. Raises LedgerUnavailable when none was executed.
        """
        if self._closed:
            raise LedgerUnavailable("the ledger is closed")
        replies: list[Any] = [None] * len(commands)
        waiting = list(range(len(commands)))
        for attempt in range(_ATTEMPTS):
            self._exchange(commands, routes, waiting, replies, write=write)
            waiting = [i for i in waiting if isinstance(replies[i], (NoScriptError, *ELSEWHERE))]
            if not waiting or attempt == _ATTEMPTS - 1:
                break
            self._mend(commands, routes, waiting, replies)
            if attempt:
                threading.Event().wait(_PAUSE_S * 2**attempt)
        replies = [told(reply, write=write) for reply in replies]
        if replies and all(isinstance(reply, LedgerUnavailable) for reply in replies):
            raise replies[0]
        return replies

    def every_shard(self, commands: Sequence[Command], *, write: bool) -> list[Any]:
        """commands[shard] on every shard; raises when any of them fails."""
        return [checked(reply) for reply in self.run(commands, range(SHARDS), write=write)]

    def _exchange(
        self, commands: Sequence[Command], routes: Sequence[int], waiting: list[int], replies: list[Any], *, write: bool
    ) -> None:
        """Send to every node before reading from any."""
        groups: dict[Link, list[int]] = {}
        for index in waiting:
            groups.setdefault(self._owners[routes[index]], []).append(index)
        sent = []
        lost = False
        for link, group in groups.items():
            try:
                sent.append((group, link.begin([commands[i] for i in group], write=write)))
            except LedgerUnavailable as error:
                lost = True
                for index in group:
                    replies[index] = error
        for group, exchange in sent:
            for index, reply in zip(group, exchange.finish(), strict=True):
                replies[index] = reply
                lost = lost or isinstance(reply, LedgerUnavailable | OutcomeUnknown)
        if lost and self.clustered:
            self._learn_or_wait()

    def _mend(self, commands: Sequence[Command], routes: Sequence[int], waiting: list[int], replies: list[Any]) -> None:
        """Load scripts that a server has forgotten; learn where slots have moved."""
        missing: dict[Link, dict[str, Script]] = {}
        for index in waiting:
            script = commands[index].script
            if isinstance(replies[index], NoScriptError) and script is not None:
                missing.setdefault(self._owners[routes[index]], {})[script.sha] = script
        for link, scripts in missing.items():
            load = [command("SCRIPT", "LOAD", script.text) for script in scripts.values()]
            try:
                link.begin(load, write=False).finish()
            except LedgerUnavailable:
                continue  # told when the commands are sent again
        if any(isinstance(replies[index], ELSEWHERE) for index in waiting):
            self._learn_or_wait()

    def _learn_or_wait(self) -> None:
        try:
            self._learn()
        except LedgerUnavailable:
            return  # nobody answers: the next call tries again

    def _learn(self) -> None:
        """Ask the nodes, until one answers, who owns the slots."""
        if not self._lock.acquire(blocking=False):
            return  # another call is asking
        try:
            last = LedgerUnavailable("no node of the Redis cluster answers")
            for link in sorted(dict.fromkeys((*self.primaries(), *self._links.values())), key=lambda one: one.broken):
                try:
                    self._owners = self._owners_of(link.ask("CLUSTER", "SLOTS"), link)
                    return
                except LedgerUnavailable as error:
                    last = error
            raise last
        finally:
            self._lock.release()

    def _owners_of(self, ranges: list[Any], answering: Link) -> list[Link]:
        links: list[Link | None] = [None] * len(_SLOTS)
        for first, last, primary, *_ in ranges:
            host, port = primary[0].decode() if primary[0] else "", int(primary[1])
            link = self._link((host, port)) if host else answering
            for place, slot in enumerate(_SLOTS):
                if first <= slot <= last:
                    links[place] = link
        owners = [link for link in links if link is not None]
        if len(owners) < len(links):
            raise LedgerUnavailable("the Redis cluster has no node for some users", hint="assign all its slots")
        return owners

    def _link(self, address: tuple[str, int] | None) -> Link:
        """The link to a node; None is the node of the url."""
        if address not in self._links:
            own = dict(self._pool.connection_kwargs)
            if address is not None:
                own |= {"host": address[0], "port": address[1]}
            name = f"{own.get('host', own.get('path', '?'))}:{own.get('port', '')}".rstrip(":")
            make = self._pool.connection_class
            link = Link(name, lambda: make(**own), weaker=self._weaker, write_confirmed=self._confirmed)
            self._links[address] = link
        return self._links[address]

    @staticmethod
    def _require_replicas(link: Link, replicas: int) -> None:
        lines = link.ask("INFO", "replication").decode().splitlines()
        online = sum(line.startswith("slave") and "state=online" in line for line in lines)
        if online < replicas:
            raise NotReady(f"a Redis primary has {online} replicas, {replicas} must confirm", field="ledger.replicas")


def checked(reply: Any) -> Any:
    """The reply, raised if it is an error."""
    if isinstance(reply, LedgerUnavailable | OutcomeUnknown | RedisError):
        raise reply
    return reply
