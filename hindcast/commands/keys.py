"""`hindcast keys`: API keys of a server, made, listed and revoked while it runs."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["register"]

group = typer.Typer(no_args_is_help=True, help="API keys: made, listed, revoked. A running server follows within a second.")
File = Annotated[Path, typer.Option(help="The keys file (security.keys_file).", envvar="HINDCAST_SECURITY__KEYS_FILE")]


@group.command("new")
def new(
    name: Annotated[str, typer.Argument(help="Who will use it; idempotency keys are scoped to the name.")],
    file: File,
    scope: Annotated[list[str], typer.Option(help="read, decide, events, outbox or admin; repeat for several.")],
    days: Annotated[float | None, typer.Option(min=0.001, max=36_500, help="Days until it expires.")] = None,
    per_s: Annotated[float | None, typer.Option(help="Calls a second of each ingress replica.")] = None,
    burst: Annotated[float | None, typer.Option(help="Calls at once; else two seconds' worth.")] = None,
) -> None:
    """Make a key and print it once. The file keeps its hash only."""
    from serve_app.errors import InvalidInput
    from serve_app.ingress.key_file import Scope, add_key

    known = {one.value for one in Scope}
    for one in scope:
        if one not in known:
            raise InvalidInput(f"there is no scope {one!r}", field="--scope", hint=", ".join(sorted(known)))
    expires_at = datetime.fromtimestamp(datetime.now(UTC).timestamp() + days * 86_400, UTC) if days is not None else None
    scopes = [Scope(one) for one in scope]
    typer.echo(add_key(file, name, scopes, expires_at=expires_at, per_s=per_s, burst=burst))


@group.command("list")
def list_keys(file: File) -> None:
    """Names, scopes, limits and ends of the keys in a file."""
    from rich.console import Console
    from rich.table import Table

    from serve_app.ingress.key_file import read_keys

    table = Table("name", "scopes", "expires", "calls/s")
    for key in read_keys(file):
        ends = "never" if key.expires_at is None else key.expires_at.isoformat(timespec="minutes")
        if key.expires_at is not None and key.expires_at < datetime.now(UTC):
            ends += " (expired)"
        limit = "no limit" if key.per_s is None else f"{key.per_s:g}"
        table.add_row(key.name, " ".join(key.scopes), ends, limit)
    Console().print(table)


@group.command("revoke")
def revoke(name: Annotated[str, typer.Argument(help="The key's name.")], file: File) -> None:
    """Take a key out of force."""
    from serve_app.ingress.key_file import remove_key

    remove_key(file, name)
    typer.echo(f"{name} is revoked")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(group, name="keys")
