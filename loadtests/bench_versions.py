"""Two or more states of this code, served side by side and driven in turns.

A machine's speed changes by a third within minutes, so a server measured after another says little about either. Here all
run at once, one of them driven at a time for a moment, in an order drawn anew each turn, and each turn's figures are divided
by those of the first side in the same turn. A side is a git revision, or `.` for the working tree, with switches after
commas: ``python -m loadtests.bench_versions HEAD~5 . .,MALLOC_ARENA_MAX=8``.
"""

from __future__ import annotations

import base64
import io
import random
import signal
import subprocess
import sys
import tarfile
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from hdrh.histogram import HdrHistogram
from rich.console import Console
from rich.progress import track

from loadtests.bench_peers import bodies_of, check_models, drive, prepare
from loadtests.decide_server import Served, served
from loadtests.hardware import hardware, hardware_line, write_report
from serve_app.release.registry import current_release

__all__ = ["Side", "main", "ratio"]

_WARM_S = 5.0
_RESAMPLES = 2_000
_FIGURES = ("per_s", "p50_ms", "p99_ms", "cpu_ms")


@dataclass(frozen=True)
class Side:
    """A state of the code and the environment it is served in."""

    name: str
    revision: str
    environment: dict[str, str]

    @classmethod
    def parse(cls, text: str) -> Side:
        """`REVISION[,NAME=VALUE]...`. BadParameter where a switch has no value."""
        revision, *switches = text.split(",")
        pairs = [one.partition("=") for one in switches]
        if not revision or not all(name and equals for name, equals, _ in pairs):
            raise typer.BadParameter(f"{text!r} is not REVISION[,NAME=VALUE]...", param_hint="SIDES")
        return cls(text, revision, {name: value for name, _, value in pairs})

    def tree(self, into: Path) -> Path:
        """Its files: the working tree as it is, or those of its revision below `into`."""
        if self.revision == ".":
            return Path.cwd()
        packed = subprocess.run(["git", "archive", self.revision], capture_output=True, check=False)
        if packed.returncode:
            raise typer.BadParameter(packed.stderr.decode().strip(), param_hint="SIDES")
        with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as files:
            files.extractall(into, filter="data")
        return into


def ratio(ours: npt.NDArray[np.float64], first: npt.NDArray[np.float64], seed: int = 0) -> tuple[float, float, float]:
    """Geometric mean of the turns' ratios, with its 95 % bootstrap interval (Efron 1979). Both: one figure a turn, > 0."""
    logs = np.log(ours / first)
    drawn = np.random.default_rng(seed).choice(logs, (_RESAMPLES, len(logs))).mean(axis=1)
    low, high = np.exp(np.quantile(drawn, (0.025, 0.975))).tolist()
    return float(np.exp(logs.mean())), low, high


def _slice(server: Served, route: str, bodies: list[dict[str, Any]], connections: int, seconds: float) -> dict[str, float]:
    """One moment's figures. cpu_ms: processor time of all its processes, by request."""
    before = sum(server.cpu().values())
    found = drive(server.port, route, bodies, connections, seconds)
    spent = sum(server.cpu().values()) - before
    if not found["good"]:
        raise RuntimeError(f"nothing was answered: {found['first_failure']}")
    latency = HdrHistogram.decode(base64.b64decode(found["latency"]))
    times = {name: latency.get_value_at_percentile(at) / 1e3 for name, at in (("p50_ms", 50), ("p99_ms", 99))}
    return {"per_s": found["good"] / found["seconds"], **times, "cpu_ms": 1e3 * spent / found["good"],
            "failed": found["failed"]}  # fmt: skip


def main(
    sides: Annotated[list[str], typer.Argument(help="REVISION[,NAME=VALUE]..., `.` is the working tree; the first is 1.")],
    routes: Annotated[str, typer.Option(help="Of related, gateway, decide.")] = "gateway,decide",
    connections: Annotated[str, typer.Option(help="Numbers of connections.")] = "1,32",
    topology: Annotated[str, typer.Option(help="fused or chain.")] = "fused",
    turns: Annotated[int, typer.Option(min=2, help="How often each side is driven.")] = 12,
    seconds: Annotated[float, typer.Option(min=0.5, help="Of each time.")] = 2.0,
    users: Annotated[int, typer.Option(min=100, help="Users of the world that is made.")] = 8_000,
    items: Annotated[int, typer.Option(min=50, help="Its items.")] = 20_000,
    data: Annotated[Path | None, typer.Option(help="A data folder with a release instead; copies of it are served.")] = None,
    out: Annotated[Path, typer.Option(help="JSON and Markdown go below this folder.")] = Path("bench-results"),
) -> None:
    """Serve all sides, drive them in turns, and write versions.json and versions.md."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    parsed = [Side.parse(one) for one in sides]
    console, order = Console(), random.Random(0)
    runs: list[dict[str, Any]] = []
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hc-")))
        folder = data or scratch / "data"
        if data is None:
            prepare(folder, users, items, console)
        check_models(current_release(folder))
        bodies = bodies_of(current_release(folder))
        servers = []
        for at, side in enumerate(parsed):
            (own := scratch / str(at)).mkdir()
            tree, copy = side.tree(own / "tree"), copytree(folder, own / "data")
            servers.append(stack.enter_context(served(copy, side.environment, topology, tree)))
            console.print(f"{side.name} is ready")
        for route in routes.split(","):
            for server in servers:
                drive(server.port, route, bodies[route], 8, _WARM_S)
            for turn in track(range(turns), description=route, console=console):
                for count in map(int, connections.split(",")):
                    for at in order.sample(range(len(servers)), len(servers)):
                        figures = _slice(servers[at], route, bodies[route], count, seconds)
                        runs.append({"side": at, "route": route, "connections": count, "turn": turn, **figures})
    report = {"hardware": hardware(), "sides": sides, "topology": topology, "turns": turns, "seconds": seconds, "runs": runs}
    write_report(out, "versions", report, _markdown(report), console)


def _markdown(report: dict[str, Any]) -> str:
    lines = ["# States of the code side by side", "", hardware_line(report), "",
             f"{report['topology']}, {report['turns']} turns of {report['seconds']:g} s. Medians of the turns; in brackets "
             "the ratio to the first side in the same turn, with its 95 % interval.", "",
             "| route | connections | side | requests/s | p50 ms | p99 ms | cpu ms a request | failed |",
             "|---" * 8 + "|"]  # fmt: skip
    groups: dict[tuple[str, int, int], list[dict[str, Any]]] = {}
    for run in report["runs"]:
        groups.setdefault((run["route"], run["connections"], run["side"]), []).append(run)
    for (route, count, side), found in sorted(groups.items()):
        first = groups[route, count, 0]
        cells = []
        for name in _FIGURES:
            own, base = (np.array([one[name] for one in runs]) for runs in (found, first))
            mean, low, high = ratio(own, base)
            cells.append(f"{np.median(own):,.2f}" + (f" ({mean:.3f}: {low:.3f} to {high:.3f})" if side else ""))
        failed = sum(one["failed"] for one in found)
        lines.append(f"| {route} | {count} | {report['sides'][side]} | {' | '.join(cells)} | {failed:,.0f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
