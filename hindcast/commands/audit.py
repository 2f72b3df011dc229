"""`hindcast audit`: ledger, log and outbox against each other and the policy."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("audit")(audit_command)


def audit_command(
    data: Annotated[
        Path, typer.Option("--data", envvar="HINDCAST_DATA", help="The data folder.", file_okay=False, exists=True)
    ] = Path("data"),
    redis_url: Annotated[str | None, typer.Option("--redis", help="The ledger is this Redis.")] = None,
    groups: Annotated[int, typer.Option(help="Ranges of users looked at one after the other: more need less memory.")] = 4,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Check that ledger, log and outbox tell one truth, and every send against the policy that decided it. Works beside a
    running server. Exit code 1 when anything is found."""
    from rich.console import Console
    from rich.progress import Progress

    from serve_app.audit.findings import KINDS
    from serve_app.audit.ledger_side import ledger_side
    from serve_app.audit.run import audit

    with Progress(transient=True, disable=as_json) as progress:
        task = progress.add_task("reading the ledger", total=None)
        with ledger_side(data, redis_url) as side:
            progress.update(task, description="users", total=groups)
            report = audit(
                data, side, now_us=time.time_ns() // 1000, groups=groups,
                progress=lambda done, total: progress.update(task, completed=done, total=total),
            )  # fmt: skip
    if as_json:
        typer.echo(json.dumps(report.document(), ensure_ascii=False, indent=2))
    else:
        console = Console(highlight=False, soft_wrap=True)
        for kind in KINDS:
            if kind not in report.counts:
                continue
            console.print(f"[red]{report.counts[kind]:,} {kind}[/]: {KINDS[kind]}")
            for example in report.examples[kind]:
                console.print(f"    {example}", markup=False)
        for name, count in report.looked_at.items():
            console.print(f"{count:,} {name}")
        for note in report.notes:
            console.print(f"[yellow]{note}[/]")
        console.print("[green]nothing found[/]" if report.clean else f"[red]{report.counts.total():,} findings[/]")
    if not report.clean:
        raise typer.Exit(1)
