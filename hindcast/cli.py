"""The `hindcast` command: every module of `hindcast.commands` adds its own part."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from functools import cache

import typer

from hindcast import commands
from serve_app.errors import HindcastError

__all__ = ["app", "main"]

app = typer.Typer(
    name="hindcast",
    help="Serve recommendations and send decisions on Ray, and rehearse policy changes on logged traffic.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@cache
def _register() -> None:
    for module in sorted(pkgutil.iter_modules(commands.__path__), key=lambda m: m.name):
        importlib.import_module(f"{commands.__name__}.{module.name}").register(app)


def main() -> None:
    """Entry point. Errors raised on purpose end as one line on stderr and exit code 2."""
    _register()
    try:
        app()
    except HindcastError as error:
        sys.stderr.write(f"hindcast: {error}\n")
        sys.exit(2)
