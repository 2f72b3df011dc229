"""`hindcast policy check|diff|list|show|promote|rollback`."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hindcast.elsewhere import KeyFileOption, ServerOption, flip_of, say_if_nobody_was_told

if TYPE_CHECKING:
    from serve_app.policy.document import PolicyDocument

__all__ = ["register"]

DataOption = Annotated[
    Path, typer.Option("--data", envvar="HINDCAST_DATA", help="The data folder.", file_okay=False, show_default=True)
]
ExistingData = Annotated[
    Path, typer.Option("--data", envvar="HINDCAST_DATA", help="The data folder.", file_okay=False, exists=True)
]

group = typer.Typer(name="policy", help="Policy documents: check, compare, promote.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the group to the command."""
    app.add_typer(group)


def _now() -> int:
    return time.time_ns() // 1000


def _document(data: Path, name: str) -> PolicyDocument:
    """A file, or a revision of the data folder."""
    from serve_app.errors import UnknownIdentifier
    from serve_app.policies import read_policy
    from serve_app.policy.document import load_policy

    if Path(name).is_file() or "." in name or "/" in name:
        return load_policy(name)
    try:
        return read_policy(data, name)
    except UnknownIdentifier as error:
        message = f"{name!r} is neither a file nor a policy stored in {data}"
        raise UnknownIdentifier(message, field="policy", hint=error.hint) from None


@group.command("check")
def check_command(
    file: Annotated[Path, typer.Argument(help="YAML or JSON.")],
    strict: Annotated[bool, typer.Option("--strict", help="Remarks count: exit code 1 if there are any.")] = False,
) -> None:
    """Check FILE: bounds, unknown keys, contradictions, each with line, field and fix; and remark on rules that can never
    bite. Exit code 0: good; 1: good but for remarks, with --strict; 2: refused."""
    from serve_app.policy.compile import compile_policy
    from serve_app.policy.document import review_policy
    from serve_app.policy.remarks import remarks

    document, positions, problems = review_policy(file)
    if document is None:
        for problem in problems:
            typer.echo(f"hindcast: {problem}", err=True)
        raise typer.Exit(2)
    variants = len(compile_policy(document, heads={}).variants)
    typer.echo(f"{file.name}: good; revision {document.revision}, {_size(document)}, {variants} variants")
    typer.echo(f"looks back at most {document.longest_window_hours:g} h")
    found = remarks(document)
    for one in found:
        typer.echo(f"remark: {file.name}{positions.text(tuple(one.field.split('.')))}: {one}")
    if found and strict:
        raise typer.Exit(1)


def _size(document: PolicyDocument) -> str:
    counted = {
        "caps": len(document.caps),
        "quiet hours": len(document.quiet_hours),
        "holdouts": len(document.holdouts),
        "experiments": len(document.experiments),
        "cells": len(document.cells.variants) if document.cells else 0,
        "segments": len(document.segments),
    }
    return ", ".join(f"{count} {name}" for name, count in counted.items())


@group.command("diff")
def diff_command(
    a: Annotated[str, typer.Argument(help="File or revision.")],
    b: Annotated[str, typer.Argument(help="File or revision.")],
    data: DataOption = Path("data"),
) -> None:
    """Say in words what changes from A to B."""
    from serve_app.policy.diff import policy_diff

    for line in policy_diff(_document(data, a), _document(data, b)) or ["no difference"]:
        typer.echo(line)


@group.command("list")
def list_command(data: ExistingData = Path("data")) -> None:
    """Stored policies, newest promoted first; the current one is marked."""
    from rich.console import Console
    from rich.table import Table

    from serve_app.policies import list_policies
    from serve_app.policy.instants import instant_text

    stored = list_policies(data)
    if not stored:
        typer.echo(f"no policy is stored in {data} yet (hindcast policy promote FILE)")
        return
    table = Table("", "revision", "name", "promoted", "problem")
    for one in stored:
        promoted = instant_text(one.promoted_at) if one.promoted_at else "never"
        table.add_row("*" if one.current else "", one.revision, one.name, promoted, one.problem or "")
    Console().print(table)


@group.command("show")
def show_command(
    revision: Annotated[str, typer.Argument(help="Default: the current policy.")] = "",
    data: ExistingData = Path("data"),
) -> None:
    """Print a stored policy as YAML, defaults spelled out."""
    import yaml

    from serve_app.policies import current_policy, read_policy

    document = read_policy(data, revision) if revision else current_policy(data)
    typer.echo(f"# revision {document.revision}")
    typer.echo(yaml.safe_dump(document.model_dump(mode="json"), sort_keys=False, allow_unicode=True), nl=False)


@group.command("promote")
def promote_command(
    policy: Annotated[str, typer.Argument(help="File, or a stored revision.")],
    data: DataOption = Path("data"),
    server: ServerOption = None,
    key_file: KeyFileOption = None,
) -> None:
    """Check POLICY, store it under its revision, make it current (in a running server, too), and say what changes."""
    from serve_app.policies import promote_policy, read_current_policy, read_policy, store_policy
    from serve_app.policy.diff import policy_diff

    flip = flip_of(data, "policies", server, key_file)
    document = _document(data, policy)
    before, history = read_current_policy(data)
    _prepare_segments(data, document)
    done = promote_policy(data, store_policy(data, document), now=_now(), flip=flip)
    typer.echo(f"current policy: {done.revision}" + (f" (was {done.replaced})" if done.replaced else ""))
    if before is not None:
        for line in policy_diff(read_policy(data, before), document):
            typer.echo(f"  {line}")
    _say_what_is_not_kept(data, document, {one.revision for one in history})
    say_if_nobody_was_told(flip)


def _prepare_segments(data: Path, document: PolicyDocument) -> None:
    """Members are computed before the first request is decided by the policy; one that cannot be evaluated is refused."""
    from serve_app.segments.refresh import prepare_policy

    if not document.segments or not (data / "catalogue").is_dir():
        return
    made = prepare_policy(data, document, now=_now(), redis_url=os.environ.get("HINDCAST_LEDGER__REDIS_URL"))
    if made is not None:
        typer.echo(f"members of {len(document.segments)} segments computed over {made.population:,} users")


def _say_what_is_not_kept(data: Path, document: PolicyDocument, earlier: set[str]) -> None:
    """A policy that looks back further than any before it cannot know what was dropped under them."""
    from serve_app.policies import list_policies, read_policy
    from serve_app.policy.remarks import KEPT_HOURS, history_remark

    readable = [one.revision for one in list_policies(data) if one.revision in earlier and one.problem is None]
    kept = max([KEPT_HOURS, *(read_policy(data, revision).longest_window_hours for revision in readable)])
    remark = history_remark(document, kept)
    if remark is not None:
        typer.echo(f"remark: {remark}")


@group.command("rollback")
def rollback_command(data: ExistingData = Path("data"), server: ServerOption = None, key_file: KeyFileOption = None) -> None:
    """Go back to the policy that the current one replaced (in a running server, too), and say what changes."""
    from serve_app.policies import read_policy, rollback_policy
    from serve_app.policy.diff import policy_diff

    flip = flip_of(data, "policies", server, key_file)
    done = rollback_policy(data, now=_now(), flip=flip)
    typer.echo(f"current policy: {done.revision} (was {done.replaced})")
    for line in policy_diff(read_policy(data, str(done.replaced)), read_policy(data, done.revision)):
        typer.echo(f"  {line}")
    say_if_nobody_was_told(flip)
