"""A server of its own for a benchmark: started by `hindcast up`, watched by process, stopped with all it started."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil

from serve_app.running.switches import free_port

__all__ = ["Served", "cpu_seconds", "served"]

_READY_S = 240.0
_END_S = 60.0
_KINDS = ("haproxy", "raylet", "gcs_server", "redis-server", "ServeController", "HAProxyManager", "Proxy", "hindcast")


class Served:
    """Where the server is, and its processes."""

    def __init__(self, port: int, process: psutil.Process) -> None:
        self.port, self.process = port, process

    def cpu(self) -> dict[str, float]:
        """Processor seconds so far, by kind of process; a Redis this process started is counted too."""
        out = cpu_seconds(self.process)
        for one in psutil.Process().children():
            if one.name() == "redis-server":
                out |= cpu_seconds(one)
        return out


def cpu_seconds(root: psutil.Process) -> dict[str, float]:
    """User and system seconds of `root` and all below it, by name."""
    out: defaultdict[str, float] = defaultdict(float)
    for one in (root, *root.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            times = one.cpu_times()
            out[_name(one)] += times.user + times.system
    return dict(out)


def _name(process: psutil.Process) -> str:
    line = " ".join(process.cmdline())
    if replica := re.search(r"ServeReplica:\w+:(\w+)", line):
        return replica[1]
    for name in (
        "haproxy",
        "raylet",
        "gcs_server",
        "redis-server",
        "ServeController",
        "HAProxyManager",
        "Proxy",
        "hindcast",
    ):
        if name in line:
            return name
    return "ray"


@contextmanager
def served(data: Path, environment: dict[str, str], topology: str, tree: Path | None = None) -> Iterator[Served]:
    """`hindcast up` on a free port, of this code or of that in `tree`; gives it when it is ready."""
    port = free_port()
    place = ["--data", str(data.absolute()), "--port", str(port)]
    command = [sys.executable, "-m", "hindcast", "up", *place, "--topology", topology]
    imports = {} if tree is None else {"PYTHONPATH": str(tree)}  # Ray's workers begin elsewhere
    own = {**os.environ, **imports, **environment}
    log = data / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=own, cwd=tree)
        try:
            _await(port, process, log)
            yield Served(port, psutil.Process(process.pid))
        finally:
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_END_S)
            if process.poll() is None:
                process.kill()


def _await(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended while it started:\n{log.read_text(errors='replace')[-3000:]}")
        with suppress(httpx.HTTPError, json.JSONDecodeError):
            if httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5.0).json().get("status") == "ready":
                return
        time.sleep(0.2)
    raise RuntimeError(f"the server was not ready within {_READY_S:g} s")
