"""`hindcast log compact|erase|show|check|push|pull`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["register"]

DataOption = Annotated[
    Path,
    typer.Option("--data", envvar="HINDCAST_DATA", help="The data folder.", file_okay=False, exists=True, show_default=True),
]

group = typer.Typer(name="log", help="The log of a data folder.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the group to the command."""
    app.add_typer(group)


@group.command("compact")
def compact_command(
    data: DataOption = Path("data"),
    groups: Annotated[int, typer.Option(help="Files per table and day: a power of two up to 4096.")] = 4,
    redis_url: Annotated[str | None, typer.Option("--redis", help="The ledger is this Redis.")] = None,
) -> None:
    """Move the journal into Parquet, copy decision records of the ledger into the log, take erased users off the disk, and
    write the day's ledger snapshot where there is none. A running server is asked to do it (it does so by itself every few
    minutes). Safe while servers write, and to repeat."""
    from hindcast.keeping import keep_up, tell

    tell(keep_up(data, groups=groups, redis_url=redis_url))


@group.command("erase")
def erase_command(
    user: Annotated[str, typer.Argument(help="The user's id, as clients send it.")],
    data: DataOption = Path("data"),
    redis_url: Annotated[str | None, typer.Option("--redis", help="The ledger is this Redis.")] = None,
) -> None:
    """Forget USER: ledger, log, journal, catalogue. From now on nobody is shown anything of before; when this command ends,
    it is off the disk, but for releases built before, which forget with the next build."""
    import time

    from hindcast.keeping import erase_in_ledger, keep_up, tell
    from serve_app.ids import hash_id
    from serve_app.log.erasure import erase_user

    erase_user(data, hash_id(user), time.time_ns() // 1000)
    erase_in_ledger(data, user, redis_url=redis_url)
    erase_user(data, hash_id(user), time.time_ns() // 1000)
    first = keep_up(data, redis_url=redis_url)
    second = keep_up(data, redis_url=redis_url)  # deletes what the first left for its readers
    tell(second)
    typer.echo(f"{first['rows_forgotten']:,} rows of the log are gone")


@group.command("show")
def show_command(
    data: DataOption = Path("data"),
    table: Annotated[str, typer.Argument(help="Print rows of this table; default: a summary of all.")] = "",
    rows: Annotated[int, typer.Option(help="How many rows to print.", min=1)] = 5,
    day: Annotated[str, typer.Option(help="Only this day, YYYY-MM-DD.")] = "",
) -> None:
    """What the log holds, or the first rows of one table."""
    if table:
        _print_rows(data, table, rows, day)
    else:
        _print_summary(data)


def _print_rows(data: Path, table: str, rows: int, day: str) -> None:
    import json

    from serve_app.log.reader import read_log

    for row in read_log(data, table, days=[day] if day else None).slice(0, rows).to_pylist():
        typer.echo(json.dumps(row, default=str, ensure_ascii=False))


def _print_summary(data: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from serve_app.log.journal import read_journal
    from serve_app.log.schema import TABLES
    from serve_app.log.snapshot import load_snapshot

    snapshot = load_snapshot(data)
    waiting = read_journal(data, snapshot.consumed)
    out = Table("table", "rows", "files", "first day", "last day", "in the journal")
    for name in TABLES:
        files = [one for one in snapshot.files if one.table == name]
        days = [one.day for one in files] or [""]
        journal = sum(len(batch) for batch in waiting.rows.get(name, []))
        out.add_row(name, f"{sum(one.rows for one in files):,}", str(len(files)), min(days), max(days), f"{journal:,}")
    Console().print(out)


@group.command("check")
def check_command(data: DataOption = Path("data")) -> None:
    """Read every file and every frame; exit 1 when something is damaged."""
    from rich.console import Console

    from serve_app.log.check import check_log

    console = Console(highlight=False)
    with console.status("reading the log") as status:
        found = check_log(data, progress=status.update)
    for problem in found.problems:
        console.print(f"[red]{problem}[/red]", soft_wrap=True)
    console.print(
        f"{found.files:,} files, {found.rows:,} rows, {found.frames:,} journal frames: {len(found.problems)} problems"
    )
    if found.problems:
        raise typer.Exit(1)


UrlOption = Annotated[str, typer.Option("--url", help="Folder of this log in a store: s3://bucket/shop-log, file:///share.")]


@group.command("push")
def push_command(url: UrlOption, data: DataOption = Path("data")) -> None:
    """Bring a store to the log's present state, for replays and builds on other machines: what it lacks is sent, with the
    catalogue, policies and erasures. Safe while servers write, and to repeat."""
    from hindcast.bars import transfer_bar
    from serve_app.log.pushing import push_log

    with transfer_bar() as progress:
        done = push_log(data, url, progress)
    _tell_transfer("sent", done.sent, done.bytes, done.known, done.removed, done.rows)
    if done.lag.waiting:
        typer.echo(
            f"not among them: {done.lag.waiting / 1e6:.1f} MB of the journal, up to {done.lag.seconds:.0f} s old"
            " (a server moves them into the log every few minutes; offline: hindcast log compact)"
        )


@group.command("pull")
def pull_command(
    url: UrlOption,
    data: Annotated[Path, typer.Option("--data", envvar="HINDCAST_DATA", help="Empty, or pulled from there before.")],
) -> None:
    """Bring a folder to the state of the log in a store, checked file by file: `hindcast replay --log FOLDER` and
    `hindcast build --data FOLDER` read it. Only what it lacks is fetched."""
    from hindcast.bars import transfer_bar
    from serve_app.log.pulling import pull_log

    with transfer_bar() as progress:
        done = pull_log(data, url, progress)
    _tell_transfer("fetched", done.fetched, done.bytes, done.known, done.removed, done.rows)


def _tell_transfer(what: str, files: int, size: int, known: int, removed: int, rows: int) -> None:
    typer.echo(f"{rows:,} rows; {files:,} files {what} ({size / 1e6:.1f} MB), {known:,} there already, {removed:,} removed")
