"""`hindcast top`: a running server, live in the terminal."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from serve_app.errors import NotReady

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from hindcast.watching import Board, Reading, Route

__all__ = ["frame", "register"]


def top(
    data: Annotated[Path, typer.Option(help="Data folder of a server on this machine.", envvar="HINDCAST_DATA")] = Path(
        "data"
    ),
    url: Annotated[str | None, typer.Option(help="A server elsewhere, e.g. http://shop.internal:8000.")] = None,
    key_file: Annotated[Path | None, typer.Option(help="File that holds an API key with the scope read, for --url.")] = None,
    every: Annotated[float, typer.Option(min=0.5, max=60, help="Seconds between two looks.")] = 2.0,
    window: Annotated[float, typer.Option(min=2, max=600, help="Rates and percentiles are over so many seconds.")] = 15.0,
    once: Annotated[bool, typer.Option(help="Print one frame after one window, and end: for scripts.")] = False,
) -> None:
    """Requests, times, fall-backs, queues, replicas, gates, ledger and log of a running server. Ctrl-C ends."""
    from rich.console import Console
    from rich.live import Live

    address, token = _where(data, url, key_file)
    console = Console()
    with _reader(address, token) as read:
        readings = deque([read()])
        if once:
            time.sleep(window)
            console.print(frame(address, readings[0], read()))
            return
        try:
            with Live(frame(address, readings[0], readings[0]), console=console, screen=console.is_terminal) as live:
                while True:
                    time.sleep(every)
                    readings.append(read())
                    while readings[-1].at_s - readings[1].at_s >= window:
                        readings.popleft()
                    live.update(frame(address, readings[0], readings[-1]))
        except KeyboardInterrupt:
            return


def _where(data: Path, url: str | None, key_file: Path | None) -> tuple[str, str]:
    """Address and key: of the server given, or of the one that runs on the data folder."""
    from hindcast.commands.serve import described_server
    from hindcast.elsewhere import read_key

    if url is not None:
        return url.rstrip("/"), read_key(key_file) if key_file is not None else ""
    described = described_server(data)
    return described["admin_url"], described["admin_token"]


@contextmanager
def _reader(address: str, token: str) -> Iterator[Callable[[], Reading]]:
    """Looks at `/metrics`. NotReady where the server does not answer or refuses."""
    import httpx

    from hindcast.watching import read_metrics

    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with httpx.Client(base_url=address, headers=headers, timeout=10.0) as client:

        def read() -> Reading:
            try:
                answer = client.get("/metrics")
            except httpx.HTTPError as error:
                raise NotReady(f"{address} does not answer: {type(error).__name__}", field="server") from None
            if answer.status_code != 200:
                raise NotReady(f"{address}/metrics answers {answer.status_code}", field="server", hint="see --key-file")
            return read_metrics(answer.text, time.monotonic())

        yield read


def frame(address: str, before: Reading, after: Reading) -> RenderableType:
    """One screen."""
    from rich.columns import Columns
    from rich.console import Group

    from hindcast.watching import board

    made = board(before, after)
    total = sum(route.per_s for route in made.routes)
    failing = sum(route.refused_s for route in made.routes)
    head = f"[bold]{address}[/]   {total:,.1f} requests/s   " + (
        f"[red]{failing:,.1f} of them refused or failed[/]" if failing else "none refused or failed"
    )
    return Group(
        head + f"   (over {made.seconds:.0f} s)" if made.seconds > 0.1 else f"[bold]{address}[/]   measuring",
        _routes("route", made.routes),
        Columns([_routes("stage", made.stages), _state(made), _gates(made)], padding=(0, 2)),
    )


def _routes(title: str, routes: tuple[Route, ...]) -> Table:
    from rich.table import Table

    table = Table(title, "per s", "p50 ms", "p99 ms", box=None, header_style="bold cyan")
    whole = title == "route"
    if whole:
        table.add_column("4xx/s")
        table.add_column("429, 5xx/s")
    for column in table.columns[1:]:
        column.justify = "right"
    for one in routes:
        cells = [one.name, f"{one.per_s:,.1f}", _ms(one.p50), _ms(one.p99)]
        if whole:
            cells += [f"{one.wrong_s:,.1f}", f"[red]{one.refused_s:,.1f}[/]" if one.refused_s else "0.0"]
        table.add_row(*cells)
    return table


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}"


def _state(made: Board) -> Table:
    from rich.table import Table

    table = Table("state", "", box=None, header_style="bold cyan")
    for role, replicas in made.replicas.items():
        if replicas:
            table.add_row(f"replicas {role}", f"{replicas:.0f}")
    table.add_row("waiting, batches under way", f"{sum(made.queued.values()):.0f}, {sum(made.in_flight.values()):.0f}")
    for stage, calls in made.waiting.items():
        if calls:
            table.add_row(f"waiting at {stage}", f"{calls:.0f}")
    table.add_row("requests a batch", "" if made.batch_rows is None else f"{made.batch_rows:.1f}")
    for stage, rate in made.degraded.items():
        table.add_row(f"degraded {stage}", f"[yellow]{rate:,.2f}/s[/]" if rate else "0")
    for status, rate in made.features.items():
        if rate:
            table.add_row(f"feature values {status}", f"{rate:,.0f}/s")
    table.add_row("ledger conflicts", f"{made.conflicts:,.2f}/s")
    for action, rate in made.actions.items():
        table.add_row(f"decisions {action}", f"{rate:,.1f}/s")
    for name, rows in made.queues.items():
        if rows:
            table.add_row(f"queue {name}", f"{rows:,.0f}")
    if made.log_lag_s is not None:
        table.add_row("log behind by", f"{made.log_lag_s:,.0f} s, {(made.log_waiting_bytes or 0) / 2**20:,.1f} MB")
    return table


def _gates(made: Board) -> Table:
    from rich.table import Table

    table = Table("gate", "keep/s", "defer/s", "suppress/s", box=None, header_style="bold cyan")
    for column in table.columns[1:]:
        column.justify = "right"
    for gate, outcomes in made.gates.items():
        table.add_row(gate, *(f"{outcomes.get(name, 0.0):,.1f}" for name in ("keep", "defer", "suppress")))
    return table


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(top)
