"""redis-server processes for benchmarks: on loopback, in their own folder, durable before they answer, gone at the end."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

__all__ = ["redis_cluster", "redis_server"]

_PATIENCE_S = 30.0


def _free_port() -> int:
    """A free port whose cluster bus port (10,000 above) is free too."""
    while True:
        with socket.socket() as bus, socket.socket() as own:
            bus.bind(("127.0.0.1", 0))
            port = int(bus.getsockname()[1]) - 10_000
            try:
                own.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


@contextmanager
def redis_server(folder: Path, *options: str) -> Iterator[list[str]]:
    """One server; gives its URL in a list."""
    folder.mkdir(parents=True)
    port = _free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    command += ["--appendonly", "yes", "--appendfsync", "always", "--auto-aof-rewrite-percentage", "0", *options]
    with open(folder / "server.log", "ab") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            client = Redis(port=port)
            deadline = time.monotonic() + _PATIENCE_S
            while True:
                try:
                    client.ping()
                    break
                except RedisError:
                    if time.monotonic() > deadline or process.poll() is not None:
                        raise
                    time.sleep(0.02)
            yield [f"redis://127.0.0.1:{port}/0"]
        finally:
            process.terminate()


@contextmanager
def redis_cluster(folder: Path) -> Iterator[list[str]]:
    """Three primaries; gives their URLs."""
    with ExitStack() as stack:
        one = [stack.enter_context(redis_server(folder / f"node{k}", "--cluster-enabled", "yes"))[0] for k in range(3)]
        nodes = [url.removeprefix("redis://").removesuffix("/0") for url in one]
        create = ["redis-cli", "--cluster", "create", *nodes, "--cluster-yes"]
        subprocess.run(create, check=True, capture_output=True, timeout=60)
        deadline = time.monotonic() + _PATIENCE_S
        while any(Redis.from_url(url).cluster("info")["cluster_state"] != "ok" for url in one):
            if time.monotonic() > deadline:
                raise TimeoutError("the Redis cluster did not form")
            time.sleep(0.05)
        yield one
