"""`hindcast world`: people, products and responses whose truth is known, as catalogue and log."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add `world`."""
    app.command("world")(world)


def world(
    users: Annotated[int, typer.Option(min=1, help="people")] = 3_000,
    items: Annotated[int, typer.Option(min=1, help="products")] = 2_000,
    days: Annotated[int, typer.Option(min=1, help="days of log")] = 21,
    seed: Annotated[int, typer.Option(min=0, help="same seed, same bytes")] = 7,
    start: Annotated[str, typer.Option(help="first day, UTC, as 2026-10-19")] = "",
    policy: Annotated[Path | None, typer.Option(help="behaviour policy (default: the world's own, which explores)")] = None,
    data: Annotated[Path, typer.Option(envvar="HINDCAST_DATA", help="data folder")] = Path("data"),
    replace: Annotated[bool, typer.Option("--replace", help="replace what the data folder holds")] = False,
) -> None:
    """Make a synthetic world: catalogue and log as a shop would have them, and the truth kept aside in DATA/world.

    Its send decisions and lists come from the serving core under a policy that explores (flips, cells, holdouts).
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from serve_app.policy.document import load_policy
    from simulators.world.publish import publish, refuse_unless_free
    from simulators.world.settings import world_settings

    settings = world_settings(users=users, items=items, days=days, seed=seed, start=start)
    document = load_policy(policy) if policy is not None else None
    refuse_unless_free(data, replace=replace)
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("days"), TimeElapsedColumn())
    with Progress(*columns, console=console) as shown:
        task = shown.add_task("living the world", total=days)

        def progress(done: int, _: int) -> None:
            shown.update(task, completed=done)

        rows = publish(settings, data, policy=document, replace=replace, progress=progress)
    counts = ", ".join(f"{count:,} {table}" for table, count in sorted(rows.items()))
    typer.echo(f"{data}: {users:,} users, {items:,} items, {days} days, seed {seed}")
    typer.echo(f"log: {counts}")
    typer.echo(f"truth, which the log does not show: {data / 'world'}")
