"""`hindcast import online-retail|completejourney|sessions`: real data into a catalogue and a log."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["register"]

FromOption = Annotated[Path, typer.Option("--from", help="Folder that holds the data set.", exists=True, show_default=False)]
DataOption = Annotated[
    Path, typer.Option("--data", envvar="HINDCAST_DATA", help="The data folder to make.", file_okay=False, show_default=True)
]
ReplaceOption = Annotated[bool, typer.Option("--replace", help="Lose everything the data folder holds.")]

group = typer.Typer(name="import", help="Make a data folder from real data.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the group to the command."""
    app.add_typer(group)


def _run(name: str, source: Path, data: Path, *, replace: bool) -> None:
    from rich.console import Console

    from hindcast.importers.staging import REPORT_NAME, import_into

    load = importlib.import_module(f"hindcast.importers.{name}").load
    console = Console()
    with console.status("starting") as status:
        report = import_into(data, lambda: load(source), replace=replace, progress=status.update)
    console.print(report.table())
    for note in report.notes:
        console.print(f"  note: {note}", highlight=False)
    console.print(f"\n{data} is ready; the same counts are in {data / 'log' / REPORT_NAME}", highlight=False, soft_wrap=True)


@group.command("online-retail")
def online_retail(source: FromOption, data: DataOption = Path("data"), replace: ReplaceOption = False) -> None:
    """UCI Online Retail: invoices of a gift shop."""
    _run("online_retail", source, data, replace=replace)


@group.command("completejourney")
def completejourney(source: FromOption, data: DataOption = Path("data"), replace: ReplaceOption = False) -> None:
    """The Complete Journey: households of a grocer, campaigns, coupons."""
    _run("completejourney", source, data, replace=replace)


@group.command("sessions")
def sessions(source: FromOption, data: DataOption = Path("data"), replace: ReplaceOption = False) -> None:
    """Click sessions in Diginetica's form: train_sessions.csv(.gz) and test_prefixes.csv(.gz)."""
    _run("sessions", source, data, replace=replace)
