"""`hindcast ledger check|show|seed|snapshot|reconcile`: look at a ledger without disturbing the process that owns it,
seed it, keep its snapshots, put back what a fail-over lost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from serve_app.ledger.columns import LedgerView

__all__ = ["register"]

DataOption = Annotated[Path, typer.Option("--data", envvar="HINDCAST_DATA", help="The data folder.", file_okay=False)]
group = typer.Typer(name="ledger", help="The ledger: check its file, show a user.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the group to the command."""
    app.add_typer(group)


@group.command("check")
def check_command(data: DataOption = Path("data")) -> None:
    """Read the whole SQLite ledger and say what does not fit: damage, checksums, versions, lost entries. Exit code 1 when
    anything is found."""
    from rich.console import Console

    from serve_app.ledger.opening import ledger_path
    from serve_app.ledger.sqlite import SqliteLedger

    console = Console()
    with console.status("reading the ledger"):
        ledger = SqliteLedger(ledger_path(data), read_only=True, timeout_s=3600.0)
        try:
            findings = ledger.check()
            users = sum(len(view.users) for view in ledger.snapshot(2**62))
        finally:
            ledger.close()
    for finding in findings:
        typer.echo(finding)
    typer.echo(f"{ledger_path(data)}: {users:,} users, " + (f"{len(findings)} findings" if findings else "sound"))
    if findings:
        raise typer.Exit(1)


@group.command("show")
def show_command(
    user: Annotated[str, typer.Argument(help="The user's id, as clients send it.")],
    data: DataOption = Path("data"),
    redis_url: Annotated[str | None, typer.Option("--redis", help="Look in this Redis instead of the data folder.")] = None,
    last: Annotated[int, typer.Option(min=0, max=10_000, help="History entries to show.")] = 20,
) -> None:
    """Show what the ledger knows of USER: consents with proof, opt-outs, zone, and the last grants."""
    import numpy as np
    from rich.console import Console

    from serve_app.errors import UnknownIdentifier
    from serve_app.ids import hash_id
    from serve_app.ledger.opening import open_ledger

    ledger = open_ledger(
        data, backend="redis" if redis_url else "sqlite", redis_url=redis_url, read_only=True, durability="process"
    )
    try:
        number = hash_id(user)
        record = ledger.get_user(number)
        if record is None:
            raise UnknownIdentifier(f"the ledger knows no user {user[:100]!r}", field="user")
        view = ledger.read(np.asarray([number], np.uint64))
    finally:
        ledger.close()
    console = Console(width=None if Console().is_terminal else 130)
    console.print(f"user {user}  hash {number:016x}  version {record.version}", highlight=False)
    console.print(f"zone {record.zone or 'unknown'}, region {record.region or 'unknown'}", highlight=False)
    for title, consent in (("advertising", record.consent_ad), ("advertising at night", record.consent_night)):
        words = f"{_when(consent.at)}, proof: {consent.proof or 'none kept'}" if consent.at else "none"
        console.print(f"consent to {title}: {words}", highlight=False, markup=False)
    console.print(f"reachable by {_channels(record.reachable)}; opted out of {_channels(record.opted_out)}", highlight=False)
    if len(view.histories.entries):
        console.print(_history(view, last))


def _when(at: int) -> str:
    from datetime import UTC, datetime, timedelta

    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=at)).isoformat(timespec="seconds")


def _channels(bits: int) -> str:
    from serve_app.vocabulary import Channel

    return ", ".join(channel.name for channel in Channel if bits >> channel & 1) or "nothing"


def _history(view: LedgerView, last: int) -> Table:
    from rich.table import Table

    from serve_app.ledger.columns import HistoryFlag
    from serve_app.vocabulary import Channel, MessageClass

    entries = view.histories.entries
    title = f"last {min(last, len(entries))} of {len(entries)}"
    table = Table("at", "what", "channel", "class", "campaign", "request", title=title, box=None, padding=(0, 2, 0, 0))
    for entry in entries[len(entries) - min(last, len(entries)) :]:
        what = "ghost" if entry["holdout"] else "sent"
        what += ", refunded" if entry["flags"] & HistoryFlag.refunded else ""
        what += ", not counted" if entry["flags"] & HistoryFlag.uncounted else ""
        names = (kind(int(entry[field])).name for kind, field in ((Channel, "channel"), (MessageClass, "message_class")))
        hashes = (f"{int(entry[field]):016x}" for field in ("campaign", "request_id"))
        table.add_row(_when(int(entry["at"])), what, *names, *hashes)
    return table


