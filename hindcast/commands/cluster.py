"""`hindcast serve-config` and `hindcast node-env`: what a cluster needs besides Ray's own commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["register"]

group = typer.Typer(no_args_is_help=True, help="The file for `serve deploy`: check one, or write one from the settings.")


@group.command("check")
def check(file: Annotated[Path, typer.Argument(help="A Serve config file.")]) -> None:
    """Read a Serve config file strictly: unknown keys, which Serve passes over, are errors. Needs no cluster."""
    from rich.console import Console
    from rich.table import Table

    from serve_app.running.serve_file import check_serve_file
    from serve_app.running.serve_reading import scaling_numbers

    found = check_serve_file(file)
    table = Table("deployment", "replicas", "ongoing", "queued", "surge %")
    for name, options in found.options.items():
        scaling = options.get("autoscaling_config")
        whole = scaling_numbers(scaling) if scaling else None  # what the file leaves out is Serve's default
        replicas = f"{whole.min_replicas} to {whole.max_replicas}" if whole else str(options.get("num_replicas"))
        bounds = (options["max_ongoing_requests"], options["max_queued_requests"], options["max_surge_percent"])
        table.add_row(name, replicas, *(str(value) for value in bounds))
    console = Console()
    console.print(table)
    console.print(
        f"{file} holds: topology {found.settings.topology}, ledger {found.settings.ledger.backend}", highlight=False
    )


@group.command("write")
def write(
    data: Annotated[Path, typer.Option(help="The data folder as every node sees it.", envvar="HINDCAST_DATA")],
    keys: Annotated[Path, typer.Option(help="The keys file as every node sees it.")],
) -> None:
    """Print a Serve config file for the settings in force here (HINDCAST_... in the environment), every number spelt out."""
    import yaml

    from serve_app.running.serve_file import check_serve_text, serve_document
    from serve_app.settings import load_settings

    given = {"data": data, "http": {"host": "0.0.0.0"}, "security": {"keys_file": keys}}
    text = yaml.safe_dump(serve_document(load_settings(**given)), sort_keys=False)
    check_serve_text(text)
    typer.echo(text, nl=False)


def node_env(
    folder: Annotated[Path, typer.Option(help="Folder for this node's private files; only this user can open it.")],
) -> None:
    """Print this node's Ray switches as shell exports: `eval "$(hindcast node-env --folder DIR)" && ray start ...`."""
    import shlex

    from serve_app.running.switches import check_folder, node_switches
    from serve_app.settings import load_settings

    folder = folder.resolve()
    check_folder(folder)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    for name, value in node_switches(load_settings(), folder).items():
        typer.echo(f"export {name}={shlex.quote(value)}")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(group, name="serve-config")
    app.command("node-env")(node_env)
