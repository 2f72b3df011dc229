"""`hindcast evaluate sessions`: next click of held-out sessions, through the stages that serve."""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from hindcast.evaluation.next_click.answers import Answers, Figure
    from hindcast.evaluation.next_click.files import SessionFiles

__all__ = ["evaluate", "register"]

_LATENCY_BATCHES = ((1, 300), (32, 40))


def register(group: typer.Typer) -> None:
    """Add the subcommand."""
    group.command("sessions")(sessions_command)


def sessions_command(
    source: Annotated[Path, typer.Option("--from", help="Folder with train_sessions.csv(.gz) and test_prefixes.csv(.gz).")],
    out: Annotated[Path | None, typer.Option("--out", help="Also write everything as JSON.", dir_okay=False)] = None,
    limit: Annotated[int, typer.Option("--limit", min=0, help="Answer a sample of this many prefixes; 0: all.")] = 0,
    threads: Annotated[int, typer.Option("--threads", min=1, max=256, help="Threads of training.")] = 2,
    quick: Annotated[bool, typer.Option("--quick", help="Learn from the newest sessions only: a check.")] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Fixes start vectors, samples and intervals.")] = 0,
) -> None:
    """Next click after held-out prefixes: Recall@20 and MRR@20 with intervals, by source, and the latency of an answer.
    Learns from train_sessions alone, through the stages that serve."""
    # Read when numpy is first imported, which is below.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", str(threads))
    from rich.console import Console

    console = Console()
    with console.status("reading") as status:
        result = evaluate(source, limit=limit, threads=threads, quick=quick, seed=seed, progress=status.update)
    _print(console, result)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1) + "\n")
        console.print(f"written: {out}")


def evaluate(
    source: Path, *, limit: int = 0, threads: int = 2, quick: bool = False, seed: int = 0, progress: Any = lambda _: None
) -> dict[str, Any]:
    """All figures, as the JSON holds them. `progress` is told each step in words. Raises InvalidInput for what cannot be
    read."""
    from hindcast.evaluation.next_click.answers import answer, figures, latency
    from hindcast.evaluation.next_click.files import read_session_files
    from hindcast.evaluation.next_click.model import FULL, QUICK, learn

    clock = _Clock()
    files = read_session_files(source)
    effort = replace(QUICK if quick else FULL, threads=threads, seed=seed)
    with tempfile.TemporaryDirectory(prefix="hindcast-sessions-") as folder:
        chain = learn(files, Path(folder), effort, progress)
        clock.lap("learning")
        asked = files.some_prefixes(limit, seed) if limit else files
        answers = answer(chain, asked, progress)
        clock.lap("answering")
        found = figures(answers, asked, seed)
        progress("latency")
        times = {str(size): latency(chain, asked, size, batches, seed) for size, batches in _LATENCY_BATCHES}
    clock.lap("measuring")
    return {
        "data": _counts(files, asked, answers) | {"sessions_learned": min(effort.history, len(files.sessions))},
        "effort": asdict(effort) | {"quick": quick},
        "figures": {name: {key: asdict(one) for key, one in own.items()} for name, own in found.items()},
        "latency_by_batch": times,
        "seconds": clock.laps,
        "machine": {"cpus": os.cpu_count(), "processor": platform.machine(), "python": platform.python_version()},
    }


class _Clock:
    """Seconds by step."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = round(now - self._last, 1)
        self._last = now


def _counts(files: SessionFiles, asked: SessionFiles, answers: Answers) -> dict[str, Any]:
    return {
        "sessions": len(files.sessions),
        "items": len(files.item_hashes),
        "prefixes": len(files.prefixes),
        "prefixes_answered": len(asked.prefixes),
        "test_sessions": len(set(asked.cluster.tolist())),
        "unknown_clicks_left_out": files.unknown_clicks,
        "targets_unknown": int((asked.targets < 0).sum()),
        "candidates_mean": round(answers.candidates, 1),
    }


def _print(console: Any, result: Mapping[str, Any]) -> None:
    from rich.table import Table

    data = result["data"]
    console.print(
        f"{data['prefixes_answered']:,} of {data['prefixes']:,} prefixes of {data['test_sessions']:,} sessions answered, "
        f"{data['candidates_mean']} candidates each; learned from {data['sessions_learned']:,} of {data['sessions']:,} "
        f"sessions over {data['items']:,} items"
    )
    table = Table("", "Recall@20", "95 %", "MRR@20", "95 %")
    for name, own in result["figures"].items():
        cells = [cell for key in ("recall@20", "mrr@20") for cell in _cells(own.get(key))]
        table.add_row(name, *(_cells(own["recall"]) + ["", ""] if "recall" in own else cells))
    console.print(table)
    for size, own in result["latency_by_batch"].items():
        stages = ", ".join(f"{stage} {own[f'{stage}_ms']:.2f}" for stage in ("retrieval", "features", "ranking"))
        console.print(f"batch of {size}: {own['p50_ms']:.2f} ms a request, p99 {own['p99_ms']:.2f} ({stages})")
    console.print("seconds: " + ", ".join(f"{name} {spent}" for name, spent in result["seconds"].items()))


def _cells(figure: Mapping[str, float] | Figure | None) -> list[str]:
    if figure is None:
        return ["", ""]
    one: Mapping[str, float] = figure if isinstance(figure, Mapping) else asdict(figure)
    return [f"{one['value']:.4f}", f"{one['low']:.4f} to {one['high']:.4f}"]
