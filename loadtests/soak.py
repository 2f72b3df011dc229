"""Hours of ordinary traffic, while every process of the server is watched: memory, handles and files must not grow.

Run: ``python -m loadtests.soak --duration 1h --out bench-results``. It makes a demo world (or takes ``--data``, which it
writes to), starts `hindcast up` on it (with upkeep ten times a run at least), runs `hindcast load soak` against it, and
samples every process the server started.
A process that ends during the run is a failure, too: a restart would hide what had grown. Exit codes as of `hindcast load`:
its own, or 10 where something grew.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
from rich.console import Console

from loadtests.children import finished
from loadtests.decide_server import served
from loadtests.growth import Growth, Limits, Series, judged
from loadtests.soak_report import write_soak
from serve_app.settings import JournalSettings

__all__ = ["Watch", "main"]

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}
_NAMES = ("haproxy", "raylet", "gcs_server", "ServeController", "HAProxyManager", "ProxyActor", "dashboard", "log_monitor")


class Watch(threading.Thread):
    """Samples the processes below `root`, and the files below `folders`, every `every_s` until `stop`."""

    def __init__(self, root: psutil.Process, folders: dict[str, Path], every_s: float) -> None:
        super().__init__(daemon=True)
        self._root, self._folders, self._every_s = root, folders, every_s
        self._known: dict[int, psutil.Process] = {}
        self._over = threading.Event()
        self.began = time.monotonic()
        self.series: defaultdict[tuple[str, str], Series] = defaultdict(Series)
        self.last_seen: dict[str, float] = {}
        self.samples = 0

    def run(self) -> None:
        while not self._over.is_set():
            self._sample(time.monotonic() - self.began)
            self._over.wait(self._every_s)

    def stop(self) -> None:
        """Take no more samples."""
        self._over.set()
        self.join(30)

    def _sample(self, at: float) -> None:
        for process in (self._root, *self._root.children(recursive=True)):
            known = self._known.setdefault(process.pid, process)
            try:
                name = f"{_name(known)} {known.pid}"
                with known.oneshot():
                    memory, handles, threads = known.memory_full_info().uss, known.num_fds(), known.num_threads()
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
            for what, value in (("memory", memory / 2**20), ("handles", handles), ("threads", threads)):
                self.series[name, what].add(at, value)
            self.last_seen[name] = at
        for name, folder in self._folders.items():
            count, size = _files(folder)
            self.series[name, "files"].add(at, count)
            self.series[name, "size"].add(at, size / 2**20)
        self.samples += 1

    def ended(self, least_s: float) -> list[str]:
        """Processes that lived for `least_s` or longer and were gone before the end. Shorter ones come and go by design."""
        last = max(self.last_seen.values(), default=0.0)
        return [
            name for name, at in self.last_seen.items()
            if last - at > 3 * self._every_s and at - self.series[name, "memory"].times[0] >= least_s
        ]  # fmt: skip


def _name(process: psutil.Process) -> str:
    line = " ".join(process.cmdline())
    if replica := re.search(r"ServeReplica:\w+:(\w+)", line):
        return replica[1]
    return next((name for name in _NAMES if name in line), "hindcast" if "hindcast" in line else process.name()[:20])


def _temporary(server: psutil.Process) -> Path:
    """The folder of the server's sockets and of Ray's session, as the command lines of its children name it."""
    for process in server.children(recursive=True):
        if found := re.search(r"(/\S*/hindcast-\w+)/ray", " ".join(process.cmdline())):
            return Path(found[1])
    raise RuntimeError("no process of the server names its temporary folder")


def _files(folder: Path) -> tuple[int, int]:
    """Files below a folder, and their bytes; what vanishes meanwhile is left out."""
    count = size = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                size += os.lstat(os.path.join(path, name)).st_size
                count += 1
            except FileNotFoundError:
                continue
    return count, size


def _prepare(data: Path, console: Console) -> None:
    world = ["world", "--users", "3000", "--items", "2000", "--days", "14", "--seed", "7"]
    for arguments in (world, ["ledger", "seed"], ["build", "--local", "--promote"]):
        console.print(f"  hindcast {' '.join(arguments)}")
        subprocess.run([sys.executable, "-m", "hindcast", *arguments, "--data", str(data)], check=True, capture_output=True)


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if found is None:
        raise typer.BadParameter(f"{text!r} is no duration; write 90s, 10m or 1h")
    return float(found[1]) * _UNITS[found[2]]


def _upkeep(length_s: float) -> dict[str, str]:
    """Settings that compact the journal ten times in a run, or as often as a server does: between two times it grows."""
    often_s = min(JournalSettings().upkeep_s, length_s / 10)
    return {"HINDCAST_JOURNAL__UPKEEP_S": f"{often_s:g}"}


def main(
    duration: Annotated[str, typer.Option(help="As 5m or 1h.")] = "1h",
    rate: Annotated[float, typer.Option(help="Requests a second.")] = 50.0,
    scenario: Annotated[str, typer.Option(help="Of `hindcast load`; a spike's memory can be watched, too.")] = "soak",
    every: Annotated[str, typer.Option(help="Time between samples.")] = "10s",
    topology: Annotated[str, typer.Option(help="fused or chain.")] = "chain",
    memory_mb: Annotated[float, typer.Option(help="Growth of a process' own memory that is still none, MB.")] = 32.0,
    slo: Annotated[Path | None, typer.Option(help="Objectives of the load; default: loadtests/slo.")] = None,
    data: Annotated[Path | None, typer.Option(help="A data folder with a release; it is written to.")] = None,
    out: Annotated[Path, typer.Option(help="Report goes below this folder.")] = Path("bench-results"),
) -> None:
    """Load, watch, judge."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    console, length, every_s = Console(), _seconds(duration), _seconds(every)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hc-soak-")))
        folder = data or scratch / "data"
        if data is None:
            _prepare(folder, console)
        server = stack.enter_context(served(folder, _upkeep(length), topology))
        # Logs and ledgers grow with traffic by design, and are told; what must not pile up is judged.
        folders = {name: folder / name for name in ("journal", "log", "ledger", "run")} | {
            "temporary": _temporary(server.process)
        }
        watch = Watch(server.process, folders, every_s)
        watch.start()
        console.print(f"{rate:g} requests a second for {duration}")
        command = [sys.executable, "-m", "hindcast", "load", scenario, "--host", f"http://127.0.0.1:{server.port}"]
        command += ["--data", str(folder), "--rate", str(rate), "--duration", f"{length:g}s", "--out", str(out / "soak")]
        command += ["--slo", str(slo)] if slo else []
        load = finished(command)
        watch.stop()
    limits = Limits(memory_mb=memory_mb)
    grown = [judged(name, what, series, limits) for (name, what), series in watch.series.items()]
    report = _report(watch, grown, load, length, topology, rate)
    out.mkdir(parents=True, exist_ok=True)
    (out / "soak.json").write_text(json.dumps(report))
    console.print(write_soak(report, watch.series, out), highlight=False, soft_wrap=True)
    sys.exit(10 if report["faults"] and load in (0, 10, 12) else load)


def _report(watch: Watch, grown: list[Growth], load: int, length: float, topology: str, rate: float) -> dict[str, Any]:
    faults = [one.words for one in grown if one.fault]
    faults += [f"{name} ended during the run" for name in watch.ended(min(120.0, length / 4))]
    return {
        "seconds": length,
        "samples": watch.samples,
        "topology": topology,
        "rate": rate,
        "load_exit_code": load,
        "faults": faults,
        "series": [one.told for one in sorted(grown, key=lambda one: (one.what, -one.growth))],
    }


if __name__ == "__main__":
    typer.run(main)
