"""Latency over HTTP by number of candidates: related products, fused, one connection.

For each width a policy is promoted that ranks as many candidates, the server is started on it, and one connection asks for
related products. What was ranked is counted in explained answers, not assumed. metarank's own documentation says 10 ms for
100 and 24 ms for 300 candidates at p99. Run: ``python -m loadtests.bench_width --out bench-results``.
"""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import typer
from rich.console import Console

from loadtests.bench_peers import ROUTES, bodies_of, check_models, drive, prepare
from loadtests.decide_server import served
from loadtests.hardware import hardware, hardware_line, write_report
from loadtests.peers.report import summed
from serve_app.policies import promote_policy, store_policy
from serve_app.policy.document import DEFAULT_POLICY, load_policy, parse_policy
from serve_app.release.registry import current_release

__all__ = ["TARGETS_MS", "main", "widened"]

TARGETS_MS = {100: 10.0, 300: 24.0}
_EXPLAINED = 50
_WARM_S = 3.0


def widened(width: int) -> Any:
    """The default policy, with lists of `width` candidates. Sources overlap: each may give all of them."""
    data = load_policy(DEFAULT_POLICY).model_dump(mode="json")
    sources = dict.fromkeys(("similar", "covisited", "session", "popular"), width)
    data["surfaces"]["related"] |= {"width": width, "min_width": width, "sources": sources}
    return parse_policy(data)


def _ranked(port: int, bodies: list[dict[str, Any]]) -> list[int]:
    """Candidates that were ranked, by request."""
    counts = []
    for body in bodies[:_EXPLAINED]:
        answer = httpx.post(f"http://127.0.0.1:{port}{ROUTES['related']}", json={**body, "explain": True}, timeout=30)
        answer.raise_for_status()
        counts.append(sum(one["drop_reason"] is None for one in answer.json()["explain"]))
    return counts


def main(
    widths: Annotated[str, typer.Option(help="Candidates.")] = "100,200,300,500,1000",
    seconds: Annotated[float, typer.Option(min=1, help="Of each measurement.")] = 15.0,
    topology: Annotated[str, typer.Option(help="fused or chain.")] = "fused",
    users: Annotated[int, typer.Option(min=100, help="Users of the world that is made.")] = 8_000,
    items: Annotated[int, typer.Option(min=50, help="Its items.")] = 20_000,
    data: Annotated[
        Path | None, typer.Option(help="A data folder with a release instead; policies are promoted there.")
    ] = None,
    out: Annotated[Path, typer.Option(help="JSON and Markdown go below this folder.")] = Path("bench-results"),
) -> None:
    """Measure, and write width.json and width.md."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    console = Console()
    rows = []
    with ExitStack() as stack:
        folder = data or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hindcast-width-"))) / "data"
        if data is None:
            prepare(folder, users, items, console)
        check_models(current_release(folder))
        bodies = bodies_of(current_release(folder))["related"]
        for width in map(int, widths.split(",")):
            console.print(f"{width} candidates")
            promote_policy(folder, store_policy(folder, widened(width)), now=time.time_ns() // 1000)
            with served(folder, {}, topology) as server:
                counts = _ranked(server.port, bodies)
                drive(server.port, "related", bodies, 1, _WARM_S)
                found = drive(server.port, "related", bodies, 1, seconds)
            (figures,) = summed([{"name": "ours", "route": "related", "connections": 1, **found}]).values()
            target = TARGETS_MS.get(width)
            rows.append({"width": width, "ranked": float(np.mean(counts)), **figures, "target_ms": target})
    report = {"hardware": hardware(), "topology": topology, "seconds": seconds, "rows": rows}
    write_report(out, "width", report, _markdown(report), console)


def _markdown(report: dict[str, Any]) -> str:
    lines = ["# Latency by candidates", "", hardware_line(report), "",
             f"Related products over HTTP, {report['topology']}, one connection.", "",
             "| width | ranked | p50 ms | p99 ms | p99.9 ms | target p99 |", "|---" * 6 + "|"]  # fmt: skip
    for row in report["rows"]:
        limit = row["target_ms"]
        target = "" if limit is None else f"{limit:g} {'kept' if row['p99_ms'] <= limit else '**missed**'}"
        times = f"{row['p50_ms']:.1f} | {row['p99_ms']:.1f} | {row['p999_ms']:.1f}"
        lines.append(f"| {row['width']} | {row['ranked']:.0f} | {times} | {target} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
