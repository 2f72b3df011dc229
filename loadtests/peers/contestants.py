"""Servers to compare: how each is started on a port, and stopped with all it started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from loadtests.decide_server import served
from serve_app.running.switches import free_port

__all__ = ["CONTESTANTS", "Contestant", "Place", "started"]

_READY_S = 240.0
_END_S = 60.0


@dataclass(frozen=True)
class Place:
    """Where the release is, a data folder for who keeps a log, and the peers' Python (None: not set up)."""

    data: Path
    release: Path
    scratch: Path
    peers: Path | None


@dataclass(frozen=True)
class Contestant:
    """One server. command: of a peer; ours are started by `hindcast up` with `topology` and `environment`."""

    name: str
    words: str
    command: Callable[[Place, int], list[str]] | None = None
    topology: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    needs_peers: bool = False


def _module(name: str, *extra: str) -> Callable[[Place, int], list[str]]:
    return lambda place, port: [sys.executable, "-m", f"loadtests.peers.{name}", str(place.release), str(port), *extra]


def _full(place: Place, port: int) -> list[str]:
    return [*_module("full_fastapi")(place, port), str(place.scratch)]


def _bento(place: Place, port: int) -> list[str]:
    assert place.peers is not None
    return [str(place.peers.parent / "bentoml"), "serve", "loadtests.peers.bento:Front", "--port", str(port)]


_TWO = {"HINDCAST_DEPLOYMENTS__INGRESS__MIN_REPLICAS": "2", "HINDCAST_DEPLOYMENTS__INGRESS__MAX_REPLICAS": "2"}
CONTESTANTS = (
    Contestant("lean", "FastAPI + uvicorn, one process, leanest", _module("lean_fastapi")),
    Contestant("full", "FastAPI + uvicorn, one process, with log, auth, validation", _full),
    Contestant("naive", "Ray Serve chain, default settings", _module("naive_serve")),
    Contestant("bento", "BentoML services", _bento, needs_peers=True),
    Contestant("fused", "Hindcast, fused", topology="fused"),
    Contestant("fused-2", "Hindcast, fused, two replicas", topology="fused", environment=_TWO),
    Contestant("chain", "Hindcast, chain", topology="chain"),
)


@contextmanager
def started(one: Contestant, place: Place) -> Iterator[int]:
    """The contestant's port once it answers; everything it started is ended."""
    if one.command is None:
        with served(place.data, dict(one.environment), one.topology) as server:
            yield server.port
        return
    port = free_port()
    command = one.command(place, port)
    log = place.scratch / f"{one.name}.log"
    environment = {**os.environ, "RELEASE": str(place.release), "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    with log.open("wb") as lines:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=lines, stderr=lines, env=environment)
        try:
            _await(process, port, log)
            yield port
        finally:
            _end(process)


def _await(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"it ended while it started:\n{log.read_text(errors='replace')[-2000:]}")
        with suppress(httpx.HTTPError):
            if httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5.0).status_code == 200:
                return
        time.sleep(0.2)
    raise RuntimeError(f"not ready within {_READY_S:g} s")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Its standard input ends, then it is asked, then made to; and so are its children."""
    with suppress(psutil.NoSuchProcess):
        below = psutil.Process(process.pid).children(recursive=True)
    if process.stdin is not None:
        process.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        process.wait(5)
    for number in (signal.SIGINT, signal.SIGKILL):
        if process.poll() is None:
            process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_END_S)
    for child in below:
        with suppress(psutil.NoSuchProcess):
            child.kill()
