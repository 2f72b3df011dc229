"""`hindcast up`, `status` and `down`, as a person uses them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from serve_app.running.switches import free_port
from tests.cluster.server_support import data_copy

pytestmark = pytest.mark.ray
HINDCAST = [sys.executable, "-m", "hindcast"]


def environment(**more: str) -> dict[str, str]:
    """Without the switches of the session's own Ray: they name ports and files that are taken."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | more


def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    command = [*HINDCAST, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment(**more))


class Up:
    """A running `hindcast up`: its process, its screen, and every process it started."""

    def __init__(self, data: Path, port: int) -> None:
        command = [*HINDCAST, "up", "--data", str(data), "--port", str(port), "--topology", "fused"]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment()
        )
        self.lines: list[str] = []
        self.ready = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()
        self.ready.wait(240)
        self.started = psutil.Process(self.process.pid).children(recursive=True) if self.process.poll() is None else []

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if "Ctrl-C stops everything" in line:
                self.ready.set()
        self.ready.set()

    @property
    def screen(self) -> str:
        return "".join(self.lines)


@contextmanager
def up(data: Path, port: int) -> Iterator[Up]:
    made = Up(data, port)
    try:
        assert made.process.poll() is None, made.screen
        yield made
    finally:
        if made.process.poll() is None:
            made.process.send_signal(signal.SIGTERM)
            made.process.wait(90)


@pytest.fixture
def data(demo_release: Path, tmp_path: Path) -> Path:
    return data_copy(demo_release, tmp_path / "data")


def test_the_screen_tells_the_truth_and_ctrl_c_leaves_nothing(data: Path) -> None:
    port = free_port()
    with up(data, port) as made:
        assert f"http://127.0.0.1:{port}/docs" in made.screen
        assert str(data) in made.screen
        _its_calls_work(made)
        status = run("status", "--data", str(data))
        assert status.returncode == 0, status.stderr
        assert "ready" in status.stdout
        assert "hindcast" in httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30).text
        assert len(made.started) > 4
        _nothing_listens_to_strangers(made)
        made.process.send_signal(signal.SIGINT)
        assert made.process.wait(90) == 0, made.screen
    _, alive = psutil.wait_procs(made.started, timeout=15)
    assert not alive, [one.cmdline() for one in alive]
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
    assert not (data / "run" / "server.json").exists()


def _its_calls_work(made: Up) -> None:
    calls = [line.strip() for line in made.lines if line.strip().startswith("curl ")]
    assert len(calls) == 3
    if shutil.which("curl") is None:
        return
    for call in calls:
        done = subprocess.run(["bash", "-c", call], capture_output=True, text=True, timeout=60, check=True)
        assert "request_id" in json.loads(done.stdout), done.stdout


def _nothing_listens_to_strangers(made: Up) -> None:
    for process in made.started:
        try:
            connections = process.net_connections(kind="tcp")
        except psutil.Error:
            continue
        listening = {one.laddr.ip for one in connections if one.status == psutil.CONN_LISTEN}
        assert listening <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, (process.cmdline(), listening)


@pytest.mark.long
def test_down_stops_it_and_a_second_server_on_the_folder_is_refused(data: Path) -> None:
    port = free_port()
    with up(data, port) as made:
        other = run("up", "--data", str(data), "--port", str(free_port()))
        assert other.returncode == 2
        assert other.stderr.strip().splitlines()[-1].startswith("hindcast: ")
        assert "another server" in other.stderr
        taken = run("up", "--data", str(data), "--port", str(port))
        assert taken.returncode == 2
        assert f"port {port} on 127.0.0.1 is in use" in taken.stderr
        stopped = run("down", "--data", str(data))
        assert stopped.returncode == 0, stopped.stderr
        made.process.wait(60)
    assert run("status", "--data", str(data)).returncode == 2


def test_nothing_to_serve_is_one_line(tmp_path: Path) -> None:
    for folder in (tmp_path / "absent", tmp_path):
        done = run("up", "--data", str(folder))
        assert done.returncode == 2
        assert len(done.stderr.strip().splitlines()) == 1
    keyless = run("up", "--data", str(tmp_path), HINDCAST_HTTP__HOST="0.0.0.0")
    assert keyless.returncode == 2
    assert "without API keys" in keyless.stderr
