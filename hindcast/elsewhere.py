"""Servers that do not run on this machine: told by their address and a key."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from serve_app.release.flip import HttpFlip, PromotionPath

__all__ = ["KeyFileOption", "ServerOption", "flip_of", "read_key", "say_if_nobody_was_told"]

ServerOption = Annotated[
    str | None, typer.Option("--server", help="Address of a server elsewhere, e.g. of a cluster: http://shop.internal:8000.")
]
KeyFileOption = Annotated[
    Path | None, typer.Option("--key-file", help="File that holds an API key with the scope admin, for --server.")
]


def read_key(file: Path) -> str:
    """The key a file holds. InvalidInput where it cannot be read, or holds anything but one key."""
    from serve_app.errors import InvalidInput

    try:
        key = file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{file} cannot be read: {error}", field="--key-file") from None
    if not re.fullmatch(r"[!-~]+", key):  # nothing of it is said: it is a secret, or several
        raise InvalidInput(f"{file} does not hold one key and nothing else", field="--key-file", hint="hindcast keys new")
    return key


def flip_of(data: Path, kind: PromotionPath, server: str | None, key_file: Path | None) -> HttpFlip | None:
    """The server to promote in: the one named, or the one that runs on `data` on this machine; None: there is none.
    InvalidInput where only one of address and key is given."""
    from serve_app.errors import InvalidInput
    from serve_app.release.flip import HttpFlip, find_flip

    if (server is None) != (key_file is None):
        raise InvalidInput("--server and --key-file go together", field="--server" if server is None else "--key-file")
    if server is None or key_file is None:
        return find_flip(data, kind)
    return HttpFlip(server, read_key(key_file), kind)


def say_if_nobody_was_told(flip: HttpFlip | None) -> None:
    """A server elsewhere on the same data would go on with what it has."""
    if flip is None:
        typer.echo(
            "no server runs on this data folder here, so none was told; one elsewhere is told with --server", err=True
        )
