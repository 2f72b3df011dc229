"""Clusters that tests deploy to, load and take nodes from; see `tests.cluster.elastic_server`."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from serve_app.elasticity import APPLICATION
from serve_app.running.serve_file import serve_document
from serve_app.running.switches import free_port
from serve_app.settings import load_settings
from tests.cluster.test_server_command import environment

SOURCES = Path(__file__).resolve().parents[2]
SLOW = dict.fromkeys(("request_ms", "live_ms", "retrieval_ms", "features_ms", "ranking_ms", "journal_ms"), 30_000)


class Cluster:
    """See tests.cluster.elastic_server."""

    def __init__(self, folder: Path, data: Path, workers: int = 0) -> None:
        self.folder, self.data, self.port = folder, data, free_port()
        self._file = folder / "serve.yaml"
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = (folder / "server.log").open("w")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.cluster.elastic_server", str(self.port), str(workers)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            # Ray puts the folder it is started in before all others that replicas import from.
            cwd=folder,
            env=environment(PYTHONPATH=os.pathsep.join(filter(None, (str(SOURCES), os.environ.get("PYTHONPATH"))))),
        )
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        assert self._answer(180)["started"]

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                self._answers.put(json.loads(line))

    def _answer(self, limit_s: float = 120.0) -> dict[str, Any]:
        try:
            return self._answers.get(timeout=limit_s)
        except queue.Empty:
            raise AssertionError((self.folder / "server.log").read_text()[-3000:]) from None

    def ask(self, line: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._answer()

    def deploy(self, deployments_also: dict[str, Any] | None = None, **settings: Any) -> None:
        """Deploy the chain under these settings. deployments_also: what Serve is told of every stage besides."""
        made = load_settings(
            data=self.data, http={"port": self.port}, budgets=SLOW, segments={"refresh_minutes": 0}, **settings
        )
        document = serve_document(made)
        state, application = document["applications"]
        if deployments_also is not None:
            state["deployments"][0]["ray_actor_options"]["resources"] = {"state": 1}
            for deployment in application["deployments"]:
                deployment |= deployments_also
        self.deploy_file(document)

    @property
    def deployed(self) -> dict[str, Any]:
        """The Serve config file that was deployed last."""
        return dict(yaml.safe_load(self._file.read_text()))

    def roll_out(self, code: Path) -> None:
        """Deploy the same file again, but for where the code of the application lies on every node."""
        document = self.deployed
        (own,) = (one for one in document["applications"] if one["name"] == APPLICATION)
        own["runtime_env"] = {"py_modules": [f"local://{code}"]}
        self.deploy_file(document)

    def deploy_file(self, document: dict[str, Any]) -> None:
        """Deploy a Serve config file."""
        self._file.write_text(yaml.safe_dump(document))
        assert self.ask(str(self._file)) == {"deployed": self._file.name}

    def status(self) -> dict[str, Any]:
        return self.ask("status")

    def running(self, deployment: str) -> int:
        return int(self.status()["replicas"].get(deployment, {}).get("RUNNING", 0))

    def steady(self) -> bool:
        """Whether everything that was deployed runs, and nothing that it replaced."""
        found = self.status()
        assert "DEPLOY_FAILED" not in found["applications"].values(), found["messages"]
        states = {state for one in found["replicas"].values() for state in one}
        return set(found["applications"].values()) == {"RUNNING"} and states == {"RUNNING"}

    def state_owner(self) -> int:
        """The process that owns the state."""
        for process in psutil.Process(self._process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "ServeReplica:hindcast-state:Ledger" in " ".join(process.cmdline()):
                    return process.pid
        raise AssertionError("nobody owns the state")

    def replicas(self) -> dict[str, str]:
        """Replica -> role, as they report."""
        found = httpx.get(f"{self.url}/v1/replicas", timeout=60).json()["replicas"]
        return {one["replica"]: one["role"] for one in found}

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(90)
        self._process.kill()
        self._log.close()


def until(what: Callable[[], bool], limit_s: float) -> float:
    """Seconds until `what` is true."""
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < limit_s, f"not within {limit_s:g} s"
        time.sleep(0.5)  # between two looks at the condition
    return time.monotonic() - began


class Load:
    """Callers in a closed loop, each on a connection of its own that it keeps, without a retry."""

    def __init__(self, url: str, callers: int) -> None:
        self._url, self._stop = url, threading.Event()
        self.answers: Counter[str] = Counter()
        self.failures: list[str] = []
        self._threads = [threading.Thread(target=self._call, args=(n,), daemon=True) for n in range(callers)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _call(self, number: int) -> None:
        with httpx.Client(base_url=self._url, timeout=60.0) as client:
            while not self._stop.is_set():
                body = {"user": f"u{number:07d}", "widgets": 2, "slots": 4}
                try:
                    answer = client.post("/v1/recommendations/gateway", json=body)
                except httpx.HTTPError as error:
                    self.failures.append(f"{time.strftime('%X')} {error!r}")
                    continue
                self.answers[str(answer.status_code)] += 1
                if answer.status_code != 200 or answer.json()["degraded"]:
                    self.failures.append(f"{time.strftime('%X')} {answer.status_code} {answer.text[:300]}")
