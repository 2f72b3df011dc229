"""`hindcast release list|show|promote|rollback|push|pull`."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hindcast.elsewhere import KeyFileOption, ServerOption, flip_of, say_if_nobody_was_told

if TYPE_CHECKING:
    from serve_app.release.manifest import Manifest, Metric

__all__ = ["register"]

DataOption = Annotated[
    Path, typer.Option("--data", envvar="HINDCAST_DATA", help="The data folder.", file_okay=False, show_default=True)
]

group = typer.Typer(name="release", help="The releases of a data folder.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the group to the command."""
    app.add_typer(group)


def _when(microseconds: int) -> str:
    return datetime.fromtimestamp(microseconds / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _now() -> int:
    return time.time_ns() // 1000


@group.command("list")
def list_command(data: DataOption = Path("data")) -> None:
    """All releases, newest first; the current one is marked."""
    from rich.console import Console
    from rich.table import Table

    from serve_app.release.registry import list_releases

    table = Table("")
    table.add_column("version", no_wrap=True)
    for heading in ("built", "log to", "surfaces", "problem"):
        table.add_column(heading)
    for one in list_releases(data):
        manifest = one.manifest
        built = _when(manifest.created_at) if manifest else ""
        log_to = _when(manifest.lineage.log_to) if manifest and manifest.lineage.log_to else ""
        surfaces = ", ".join(sorted(manifest.heads)) if manifest else ""
        table.add_row("*" if one.current else "", one.version, built, log_to, surfaces, one.problem or "")
    Console().print(table)


@group.command("show")
def show_command(
    version: Annotated[str, typer.Argument(help="Default: the current release.")] = "",
    data: DataOption = Path("data"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole manifest as JSON.")] = False,
) -> None:
    """What a release holds, where it came from and how good it measured."""
    from serve_app.release.manifest import read_manifest
    from serve_app.release.registry import current_release, release_folder

    manifest = read_manifest(release_folder(data, version) if version else current_release(data))
    if as_json:
        typer.echo(manifest.model_dump_json(indent=1))
    else:
        _print_manifest(manifest)


def _print_manifest(manifest: Manifest) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    lineage = manifest.lineage
    console.print(f"[bold]{manifest.version}[/bold], built {_when(manifest.created_at)} by code {lineage.code_version}")
    if lineage.log_from is not None and lineage.log_to is not None:
        console.print(f"log {_when(lineage.log_from)} to {_when(lineage.log_to)}, seed {lineage.seed}")
    size = sum(entry.bytes for entry in manifest.files.values())
    console.print(f"{len(manifest.files)} files, {size / 1e6:.1f} MB")
    for surface, heads in sorted(manifest.heads.items()):
        features = manifest.features.get(surface, [])
        console.print(f"  {surface}: {', '.join(heads) or 'no trained heads'}; {len(features)} features")
    for part, why in sorted(manifest.left_out.items()):
        console.print(f"  left out: {part}: {why}")
    table = Table("figure", "value", "95 % interval", "cases")
    for name, figures in sorted(manifest.metrics.items()):
        for figure, metric in figures.items():
            table.add_row(f"{name} {figure}", f"{metric.value:.4f}", _interval(metric), f"{metric.cases or ''}")
    console.print(table)


def _interval(metric: Metric) -> str:
    return "" if metric.low is None or metric.high is None else f"[{metric.low:.4f}, {metric.high:.4f}]".replace("[", r"\[")


@group.command("promote")
def promote_command(
    version: str, data: DataOption = Path("data"), server: ServerOption = None, key_file: KeyFileOption = None
) -> None:
    """Make VERSION current: verified and loaded whole first, then flipped in a running server without a dropped request."""
    from serve_app.release.registry import promote

    flip = flip_of(data, "releases", server, key_file)
    done = promote(data, version, now=_now(), flip=flip)
    typer.echo(f"current release: {done.version}" + (f" (was {done.replaced})" if done.replaced else ""))
    say_if_nobody_was_told(flip)


@group.command("rollback")
def rollback_command(data: DataOption = Path("data"), server: ServerOption = None, key_file: KeyFileOption = None) -> None:
    """Go back to the release that the current one replaced."""
    from serve_app.release.registry import rollback

    flip = flip_of(data, "releases", server, key_file)
    done = rollback(data, now=_now(), flip=flip)
    typer.echo(f"current release: {done.version} (was {done.replaced})")
    say_if_nobody_was_told(flip)


UrlOption = Annotated[str, typer.Option("--url", help="Folder of releases in a store: s3://bucket/releases, file:///share.")]


@group.command("push")
def push_command(version: str, url: UrlOption, data: DataOption = Path("data")) -> None:
    """Copy VERSION to a store that a cluster can pull it from."""
    from hindcast.bars import transfer_bar
    from serve_app.release.transfer import push_release

    with transfer_bar() as progress:
        place = push_release(data, version, url, progress)
    typer.echo(place)


@group.command("pull")
def pull_command(version: str, url: UrlOption, data: DataOption = Path("data")) -> None:
    """Copy VERSION from a store into the data folder, checked against its manifest. `promote` then serves it."""
    from hindcast.bars import transfer_bar
    from serve_app.release.transfer import pull_release

    with transfer_bar() as progress:
        folder = pull_release(data, version, url, progress)
    typer.echo(folder)
