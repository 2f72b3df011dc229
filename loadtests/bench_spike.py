"""Ten times what the server can do, for half a minute: is everybody answered in time, and as many as can be with results?

The server's capacity is set low (`testing.capacity_per_s`), so that a small machine can offer it ten times that. Then: users
who never pause say what it really does; `hindcast load spike` offers four fifths of the capacity, ten times the capacity,
four fifths again, and verifies every answer; connections that never pause are refused as fast as refusals come, which says
what a refusal costs and how many a second can be made. Memory of every process of the server is sampled meanwhile.

Run: ``python -m loadtests.bench_spike --out bench-results``. Exit codes: 0 all kept, 10 not, 12 the load generator lagged.
"""

from __future__ import annotations

import base64
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from hdrh.histogram import HdrHistogram
from rich.console import Console

from loadtests.children import finished
from loadtests.decide_server import Served, served
from loadtests.hardware import hardware
from loadtests.soak import Watch
from loadtests.spike_report import LIMITED, Limits, judged, memory_of, told
from serve_app.settings import EXPENDABLE

__all__ = ["main"]

_RELATED = "/v1/recommendations/related"
_SHARE = 0.8  # of the capacity is offered before and after
_AROUND_S, _SPIKE_S, _SATURATED_S, _REFUSING_S = 40.0, 30.0, 12.0, 5.0
_USERS = 48
_GENERATORS = 2  # processes: one alone falls behind at ten times the capacity, and measures itself
_CONNECTIONS = (32, 128, 256)
_NO_MEASUREMENT = 12


def _prepare(data: Path, console: Console) -> None:
    world = ["world", "--users", "3000", "--items", "2000", "--days", "14", "--seed", "7"]
    for arguments in (world, ["ledger", "seed"], ["build", "--local", "--promote"]):
        console.print(f"  hindcast {' '.join(arguments)}")
        subprocess.run([sys.executable, "-m", "hindcast", *arguments, "--data", str(data)], check=True, capture_output=True)


def _load(server: Served, data: Path, out: Path, scenario: str, *options: str) -> dict[str, Any]:
    """A scenario's result. RuntimeError where there is none."""
    command = [sys.executable, "-m", "hindcast", "load", scenario, "--host", f"http://127.0.0.1:{server.port}"]
    code = finished([*command, "--data", str(data), "--out", str(out), *options])
    result = out / "result.json"
    if code not in (0, 10, _NO_MEASUREMENT) or not result.exists():
        raise RuntimeError(f"hindcast load {scenario} ended with {code}")
    found: dict[str, Any] = json.loads(result.read_text())
    return {**found, "exit_code": code}


def _capacity(result: Mapping[str, Any]) -> float:
    """Results a second of the calls whose capacity is limited."""
    return sum(row["ok_per_s"] for row in result["rows"] if row["phase"] == "all" and row["route"] in LIMITED)


def _refuse(server: Served, data: Path, connections: int) -> dict[str, Any]:
    """Refusals as fast as they come: a second, their times, and what the server spends on one."""
    items = json.loads((data / "spike-audience.json").read_text())["items"][:200]
    task = {"port": server.port, "path": _RELATED, "bodies": [{"item": item, "slots": 10} for item in items]}
    before = server.cpu()
    done = subprocess.run(
        [sys.executable, "-m", "loadtests.hammer"],
        input=json.dumps({**task, "connections": connections, "seconds": _REFUSING_S}),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    after, found = server.cpu(), json.loads(done.stdout)
    times = HdrHistogram(1, 600_000_000, 3)
    times.decode_and_add(base64.b64decode(found["refusal"]))
    spent = {name: after[name] - before.get(name, 0.0) for name in after}
    return {
        "connections": connections,
        "refused_per_s": found["refused"] / found["seconds"],
        "ok_per_s": found["good"] / found["seconds"],
        "not_refused_properly": found["failed"] - found["refused"],
        "p50_ms": times.get_value_at_percentile(50) / 1e3,
        "p99_ms": times.get_value_at_percentile(99) / 1e3,
        "server_cpu_us_per_refusal": 1e6 * sum(spent.values()) / max(1, found["refused"]),  # the results' cost included
    }


def _measured(data: Path, topology: str, capacity: float, out: Path, console: Console) -> dict[str, Any]:
    environment = {"HINDCAST_TESTING__CAPACITY_PER_S": str(capacity)}
    with served(data, environment, topology) as server:
        url = f"http://127.0.0.1:{server.port}"
        audience = data / "spike-audience.json"
        command = [sys.executable, "-m", "hindcast", "load", "audience", "--host", url, "--data", str(data)]
        subprocess.run([*command, "--out", str(audience)], check=True, capture_output=True)
        own = ("--audience", str(audience))
        console.print("what it can do: users who hardly pause")
        closed = ("--users", str(_USERS), "--think", "0.2s", "--duration", f"{_SATURATED_S:g}s")
        saturated = _load(server, data, out / "saturated", "baseline", *closed, *own)
        rate = _SHARE * capacity
        console.print(f"{rate:g} a second, {10 * capacity:g} a second, {rate:g} a second")
        watch = Watch(server.process, {}, 1.0)
        watch.start()
        around = ("--duration", f"{_AROUND_S:g}s", "--spike", f"{_SPIKE_S:g}s", "--processes", str(_GENERATORS))
        spike = _load(server, data, out / "spike", "spike", "--rate", f"{rate}", "--factor", f"{10 / _SHARE}", *around, *own)
        watch.stop()
        console.print("refusals as fast as they come")
        refusals = [_refuse(server, data, connections) for connections in _CONNECTIONS]
    return {
        "topology": topology,
        "set_capacity_per_s": capacity,
        "measured_capacity_per_s": _capacity(saturated),
        "spike": spike,
        "memory": memory_of(watch, spike),
        "refusals": refusals,
    }


def main(
    capacity: Annotated[float, typer.Option(min=1, help="Lists and decisions a second the server is held to.")] = 60.0,
    topology: Annotated[str, typer.Option(help="fused or chain.")] = "chain",
    data: Annotated[Path | None, typer.Option(help="A data folder with a release; it is written to.")] = None,
    out: Annotated[Path, typer.Option(help="Report goes below this folder.")] = Path("bench-results"),
) -> None:
    """Measure, judge, tell."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    console = Console()
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        if data is None:
            data = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hc-spike-"))) / "data"
            _prepare(data, console)
        (data / EXPENDABLE).touch()
        measured = _measured(data, topology, capacity, out, console)
    report = {"hardware": hardware(), **told(measured), "checks": judged(measured, Limits())}
    (out / "spike.json").write_text(json.dumps(report, indent=1))
    for one in report["checks"]:
        console.print(f"{'kept    ' if one['kept'] else 'NOT KEPT'}  {one['what']}: {one['measured']}", highlight=False)
    for row in report["refusals"]:
        console.print(
            f"{row['connections']:4d} connections: {row['refused_per_s']:,.0f} refusals a second, "
            f"p50 {row['p50_ms']:.1f} ms, p99 {row['p99_ms']:.1f} ms, "
            f"{row['server_cpu_us_per_refusal']:,.0f} us of the server's processors each",
            highlight=False,
        )
    console.print(f"{out / 'spike.json'}", highlight=False)
    if not all(one["kept"] for one in report["checks"]):
        sys.exit(_NO_MEASUREMENT if measured["spike"]["exit_code"] == _NO_MEASUREMENT else 10)


if __name__ == "__main__":
    typer.run(main)
