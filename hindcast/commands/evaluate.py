"""`hindcast evaluate`: figures on public data, with the serving classes."""

from __future__ import annotations

import importlib
import pkgutil

import typer

from hindcast import evaluation

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the group; every module of `hindcast.evaluation` that offers `register` adds its own subcommand."""
    group = typer.Typer(name="evaluate", help="Figures on public data, with the serving classes.", no_args_is_help=True)
    for module in sorted(pkgutil.iter_modules(evaluation.__path__), key=lambda one: one.name):
        part = importlib.import_module(f"{evaluation.__name__}.{module.name}")
        if hasattr(part, "register"):
            part.register(group)
    app.add_typer(group)
