"""`hindcast segment check|count|refresh`: audiences, counted at every node, and their membership for the server."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.tree import Tree

    from serve_app.segments.evaluate import CountedNode
    from serve_app.segments.refresh import Report

__all__ = ["register"]

DataOption = Annotated[Path, typer.Option("--data", envvar="HINDCAST_DATA", help="The data folder.", file_okay=False)]
FileArgument = Annotated[Path, typer.Argument(help="YAML or JSON: a policy, a segment (id, where), or a list `segments`.")]
RedisOption = Annotated[
    str | None,
    typer.Option("--redis", envvar="HINDCAST_LEDGER__REDIS_URL", help="The ledger is this Redis, not the data folder's."),
]

group = typer.Typer(name="segment", help="Segments: check, count, refresh their membership.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the group to the command."""
    app.add_typer(group)


@group.command("check")
def check_command(file: FileArgument, data: DataOption = Path("data"), redis_url: RedisOption = None) -> None:
    """Check FILE: the trees, and that DATA can answer what they ask. Errors name line, field and fix."""
    from serve_app.segments.evaluate import check_answerable
    from serve_app.segments.reading import read_segments
    from serve_app.segments.refresh import load_audience, refresh_lock

    segments = read_segments(file, data)
    if not (data / "catalogue").is_dir():
        typer.echo(
            f"{file.name}: {len(segments.own)} segments, well formed; {data} holds no catalogue to check them against"
        )
        return
    with _progress() as report, refresh_lock(data, wait=True):
        audience = load_audience(data, as_of=_now(), redis_url=redis_url, report=report)
    check_answerable(segments.all, audience.population, audience.history)
    typer.echo(f"{file.name}: {len(segments.own)} segments, good")


@group.command("count")
def count_command(
    file: FileArgument,
    data: DataOption = Path("data"),
    as_of: Annotated[str, typer.Option(help="Instant to count as of, as 2026-01-31T09:00:00+09:00; default: now.")] = "",
    redis_url: RedisOption = None,
) -> None:
    """Evaluate the segments of FILE over everybody in DATA and print the exact count at every node."""
    from rich.console import Console

    from serve_app.segments.reading import read_segments
    from serve_app.segments.refresh import evaluate_now, load_audience, refresh_lock

    segments, at = read_segments(file, data), _instant(as_of) if as_of else _now()
    with _progress() as report, refresh_lock(data, wait=True):
        audience = load_audience(data, as_of=at, redis_url=redis_url, report=report)
        began = time.perf_counter()
        found = evaluate_now(segments.all, audience, report)
        took = time.perf_counter() - began
    console = Console()
    everybody = len(audience.population)
    for name in segments.own:
        console.print(_tree(name, found.trees[name], everybody), highlight=False)
    console.print(f"{everybody:,} users; evaluated in {took:.2f} s", highlight=False)


@group.command("refresh")
def refresh_command(
    data: Annotated[
        Path, typer.Option("--data", envvar="HINDCAST_DATA", help="The data folder.", file_okay=False, exists=True)
    ] = Path("data"),
    full: Annotated[bool, typer.Option("--full", help="Read the whole log again, not only the days that changed.")] = False,
    redis_url: RedisOption = None,
) -> None:
    """Evaluate the segments of the policies in force and publish who is in them. A running server takes it up by itself."""
    from serve_app.segments.refresh import refresh_segments

    with _progress() as report:
        manifest = refresh_segments(data, now=_now(), full=full, redis_url=redis_url, report=report)
    if manifest is None:
        typer.echo("no policy in force has a segment; nothing to do")
        return
    for one in manifest.segments:
        typer.echo(f"  {', '.join(one.ids)}: {one.members:,} of {manifest.population:,} users")
    for revision, why in manifest.left_out.items():
        typer.echo(f"  the earlier policy {revision} is left out: {why}")
    typer.echo(f"published for policy {', '.join(manifest.policies)}")


def _now() -> int:
    return time.time_ns() // 1000


def _instant(text: str) -> int:
    from serve_app.errors import InvalidInput
    from serve_app.policy.instants import instant_us

    try:
        return instant_us(text)
    except (ValueError, TypeError):
        hint = "write date, time and offset as 2026-01-31T09:00:00+09:00"
        raise InvalidInput(f"{text[:60]!r} is not an instant", field="--as-of", hint=hint) from None


@contextmanager
def _progress() -> Iterator[Report]:
    """One bar a step on standard error, gone when done; nothing where that is no terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bars = {}

        def report(step: str, done: int, total: int) -> None:
            if step not in bars:
                bars[step] = progress.add_task(step)
            progress.update(bars[step], completed=done, total=total)

        yield report


def _tree(name: str, counted: CountedNode, everybody: int) -> Tree:
    from rich.markup import escape
    from rich.tree import Tree

    def words(node: CountedNode) -> str:
        share = f" ({100 * node.count / everybody:.1f} %)" if everybody else ""
        return f"{escape(node.words)}: [bold]{node.count:,}[/]{share}"

    def grow(branch: Tree, node: CountedNode) -> None:
        below = branch.add(words(node))
        for child in node.children:
            grow(below, child)

    root = Tree(f"[bold]{escape(name)}[/]")
    grow(root, counted)
    return root