@group.command("seed")
def seed_command(
    data: DataOption = Path("data"),
    redis_url: Annotated[str | None, typer.Option("--redis", help="Seed this Redis instead of the data folder.")] = None,
) -> None:
    """Give the ledger the consents, opt-outs, zones and reachability that the log last saw, for users it does not know.
    Not while a server owns the SQLite file."""
    from serve_app.ledger.opening import open_ledger
    from serve_app.ledger.seeding import seed_ledger

    ledger = open_ledger(data, backend="redis" if redis_url else "sqlite", redis_url=redis_url)
    try:
        written = seed_ledger(ledger, data)
    finally:
        ledger.close()
    typer.echo(f"{written:,} users of the log are now known to the ledger")


@group.command("snapshot")
def snapshot_command(
    data: DataOption = Path("data"),
    redis_url: Annotated[str | None, typer.Option("--redis", help="The ledger is this Redis.")] = None,
    day: Annotated[str, typer.Option(help="State at the start of this UTC day, YYYY-MM-DD; default: today.")] = "",
) -> None:
    """Write the ledger as of a day's start into the log, in place of a snapshot of that day: what a replay from that day
    begins with. A running server does so by itself once a day. Works beside it."""
    import time

    from rich.progress import Progress, TextColumn

    from serve_app.ledger.opening import open_ledger
    from serve_app.log.ledger_state import write_snapshot

    now = time.time_ns() // 1000
    as_of = _day_start(day, now)
    with Progress(TextColumn("{task.description}"), transient=True) as progress:
        task = progress.add_task("opening the ledger")
        ledger = open_ledger(
            data, backend="redis" if redis_url else "sqlite", redis_url=redis_url, read_only=True, durability="process"
        )
        try:
            users = write_snapshot(
                data,
                ledger.snapshot(as_of),
                as_of,
                now,
                progress=lambda done: progress.update(task, description=f"{done:,} users"),
            )
        finally:
            ledger.close()
    typer.echo(f"{users:,} users as of {_when(as_of)}")


def _day_start(day: str, now: int) -> int:
    from datetime import UTC, datetime

    from serve_app.errors import InvalidInput

    day_us = 86_400_000_000
    if not day:
        return now // day_us * day_us
    try:
        return round(datetime.strptime(day, "%Y-%m-%d").replace(tzinfo=UTC).timestamp()) * 1_000_000
    except ValueError:
        raise InvalidInput(f"{day[:40]!r} is not a day", field="day", hint="write YYYY-MM-DD") from None


@group.command("reconcile")
def reconcile_command(
    redis_url: Annotated[str, typer.Option("--redis", help="The Redis whose fail-over lost writes.")],
    data: DataOption = Path("data"),
) -> None:
    """Put back from the log what a fail-over of Redis lost, and open the buckets it closed. Servers may run: closed buckets
    grant nothing meanwhile. Then run `hindcast audit`, which lists deferrals and outbox rows that were lost for good."""
    from rich.progress import Progress

    from serve_app.ledger.reconcile import reconcile
    from serve_app.ledger.redis import RedisLedger

    ledger = RedisLedger(redis_url, require="weaker")
    try:
        with Progress(transient=True) as progress:
            task = progress.add_task("closed shards", total=None)
            done = reconcile(ledger, data, progress=lambda at, of: progress.update(task, completed=at, total=of))
    finally:
        ledger.close()
    typer.echo(
        f"{done.shards:,} shards opened; of {done.users:,} users {done.entries:,} history entries and {done.states:,} "
        "states were put back"
    )
