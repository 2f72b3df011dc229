"""`hindcast demo`: everything from nothing to a running server, each step only where it is still missing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from serve_app.errors import InvalidInput

__all__ = ["register"]

Data = Annotated[Path, typer.Option(help="Data folder; made when absent.", envvar="HINDCAST_DATA")]


def _step(title: str, arguments: Sequence[str]) -> None:
    """Run one `hindcast` command in a process of its own, so that its memory is gone before the next."""
    sys.stdout.write(f"\n== {title}\n   hindcast {' '.join(arguments)}\n")
    sys.stdout.flush()
    finished = subprocess.run([sys.executable, "-m", "hindcast", *arguments], check=False)
    if finished.returncode:
        raise typer.Exit(finished.returncode)


def demo(
    data: Data = Path("demo"),
    users: Annotated[int, typer.Option(min=100, help="Users of the synthetic world.")] = 3_000,
    items: Annotated[int, typer.Option(min=20, help="Items of the synthetic world.")] = 2_000,
    days: Annotated[int, typer.Option(min=3, help="Days of its log.")] = 21,
    seed: Annotated[int, typer.Option(help="Its seed.")] = 7,
    port: Annotated[int, typer.Option(min=1, max=65_535, help="HTTP port on loopback.")] = 8000,
) -> None:
    """Make a synthetic world, build and promote a release from its log, and serve it. Later runs only serve."""
    if data.exists() and not data.is_dir():
        raise InvalidInput("is a file", field=str(data), hint="name a folder with --data")
    where = ["--data", str(data)]
    if not (data / "catalogue" / "items.parquet").exists():
        world = ["world", "--users", str(users), "--items", str(items), "--days", str(days), "--seed", str(seed)]
        _step("A world of shoppers, and its log", [*world, *where])
        _step("Its users' consents, for the ledger", ["ledger", "seed", *where])
    if not (data / "releases" / "current").exists():
        _step("A release, built from that log", ["build", *where, "--promote"])
    sys.stdout.write(f"\n== The server\n   hindcast up --data {data} --port {port}\n")
    sys.stdout.flush()
    # Becoming the server, not starting it: Ctrl-C and signals then reach it directly.
    os.execv(sys.executable, [sys.executable, "-m", "hindcast", "up", *where, "--port", str(port)])


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(demo)
