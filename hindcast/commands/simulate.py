"""`hindcast simulate`: policies against a world whose people react, tire and leave."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from simulators.replay.closed_loop import Simulated

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add `simulate`."""
    app.command("simulate")(simulate)


def simulate(
    policy: Annotated[list[str], typer.Option(help="FILE or revision to try; may be given several times")],
    data: Annotated[Path, typer.Option("--data", "--world", envvar="HINDCAST_DATA", help="data folder with a world")] = Path(
        "data"
    ),
    days: Annotated[int, typer.Option(min=0, help="days to live; 0: as many as the world has")] = 0,
    fatigue: Annotated[
        list[float] | None, typer.Option(help="how much people tire, times the world's own (default 0, 0.5, 1, 2)")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="also write the result as JSON to this FILE", dir_okay=False)] = None,
) -> None:
    """What policies would do in a world whose people react: a model, for policies too far from the log to be estimated.

    Against the policy that the world's log was written under, paired by common noise.
    """
    import orjson
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from serve_app.release.manifest import write_text_atomically
    from simulators.replay.asking import named_policies
    from simulators.replay.closed_loop import FATIGUE
    from simulators.replay.closed_loop import simulate as run
    from simulators.world.publish import read_world

    world, baseline = read_world(data)
    documents, factors = named_policies(data, policy), tuple(fatigue or FATIGUE)
    if min(factors) < 0:
        raise typer.BadParameter("must not be negative", param_hint="--fatigue")
    lives = min(days or world.settings.days, world.settings.days)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("days"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as shown:
        task = shown.add_task("living", total=lives * len(factors) * (1 + len(documents)))
        found = run(world.settings, baseline, documents, days=lives, fatigue=factors, progress=lambda: shown.advance(task))
    _show(found, list(documents), factors)
    if out is not None:
        write_text_atomically(out, orjson.dumps(found.plain(), option=orjson.OPT_INDENT_2).decode())
        typer.echo(f"written: {out}")


def _show(found: Simulated, policies: list[str], factors: tuple[float, ...]) -> None:
    from rich.console import Console
    from rich.table import Table

    from simulators.replay.closed_loop import METRICS
    from simulators.report.words import figure, measure, span

    typer.echo(f"MODEL, not a measurement: {found.users:,} people, {found.days} days")
    caption = "change from the world's own policy, 95 % over users; what changes sign from left to right is no conclusion"
    by_place = {(one.policy, one.metric, one.fatigue): one for one in found.differences}
    for name in policies:
        table = Table("", *(f"fatigue x{factor:g}" for factor in factors), title=name, caption=caption)
        for metric in METRICS:
            cells = [by_place[name, metric, factor] for factor in factors]
            said = measure(metric, "user")
            values = [(figure(one.difference * said.scale, signed=True), one) for one in cells]
            table.add_row(said.text, *(f"{text}\n{span(one.low, one.high, scale=said.scale)}" for text, one in values))
        Console().print(table)
