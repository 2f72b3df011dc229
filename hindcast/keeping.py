"""Keeping the log up from the command line: by the running server, which owns the ledger, or by this process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serve_app.ledger.redis import RedisLedger
    from serve_app.ledger.sqlite import SqliteLedger

__all__ = ["erase_in_ledger", "keep_up", "tell"]


def keep_up(data: Path, *, groups: int = 4, redis_url: str | None = None) -> dict[str, Any]:
    """One run of the upkeep; what it did, as `serve_app.serving.upkeeping.upkeep_answer` says it."""
    from rich.progress import DownloadColumn, Progress

    from serve_app.log.upkeep import upkeep, upkeep_answer

    with Progress(*Progress.get_default_columns(), DownloadColumn(), transient=True) as progress:
        task = progress.add_task("log", total=None)
        answered = _by_server(data, "POST", "/v1/log/upkeep")
        if answered is not None:
            return answered
        with _ledger(data, redis_url) as ledger:
            result = upkeep(
                data,
                ledger,
                now_us=time.time_ns() // 1000,
                groups=groups,
                progress=lambda done, total: progress.update(task, completed=done, total=total),
            )
    return upkeep_answer(result)


def erase_in_ledger(data: Path, user: str, *, redis_url: str | None = None) -> None:
    """Have the running server erase the user, or do it in the ledger here."""
    from urllib.parse import quote

    from serve_app.ids import hash_id

    if _by_server(data, "DELETE", f"/v1/users/{quote(user, safe='')}") is not None:
        return
    with _ledger(data, redis_url) as ledger:
        if ledger is not None:
            ledger.delete_user(hash_id(user))


def tell(said: dict[str, Any]) -> None:
    """What one run did, for people."""
    from rich.console import Console

    console = Console(highlight=False)
    if not said["frames"]:
        console.print("nothing to compact")
    for table, rows in sorted(said["rows"].items()):
        console.print(f"{table}: {rows:,} rows, {said['duplicates'].get(table, 0):,} repeated")
    console.print(
        f"{said['frames']:,} frames; damaged and skipped: {said['damaged']:,}; torn at the end of a file: {said['torn']:,}"
    )
    copied, known, waiting = said["records_copied"], said["records_known"], said["records_waiting"]
    console.print(
        f"decision records: {copied:,} copied from the ledger, {known:,} already logged, {waiting:,} left for later"
    )
    if said["records_unreadable"]:
        console.print(f"[red]{said['records_unreadable']:,} records cannot be read: hindcast ledger check[/]")
    if said["rows_forgotten"]:
        console.print(f"{said['rows_forgotten']:,} rows of erased users taken off the disk")
    if said["snapshot_users"] is not None:
        console.print(f"ledger snapshot of today: {said['snapshot_users']:,} users")


@contextmanager
def _ledger(data: Path, redis_url: str | None) -> Iterator[SqliteLedger | RedisLedger | None]:
    """The ledger, owned by this process for a while; None where there is none yet."""
    from serve_app.ledger.opening import ledger_path, open_ledger

    if redis_url is None and not ledger_path(data).exists():
        yield None
        return
    ledger = open_ledger(data, backend="redis" if redis_url else "sqlite", redis_url=redis_url)
    try:
        yield ledger
    finally:
        ledger.close()


def _by_server(data: Path, method: str, path: str) -> dict[str, Any] | None:
    """The running server's answer; None where none runs. NotReady: it refused."""
    import httpx

    from serve_app.audit.finding import find_server
    from serve_app.errors import NotReady

    server = find_server(data)
    if server is None:
        return None
    with server:
        try:
            answer = server.request(method, path, timeout=3600.0)
        except httpx.HTTPError as error:
            raise NotReady(f"the server did not answer: {error}", field="server", hint="`hindcast status`") from error
    if answer.status_code >= 400:
        raise NotReady(f"the server refused: {answer.text[:500]}", field="server")
    said: dict[str, Any] = answer.json() if answer.content else {}
    return said
