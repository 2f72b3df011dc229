"""Ledger backends for tests, and plans to commit."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from redis import Redis
from redis.exceptions import RedisError

from serve_app.batch import Batch, lengths_to_offsets
from serve_app.ledger.columns import HISTORY_DTYPE, CommitPlan, CommitResult, CommitStatus
from serve_app.ledger.memory import MemoryLedger
from serve_app.ledger.protocol import Ledger, LedgerSettings
from serve_app.ledger.record import pack_records
from serve_app.ledger.redis import RedisLedger
from serve_app.ledger.sqlite import SqliteLedger

NOW = 1_790_000_000_000_000
DAY = 86_400_000_000
KEY, OTHER_KEY = b"k" * 16, b"o" * 16
BODY, OTHER_BODY = b"b" * 16, b"c" * 16


def u64(*values: int) -> np.ndarray:
    return np.asarray(values, np.uint64)


def entry(at: int, request: int, slot: int = 0, *, campaign: int = 7, holdout: int = 0) -> np.ndarray:
    one = np.zeros(1, HISTORY_DTYPE)
    one["at"], one["request_id"], one["slot"], one["campaign"], one["holdout"] = at, request, slot, campaign, holdout
    return one


def plan(
    users: list[int],
    versions: list[int],
    requests: list[int],
    *,
    at: int = NOW,
    grants: int = 1,
    records: list[bytes] | None = None,
    **columns: Any,
) -> CommitPlan:
    """One row per user, each with `grants` history entries and the record b"r<request id>"."""
    rows = len(users)
    entries = [entry(at, request, slot) for request in requests for slot in range(grants)]
    return CommitPlan(
        u64(*users),
        np.asarray(versions, np.int64),
        np.full(rows, at, np.int64),
        np.concatenate(entries) if entries else np.empty(0, HISTORY_DTYPE),
        lengths_to_offsets(np.full(rows, grants)),
        records if records is not None else [b"r%d" % request for request in requests],
        u64(*requests),
        **columns,
    )


def real_record(user: int, request: int) -> bytes:
    """A well-formed record without candidates."""
    return pack_records(Batch.of_requests(user=u64(user), request_id=u64(request)))[0]


def commit_one(ledger: Ledger, user: int, request: int, **columns) -> CommitResult:
    """Commit a grant on the version the user has now."""
    version = int(ledger.read(u64(user)).versions[0])
    return ledger.commit(plan([user], [version], [request], **columns))


@dataclass
class Backend:
    """A way to open one ledger again and again."""

    name: str
    open: Callable[..., Ledger]
    persistent: bool
    empty: Callable[[], Any] = lambda: None


def free_port() -> int:
    """A free port whose cluster bus port (10,000 above) is free too."""
    while True:
        with socket.socket() as probe, socket.socket() as bus:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1]) - 10_000
            try:
                bus.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue


def memory_backend() -> Backend:
    return Backend("memory", lambda settings=None: MemoryLedger(settings or LedgerSettings()), persistent=False)


def sqlite_backend(folder: Path) -> Backend:
    path = folder / "ledger.sqlite"
    return Backend("sqlite", lambda settings=None: SqliteLedger(path, settings, durability="process"), persistent=True)


class RedisServer:
    """A redis-server of this test, on loopback, with its own folder."""

    def __init__(self, folder: Path, *options: str, durable: bool = True) -> None:
        self.folder, self.port = folder, free_port()
        folder.mkdir(parents=True, exist_ok=True)
        fsync = ("--appendonly", "yes", "--appendfsync", "always") if durable else ()
        self._command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
        self._command += [*fsync, *options]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    def start(self, *options: str, wait: bool = True) -> None:
        """Start, with further options this time; wait until it serves."""
        with open(self.folder / "server.log", "ab") as log:
            self._process = subprocess.Popen([*self._command, *options], stdout=log, stderr=log)
        if not wait:
            return
        self.client = Redis.from_url(self.url, retry=None)
        deadline = time.monotonic() + 20
        while True:
            try:
                self.client.ping()
                return
            except RedisError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise
                threading.Event().wait(0.02)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """The server takes bytes and does nothing with them."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """kill -9."""
        self._process.kill()
        self._process.wait()
        self.client.close()


def require_redis() -> None:
    if shutil.which("redis-server") is None:
        pytest.skip("needs the redis-server binary (apt-get install redis-server)")


@contextmanager
def redis_backend(folder: Path) -> Iterator[Backend]:
    require_redis()
    server = RedisServer(folder / "redis")
    try:
        yield Backend("redis", lambda settings=None: RedisLedger(server.url, settings), True, server.client.flushall)
    finally:
        server.kill()


@contextmanager
def redis_cluster_backend(folder: Path) -> Iterator[Backend]:
    """Three primaries on loopback."""
    require_redis()
    servers = [RedisServer(folder / f"node{k}", "--cluster-enabled", "yes") for k in range(3)]
    try:
        nodes = [f"127.0.0.1:{server.port}" for server in servers]
        create = ["redis-cli", "--cluster", "create", *nodes, "--cluster-yes"]
        subprocess.run(create, check=True, capture_output=True, timeout=60)
        deadline = time.monotonic() + 30
        while any(server.client.cluster("info")["cluster_state"] != "ok" for server in servers):
            assert time.monotonic() < deadline, "the cluster did not form"
            threading.Event().wait(0.05)

        def empty() -> None:
            for server in servers:
                server.client.flushall()

        yield Backend("redis-cluster", lambda settings=None: RedisLedger(servers[0].url, settings), True, empty)
    finally:
        for server in servers:
            server.kill()


def reopened(backend: Backend, ledger: Ledger, settings: LedgerSettings | None = None) -> Ledger:
    """What the next process sees of a ledger."""
    if not backend.persistent:
        pytest.skip("the memory ledger ends with its process")
    ledger.close()
    return backend.open(settings)


def status_of(result: CommitResult) -> list[str]:
    return [CommitStatus(value).name for value in result.status]
