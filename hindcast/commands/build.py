"""`hindcast build`."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from serve_app.release.build.pipeline import BuildReport
    from serve_app.release.build.runner import Runner

__all__ = ["register"]

DataOption = Annotated[Path, typer.Option("--data", envvar="HINDCAST_DATA", help="The data folder.", file_okay=False)]

_STATES = {"done": "[green]done[/green]", "unchanged": "[dim]unchanged[/dim]"}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("build")(build_command)


def build_command(
    data: Annotated[Path, typer.Option("--data", envvar="HINDCAST_DATA", help="The data folder.", file_okay=False)] = Path(
        "data"
    ),
    seed: Annotated[int, typer.Option(help="Fixes every sample and start vector.")] = 7,
    embedding: Annotated[str, typer.Option(help="svd: from co-visits (quick); session: from the order of clicks.")] = "svd",
    threads: Annotated[int, typer.Option(help="Threads of model training.")] = 2,
    local: Annotated[bool, typer.Option("--local", help="Run in this process, without Ray: tests and small data.")] = False,
    promote: Annotated[bool, typer.Option("--promote", help="Promote the release when it is built.")] = False,
) -> None:
    """Build a release from catalogue and log. A build that was stopped goes on where it was; what has not changed is
    not done again."""
    from rich.console import Console

    from serve_app.clock import now_us
    from serve_app.log.compaction import compact
    from serve_app.release.build.pipeline import build_release
    from serve_app.release.build.runner import LocalRunner
    from serve_app.release.build.settings import BuildSettings
    from serve_app.release.flip import find_flip
    from serve_app.release.registry import promote as promote_release

    console = Console()

    def observe(name: str, state: str) -> None:
        if state == "running":
            status.update(name)
        else:
            console.print(f"  {name}: {_STATES[state]}")

    settings = BuildSettings.model_validate({"seed": seed, "embedding": embedding, "threads": threads})
    # The jobs read Parquet: what a server has journalled since the last compaction goes in first.
    compact(data)
    with console.status("starting") as status, _ray(local) as ray_runner:
        report = build_release(
            data,
            settings=settings,
            runner=ray_runner or LocalRunner(),
            created_at=now_us(),
            observer=observe,
            detail=status.update,
        )
    _print(console, report)
    if promote:
        done = promote_release(data, report.version, now=now_us(), flip=find_flip(data))
        console.print(f"current release: {done.version}")
    else:
        console.print(f"next: hindcast release promote {report.version}")


@contextmanager
def _ray(local: bool) -> Iterator[Runner | None]:
    """A runner on Ray: the cluster that is up, else one of our own, taken down afterwards. None where `local`."""
    if local:
        yield None
        return
    import ray
    import ray.data

    from serve_app.release.build.runner import RayRunner

    ours = not ray.is_initialized()
    if ours:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="warning")
    ray.data.DataContext.get_current().enable_progress_bars = False  # the command shows its own
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield RayRunner()
    finally:
        if ours:
            ray.shutdown()


def _print(console: Console, report: BuildReport) -> None:
    from rich.table import Table

    console.print(f"[bold]{report.version}[/bold] in {report.folder}")
    for reason, count in sorted(report.extracted.items()):
        console.print(f"  events {reason}: {count:,}")
    table = Table("figure", "value", "95 % interval", "cases")
    for group, figures in sorted(report.metrics.items()):
        for name, one in figures.items():
            between = "" if one.low is None or one.high is None else f"{one.low:.4f} to {one.high:.4f}"
            table.add_row(f"{group} {name}", f"{one.value:.4f}", between, f"{one.cases or ''}")
    console.print(table)
    for part, why in report.left_out.items():
        console.print(f"  left out: {part}: {why}")
    steps = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in report.seconds.items())
    console.print(
        f"{sum(report.seconds.values()):.1f} s ({steps or 'nothing changed'}); peak memory {report.peak_bytes / 1e6:,.0f} MB"
    )
