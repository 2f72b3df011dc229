"""What the server costs beside what else one would run: the same machine, release and requests, one server after the other.

In turns: every round starts each contestant anew and drives it at 1, 8, 32 and 128 connections for related products,
pages and send decisions; histograms of the rounds add up. Bare in-process compute stands first: nothing can be faster than
that on one core. ``make bench-peers`` sets up the peers' environment (`scripts/peers.sh`); without it those that need it are
left out.
Run: ``python -m loadtests.bench_peers --out bench-results``.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow.parquet as pq
import typer
from hdrh.histogram import HdrHistogram
from rich.console import Console

from loadtests.hardware import hardware
from loadtests.peers.contestants import CONTESTANTS, Place, started
from loadtests.peers.model import Lean
from loadtests.peers.report import write_peers
from serve_app.release.registry import read_current

__all__ = ["ROUTES", "bodies_of", "compute", "drive", "main", "prepare"]

ROUTES = {
    "related": "/v1/recommendations/related",
    "gateway": "/v1/recommendations/gateway",
    "decide": "/v1/notifications/decide",
}
_BODIES = 2_000
_CANDIDATES = 5
_WARM_S = 3.0
Figures = dict[str, Any]


def bodies_of(release: Path, seed: int = 0) -> dict[str, list[Figures]]:
    """Requests of each route, the same for everybody."""
    catalogue = release / "catalogue"
    rng = np.random.default_rng(seed)
    items = pq.read_table(catalogue / "items.parquet")
    shown = items.filter(items["available"])["item_id"].to_pylist()
    users = pq.read_table(catalogue / "users.parquet")["user_id"].to_pylist()
    campaigns = pq.read_table(catalogue / "campaigns.parquet", columns=["campaign_id", "channels"]).to_pylist()
    pairs = [(one["campaign_id"], channel) for one in campaigns for channel in one["channels"]]

    def user() -> str:
        return str(users[rng.integers(len(users))])

    def candidates() -> list[dict[str, str]]:
        chosen = rng.choice(len(pairs), min(_CANDIDATES, len(pairs)), replace=False)
        return [{"campaign": pairs[at][0], "channel": pairs[at][1]} for at in chosen.tolist()]

    return {
        "related": [{"item": shown[rng.integers(len(shown))], "user": user(), "slots": 20} for _ in range(_BODIES)],
        "gateway": [{"user": user(), "widgets": 4, "slots": 6} for _ in range(_BODIES)],
        "decide": [{"user": user(), "candidates": candidates()} for _ in range(_BODIES)],
    }


def compute(release: Path, bodies: Mapping[str, Sequence[Figures]], seconds: float) -> Iterator[Figures]:
    """The lean chain called in this process, one request after the other, on one core."""
    lean = Lean(release)
    calls: dict[str, Callable[[Figures], object]] = {
        "related": lambda body: lean.related(body["item"], body["user"], [], body["slots"]),
        "gateway": lambda body: lean.gateway(body["user"], body["widgets"], body["slots"]),
        "decide": lambda body: lean.decide(body["user"], body["candidates"]),
    }
    for route, call in calls.items():
        latency, good, end = HdrHistogram(1, 600_000_000, 3), 0, time.perf_counter() + seconds
        while (began := time.perf_counter()) < end:
            call(bodies[route][good % _BODIES])
            latency.record_value(max(1, round((time.perf_counter() - began) * 1e6)))
            good += 1
        encoded = base64.b64encode(latency.encode()).decode()
        yield {"name": "compute", "route": route, "connections": 1, "good": good, "failed": 0, "seconds": seconds,
               "latency": encoded}  # fmt: skip


def drive(port: int, route: str, bodies: Sequence[Figures], connections: int, seconds: float) -> Figures:
    """Drive one route from a process of its own."""
    task = {"port": port, "path": ROUTES[route], "bodies": bodies, "connections": connections, "seconds": seconds}
    done = subprocess.run(
        [sys.executable, "-m", "loadtests.hammer"], input=json.dumps(task), capture_output=True, text=True, check=False,
        timeout=seconds + 120,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"the client failed: {done.stderr[-1000:]}")
    found: Figures = json.loads(done.stdout)
    return found


def prepare(data: Path, users: int, items: int, console: Console) -> None:
    """A world, its ledger and a release."""
    world = ["world", "--users", str(users), "--items", str(items), "--days", "7", "--seed", "7"]
    for arguments in (world, ["ledger", "seed"], ["build", "--local", "--promote"]):
        console.print(f"  hindcast {' '.join(arguments)}")
        done = subprocess.run([sys.executable, "-m", "hindcast", *arguments, "--data", str(data)], capture_output=True,
                              text=True, check=False)  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"hindcast {arguments[0]} failed:\n{done.stdout[-1000:]}\n{done.stderr[-2000:]}")


def check_models(release: Path) -> None:
    """BadParameter where a release ranks a surface without a model, as one of few users does: its ranking would be free."""
    for surface in ("related", "gateway", "widgets", "notification"):
        if not (release / "models" / surface / "booster-0.ubj").is_file():
            raise typer.BadParameter(f"the release has no model of {surface}: take more users", param_hint="--users")


def _python_of(folder: Path) -> Path | None:
    python = folder / "bin" / "python"
    return python.absolute() if python.exists() else None


def main(
    seconds: Annotated[float, typer.Option(min=0.5, help="Of each measurement.")] = 8.0,
    rounds: Annotated[int, typer.Option(min=1, help="How often each contestant has its turn.")] = 2,
    connections: Annotated[str, typer.Option(help="Numbers of connections.")] = "1,8,32,128",
    routes: Annotated[str, typer.Option(help="Of related, gateway, decide.")] = "related,gateway,decide",
    only: Annotated[str, typer.Option(help=f"Of {', '.join(one.name for one in CONTESTANTS)}; default all.")] = "",
    users: Annotated[int, typer.Option(min=100, help="Users of the world that is made.")] = 8_000,
    items: Annotated[int, typer.Option(min=50, help="Its items.")] = 20_000,
    data: Annotated[Path | None, typer.Option(help="A data folder with a release instead; it is written to.")] = None,
    peers: Annotated[Path, typer.Option(help="The peers' environment.")] = Path(".venv-peers"),
    out: Annotated[Path, typer.Option(help="JSON, Markdown and plots go below this folder.")] = Path("bench-results"),
) -> None:
    """Requests a second and latencies of every contestant."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    console = Console()
    wanted = [one for one in CONTESTANTS if not only or one.name in only.split(",")]
    report: Figures = {"hardware": hardware(), "seconds": seconds, "rounds": rounds, "runs": [], "left_out": {}}
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hindcast-peers-")))
        folder = data or scratch / "data"
        if data is None:
            prepare(folder, users, items, console)
        (version, _) = read_current(folder)
        if version is None:
            raise typer.BadParameter(f"{folder} has no promoted release", param_hint="--data")
        place = Place(folder, folder / "releases" / version, scratch, _python_of(peers))
        check_models(place.release)
        bodies = bodies_of(place.release)
        report["items"] = pq.read_metadata(place.release / "catalogue" / "items.parquet").num_rows
        for turn in range(rounds):
            report["runs"] += [one for one in compute(place.release, bodies, seconds) if one["route"] in routes.split(",")]
            for one in wanted:
                if one.needs_peers and place.peers is None:
                    report["left_out"][one.name] = "its environment is not set up: make bench-peers"
                    continue
                console.print(f"round {turn + 1}: {one.words}")
                try:
                    with started(one, place) as port:
                        for route in routes.split(","):
                            drive(port, route, bodies[route], 8, min(_WARM_S, seconds))
                            for count in map(int, connections.split(",")):
                                found = drive(port, route, bodies[route], count, seconds)
                                report["runs"].append({"name": one.name, "route": route, "connections": count, **found})
                except RuntimeError as error:
                    report["left_out"][one.name] = str(error).strip().splitlines()[-1][:300]
                    console.print(f"  left out: {report['left_out'][one.name]}")
    os.makedirs(out, exist_ok=True)
    console.print(write_peers(report, {one.name: one.words for one in CONTESTANTS}, out), highlight=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
