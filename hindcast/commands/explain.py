"""`hindcast explain ID`: why a notification was sent or not, for people."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["register"]

_COLOURS = {"keep": "green", "suppress": "red", "defer": "yellow", "send": "green", "none": "dim"}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("explain")(explain_command)


def explain_command(
    decision_id: Annotated[str, typer.Argument(metavar="ID", help="decision_id of an answer.")],
    data: Annotated[Path, typer.Option("--data", envvar="HINDCAST_DATA", help="The data folder.", file_okay=False)] = Path(
        "data"
    ),
    redis_url: Annotated[str | None, typer.Option("--redis", help="The ledger is this Redis.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As GET /v1/decisions/ID gives it.")] = False,
) -> None:
    """Say why a decision was what it was: every candidate, gate by gate, with use, limit and next free time.

    Asks the running server; without one reads the ledger's file and the log. Also knows decisions that sent nothing."""
    from rich.console import Console

    from serve_app.audit.finding import explain_decision

    said = explain_decision(data, decision_id, redis_url=redis_url)
    if as_json:
        typer.echo(json.dumps(said, ensure_ascii=False, indent=2))
        return
    said = _escaped(said)
    console = Console(highlight=False)
    for line in _lines(said):
        console.print(line, soft_wrap=True)
    for candidate in said["candidates"]:
        console.print()
        console.print(_title(candidate))
        for line in _of_candidate(candidate):
            console.print("  " + line, soft_wrap=True)
        if candidate["gates"]:
            console.print(_gates(candidate["gates"]))


def _escaped(said: Any) -> Any:
    """Every text without markup: ids are the callers'."""
    from rich.markup import escape

    if isinstance(said, dict):
        return {name: _escaped(value) for name, value in said.items()}
    if isinstance(said, list):
        return [_escaped(value) for value in said]
    return escape(said) if isinstance(said, str) else said


def _lines(said: dict[str, Any]) -> Iterator[str]:
    """The decision as a whole."""
    colour = _COLOURS.get(said["action"], "white")
    until = f", to be decided again at {said['until']}" if said["until"] else ""
    yield f"[b {colour}]{said['action']}[/] ({said['reason']}){until}"
    yield f"decision {said['decision_id']} at {said['decided_at']}, found in the {said['source']}"
    yield f"release {said['release']}, policy {said['policy']}, code {said['code_version']}"
    written = said["commit_version"]
    wrote = f"wrote version {written}" if written is not None else "what it wrote, if anything, is in the log"
    yield f"ledger: read version {said['read_version']}; {wrote}"
    yield f"user: zone {said['zone'] or 'unknown'}, region {said['region'] or 'unknown'}"
    if said["cell"] is not None and said["cell"] >= 0:
        yield f"policy cell {said['cell']}, drawn with probability {said['propensity_cell']:g}"
    for one in said["experiments"]:
        yield f"experiment {one['experiment']}: arm {one['arm_id'] or one['arm']} (probability {one['propensity']:g})"
    for one in said["holdouts"]:
        held = "[red]held out[/]" if one["held_out"] else "not held out"
        yield f"holdout {one['holdout']}: {held} ({one['propensity']:g})"
    if said["degraded"]:
        yield f"[yellow]degraded: {', '.join(said['degraded'])}[/]"
    flipped = "; a declared random flip changed the choice" if said["explored"] else ""
    forced = "; the choice was certain" if said["forced"] else ""
    yield f"probability of sending nothing: {_number(said['propensity_none'])}{flipped}{forced}"
    for key, words in (("decided_again_as", "decided again as"), ("answers_deferral", "answers the deferral")):
        if said[key]:
            yield f"{words} {said[key]}"
    for one in said["sends"]:
        yield f"[green]{one['status']}[/]: {one['campaign']} by {one['channel']}, slot {one['slot']}"


def _title(candidate: dict[str, Any]) -> str:
    item = f", item {candidate['item']}" if candidate["item"] else ""
    colour = _COLOURS.get(candidate["action"], "white")
    outcome = f"[{colour}]{candidate['action']}[/] ({candidate['reason']})"
    return f"[b]{candidate['campaign']}[/] by {candidate['channel']}{item}: {outcome}"


def _of_candidate(candidate: dict[str, Any]) -> Iterator[str]:
    heads = ", ".join(f"{name} {_number(value)}" for name, value in (candidate["heads"] or {}).items()) or "none"
    yield f"value {_number(candidate['value'])} from {heads}; chosen with probability {_number(candidate['propensity'])}"
    if candidate["ghost"]:
        yield f"[magenta]ghost: would have been sent but for holdout {candidate['holdout'] or 'unknown'}[/]"
    elif candidate["holdout"]:
        yield f"withheld by holdout {candidate['holdout']}; without it chosen with {_number(candidate['propensity_shadow'])}"
    if candidate["ghost_first"]:
        yield "the user's first would-send since a holdout covers it"


def _gates(gates: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table("gate", "says", "reason", "used", "limit", "next free", box=None, padding=(0, 2))
    for one in gates:
        colour = _COLOURS.get(one["outcome"], "white")
        said = (f"[{colour}]{one['outcome']}[/]", one["reason"] or "", _number(one["used"]), _number(one["limit"]))
        table.add_row(one["gate"], *said, one["next_free_at"] or "")
    return table


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
