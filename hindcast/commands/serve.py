"""`hindcast up`, `down`, `status`: the server on this machine."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serve_app.errors import InvalidInput, NotReady

if TYPE_CHECKING:
    import psutil
    import pyarrow as pa
    from rich.console import Console

    from serve_app.running.instance import Instance
    from serve_app.settings import Settings

__all__ = ["described_server", "register"]

_END_TIMEOUT_S = 60.0

Data = Annotated[Path, typer.Option(help="Data folder with a promoted release.", envvar="HINDCAST_DATA")]


def up(
    data: Data = Path("data"),
    port: Annotated[int | None, typer.Option(min=1, max=65_535, help="HTTP port; else HINDCAST_HTTP__PORT or 8000.")] = None,
    topology: Annotated[str | None, typer.Option(help="chain: a deployment per stage; fused: one process.")] = None,
) -> None:
    """Start the server and show where it is. Ctrl-C stops everything it started."""
    from rich.console import Console

    from serve_app.running.instance import running
    from serve_app.settings import load_settings

    overrides: dict[str, Any] = {"data": data.resolve()}
    if port is not None:
        overrides["http"] = {"port": port}
    if topology is not None:
        overrides["topology"] = topology
    settings = load_settings(**overrides)
    console = Console(stderr=True)
    began = time.monotonic()
    stop = _stop_on_signals()
    with console.status("checking this machine") as status:
        try:
            with running(settings, progress=status.update) as instance:
                status.stop()
                _show(Console(), instance, time.monotonic() - began)
                stop.wait()
                status.start()
        except KeyboardInterrupt:
            console.print("stopped")
            return
    console.print("stopped")


def _stop_on_signals() -> threading.Event:
    """The first signal stops the server, also while it starts; later ones cannot tear its end apart."""
    stop = threading.Event()

    def handle(number: int, frame: object) -> None:
        del number, frame
        if not stop.is_set():
            stop.set()
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, handle)
    signal.signal(signal.SIGTERM, handle)
    return stop


def _show(console: Console, instance: Instance, seconds: float) -> None:
    """The screen at the end: where things are, and three calls that work as printed."""
    from serve_app.release.load import load_release
    from serve_app.release.registry import current_release

    settings = instance.settings
    ready = instance.get("/readyz")
    rows = load_release(current_release(settings.data), ["catalogue"], verify=False).catalogue
    item = rows.items["item_id"][len(rows.items) // 2].as_py()
    user = _somebody(settings, rows.users) if len(rows.users) else "anyone"
    post = "curl -s -H 'Content-Type: application/json'"
    calls = [
        f"{post} {instance.url}/v1/recommendations/related -d {_quoted({'item': item, 'user': user, 'slots': 5})}",
        f"{post} {instance.url}/v1/recommendations/gateway -d {_quoted({'user': user, 'widgets': 3, 'slots': 5})}",
        f"{post} {instance.url}/v1/notifications/decide -d {_quoted({'user': user, 'explain': True})}",
    ]
    lines = [
        "",
        f"  server   {instance.url}   ({settings.topology}, ready in {seconds:.0f} s)",
        f"  docs     {instance.url}/docs",
        f"  data     {settings.data}",
        f"  release  {ready['release']}   policy {ready['policy']}",
        "",
        *(f"  {call}" for call in calls),
        "",
    ]
    if settings.security.keys_file is None:
        lines.append("  No key is needed: only this machine can reach the server.")
    lines.append("  Ctrl-C stops everything.")
    # Plain text: a terminal's width must not break a command that is meant to be copied.
    console.file.write("\n".join(lines) + "\n")
    console.file.flush()


def _somebody(settings: Settings, users: pa.Table) -> str:
    """A user of the release the ledger knows to be reachable and to have consented; else the middle one."""
    from serve_app.ids import hash_ids
    from serve_app.ledger.opening import ledger_path, open_ledger

    ids = users["user_id"].slice(0, 10_000).to_pylist()
    if settings.ledger.backend != "sqlite" or not ledger_path(settings.data).exists():
        return str(ids[len(ids) // 2])
    ledger = open_ledger(settings.data, read_only=True)
    try:
        state = ledger.read(hash_ids(ids)).state
    finally:
        ledger.close()
    willing = (state.reachable & ~state.opted_out > 0) & (state.consent_ad_at > 0)
    return str(ids[int(willing.argmax())] if willing.any() else ids[len(ids) // 2])


def _quoted(body: dict[str, Any]) -> str:
    import shlex

    return shlex.quote(json.dumps(body, ensure_ascii=False))


def down(data: Data = Path("data")) -> None:
    """Stop the server of a data folder, from another terminal."""
    import psutil

    from serve_app.running.instance import run_file

    described = described_server(data)
    try:
        process = psutil.Process(described["pid"])
        if abs(process.create_time() - described["started_at"]) > 1:
            raise psutil.NoSuchProcess(described["pid"])
        process.send_signal(signal.SIGTERM)
    except psutil.NoSuchProcess:
        run_file(data).unlink(missing_ok=True)
        raise NotReady("the server is gone already", field=str(data)) from None
    limit = time.monotonic() + _END_TIMEOUT_S
    while _lives(process):
        if time.monotonic() > limit:
            raise NotReady(f"process {process.pid} did not end in {_END_TIMEOUT_S:g} s", field=str(data))
        time.sleep(0.1)
    sys.stdout.write("stopped\n")


def _lives(process: psutil.Process) -> bool:
    """Whether a process still does anything: one that ended and was not yet asked after by its parent does not."""
    import psutil

    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def status(data: Data = Path("data")) -> None:
    """Whether the server of a data folder is up, what it serves, and its replicas."""
    import httpx
    from rich.console import Console
    from rich.table import Table

    described = described_server(data)
    url, token = described["admin_url"], described["admin_token"]
    try:
        ready = httpx.get(f"{url}/readyz", timeout=5.0).json()
        replicas = httpx.get(f"{url}/v1/replicas", headers={"Authorization": f"Bearer {token}"}, timeout=5.0).json()
    except httpx.HTTPError as error:
        raise NotReady(f"{url} does not answer: {type(error).__name__}", field="server") from None
    console = Console()
    console.print(f"{url}  {ready.get('status', ready.get('detail'))}", highlight=False)
    table = Table("replica", "role", "releases", "policies")
    for one in replicas["replicas"]:
        table.add_row(one["replica"], one["role"], ", ".join(one["releases"]), ", ".join(one["policies"]))
    console.print(table)


def described_server(data: Path) -> dict[str, Any]:
    """What the run file of the server on a data folder says. NotReady where none is up."""
    from serve_app.running.instance import run_file

    path = run_file(data)
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        raise NotReady("no server is up on this data folder", field=str(path.parent.parent), hint="hindcast up") from None
    except ValueError:
        raise InvalidInput("cannot be read", field=str(path), hint="delete it") from None
    return content


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(up)
    app.command()(down)
    app.command()(status)
