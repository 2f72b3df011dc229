"""What must hold before a server is started. Each failure is one ResourceShortage or NotReady that says the fix."""

from __future__ import annotations

import errno
import fcntl
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from serve_app.errors import InvalidInput, NotReady, ResourceShortage
from serve_app.release.registry import current_release
from serve_app.settings import Settings

__all__ = ["check_machine", "check_port", "folder_lock"]

_PYTHON = (3, 11)
_PROCESS_MB = {"chain": 8 * 220 + 900, "fused": 3 * 300 + 900}  # replicas, Ray's own processes, object store
_DISK_MB = 512


def check_machine(settings: Settings) -> None:
    """Python, memory, disk, port, and a release to serve."""
    if sys.version_info < _PYTHON:
        wanted, found = ".".join(map(str, _PYTHON)), ".".join(map(str, sys.version_info[:3]))
        raise ResourceShortage(f"Python {wanted} or newer is needed, this is {found}", field="python")
    if not settings.data.is_dir():
        raise InvalidInput(
            "there is no such folder", field=str(settings.data), hint="make one with hindcast world or hindcast import"
        )
    current_release(settings.data)
    free_mb = psutil.virtual_memory().available // 2**20
    needed_mb = _PROCESS_MB[settings.topology]
    if free_mb < needed_mb:
        raise ResourceShortage(
            f"{free_mb} MB of memory are free, about {needed_mb} MB are needed",
            field="memory",
            hint="end other programs, or set HINDCAST_TOPOLOGY=fused",
        )
    disk_mb = shutil.disk_usage(settings.data).free // 2**20
    if disk_mb < _DISK_MB:
        raise ResourceShortage(
            f"{disk_mb} MB are free on its disk, {_DISK_MB} MB are needed", field=str(settings.data), hint="make room"
        )
    for host in dict.fromkeys((settings.http.host, settings.http.inner_host)):
        check_port(host, settings.http.port)


def check_port(host: str, port: int) -> None:
    """Raise ResourceShortage where the port cannot be bound."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            raise ResourceShortage(
                f"port {port} on {host} is in use" if taken else f"{host}:{port} cannot be bound: {error.strerror}",
                field="http.port",
                hint="choose another with --port" if taken else "see http.host and http.port",
            ) from None


@contextmanager
def folder_lock(data: Path) -> Iterator[None]:
    """Hold the data folder for one server. NotReady where another one has it."""
    path = data / "run" / "server.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise NotReady(
                "another server runs on this data folder", field=str(data), hint="hindcast status; hindcast down"
            ) from None
        yield
