"""Send decisions end to end: HTTP, scores of trained heads, the full policy, durable ledger, journal, answer.

Starts its own server on its own data (see `loadtests.decide_data`), drives `decide-batch` with Arrow and JSON bodies of
10,000 rows and `decide` with 1, 8 and 32 connections from a process of its own, and afterwards checks what was answered:
every row, no cap passed, every decision in the log, every grant in the ledger. SQLite is opened with `durability: disk` and
Redis with `appendfsync always`: a grant that was answered survives loss of power; the journal survives `kill -9`.
Run: ``python -m loadtests.bench_decide``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from loadtests.decide_check import check
from loadtests.decide_data import Size, prepare, refresh_segments_of, seed_people
from loadtests.decide_kernels import measure_kernels
from loadtests.decide_report import write_report
from loadtests.decide_server import Served, served
from loadtests.hardware import hardware, hardware_line
from loadtests.redis_servers import redis_server

_WARM_S = 5.0
_CONNECTIONS = 3


def _now() -> int:
    return time.time_ns() // 1000


def drive(data: Path, server: Served, **task: Any) -> dict[str, Any]:
    """One run of the load process, with processor seconds by process."""
    before = server.cpu()
    said = json.dumps({"data": str(data), "port": server.port, **task})
    command = [sys.executable, "-m", "loadtests.decide_load"]
    done = subprocess.run(command, input=said, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the load generator failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    after = server.cpu()
    rows = sum(found["outcomes"].values())
    spent = {name: after[name] - before.get(name, 0.0) for name in after} | {"generator": found.pop("cpu_seconds")}
    found["cpu_seconds"] = {name: round(value, 2) for name, value in sorted(spent.items(), key=lambda one: -one[1])}
    found["cpu_us_per_decision"] = 1e6 * sum(spent.values()) / max(rows, 1)
    found["decisions_per_s"] = (rows - found["outcomes"].get("failed", 0)) / found["seconds"]
    return {**{name: task[name] for name in ("form", "rows", "connections")}, **found}


def run_server(
    data: Path, backend: str, topology: str, forms: list[str], seconds: float, redis_url: str | None, console: Console
) -> dict[str, Any]:
    """All forms of one server, and the check at its end."""
    environment = {"HINDCAST_LEDGER__BACKEND": backend, "HINDCAST_LEDGER__DURABILITY": "disk"}
    if redis_url:
        environment["HINDCAST_LEDGER__REDIS_URL"] = redis_url
    began, runs, answered = _now(), [], {"rows": 0, "send": 0}
    with served(data, environment, topology) as server:
        for seed, form in enumerate(["arrow", *forms]):
            warm = seed == 0
            console.print(f"  {backend}, {topology}: {'warming up' if warm else form}")
            shapes = [(1, 1), (1, 8), (1, 32)] if form == "single" else [(10_000, _CONNECTIONS)]
            for rows, connections in shapes:
                for_s = _WARM_S if warm else seconds if form != "single" else min(seconds, 10.0)
                task = {"form": form, "rows": rows, "connections": connections, "seconds": for_s}
                found = drive(data, server, **task, seed=1_000 * seed + connections)
                answered["rows"] += sum(found["outcomes"].values()) - found["outcomes"].get("failed", 0)
                answered["send"] += found["outcomes"].get("send", 0)
                if not warm:
                    runs.append(found)
    console.print(f"  {backend}, {topology}: checking what was answered")
    checked = check(data, began, answered, redis_url=redis_url)
    return {"backend": backend, "topology": topology, "runs": runs, "check": checked}


def main(
    seconds: Annotated[float, typer.Option(min=1, help="Length of each batch run.")] = 60.0,
    backends: Annotated[str, typer.Option(help="Of sqlite, redis.")] = "sqlite,redis",
    topologies: Annotated[str, typer.Option(help="Of fused, chain.")] = "fused,chain",
    forms: Annotated[str, typer.Option(help="Of arrow, json, single.")] = "arrow,json,single",
    population: Annotated[int, typer.Option(min=20_000, help="Users in the ledger.")] = 1_000_000,
    data: Annotated[Path | None, typer.Option(help="Reuse this prepared folder; made when absent.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write JSON and Markdown below this folder.")] = None,
) -> None:
    """Measure decisions per second over HTTP, per ledger, topology and form of body."""
    console = Console()
    report: dict[str, Any] = {"hardware": hardware(), "seconds": seconds, "population": population, "servers": []}
    with ExitStack() as stack:
        folder = data or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hindcast-bench-"))) / "data"
        if not (folder / "audience.parquet").exists():
            prepare(folder, Size(population=population), _now(), lambda step: console.print(f"making {step}"))
        report["kernels"] = measure_kernels(folder, _now())
        for backend in backends.split(","):
            with ExitStack() as server:
                url = None
                if backend == "redis":
                    place = Path(server.enter_context(tempfile.TemporaryDirectory(prefix="hindcast-redis-"))) / "redis"
                    url = server.enter_context(redis_server(place, "--maxmemory-policy", "noeviction"))[0]
                console.print(f"seeding {population:,} users in {backend}")
                seed_people(folder, _now(), redis_url=url)
                refresh_segments_of(folder, _now(), url)
                for topology in topologies.split(","):
                    made = run_server(folder, backend, topology, forms.split(","), seconds, url, console)
                    report["servers"].append(made)
    _print(console, report)
    if out is not None:
        write_report(report, out)
    if any(one["check"]["findings"] for one in report["servers"]):
        console.print("[red]what was answered does not hold[/]")
        sys.exit(1)


def _print(console: Console, report: Mapping[str, Any]) -> None:
    table = Table(title="decisions over HTTP, load generator included")
    for heading in ("ledger", "topology", "form", "connections", "decisions/s", "cpu us", "p50 ms", "p99 ms", "failed"):
        table.add_column(heading, justify="right")
    for server in report["servers"]:
        for run in server["runs"]:
            place = server["backend"], server["topology"], run["form"], str(run["connections"])
            figures = f"{run['decisions_per_s']:,.0f}", f"{run['cpu_us_per_decision']:.0f}"
            times = (f"{run['latency_ms'][p]:,.1f}" for p in ("p50", "p99"))
            table.add_row(*place, *figures, *times, str(run["outcomes"].get("failed", 0)))
    console.print(table)
    kernels = report["kernels"]
    console.print(
        f"gates alone: {kernels['candidates_per_s'] / 1e6:.2f} M candidates/s on one core, a batch of one "
        f"{kernels['batch_of_one_us']:.0f} us; bare decide on a memory ledger {kernels['bare_decide_us']:.1f} us"
    )
    console.print(hardware_line(report))


if __name__ == "__main__":
    typer.run(main)
