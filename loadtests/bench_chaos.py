"""kill -9 of every kind of process a server has, one after the other, under steady load from a client that tries again.

Run: ``python -m loadtests.bench_chaos --out bench-results``. It makes a small world and a release, starts `hindcast up`,
asks for lists and send decisions at a steady rate (open loop), and kills. The next kill comes when the dead process has a
successor and the last calls were answered at the first attempt and at once. At the end log and ledger are examined. Exit
code 1 where a target is missed: under 0.1 % of calls fail for the client, under 10 s of trouble after a kill, books whole.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.table import Table

from loadtests.chaos_books import Books, examine
from loadtests.chaos_figures import Call, Figures, Targets, figures_of, untroubled
from loadtests.chaos_load import ChaosLoad, Patience, Shop
from loadtests.chaos_victims import NOTHING, Victims, kinds_of
from loadtests.decide_server import served
from loadtests.hardware import hardware
from loadtests.scenarios.answers import Contract
from serve_app.catalogue import read_catalogue

__all__ = ["Kill", "Outcome", "Plan", "main", "run"]

_SETTLED_CALLS = 60
_USERS = 600
_LIMIT_S = 60.0
_LOOK_EVERY_S = 0.5


@dataclass(frozen=True)
class Plan:
    """What to do to which server. shop: what may be asked about, given the server's address."""

    topology: str
    kinds: Sequence[str]
    shop: Callable[[str], Shop]
    rate: float = 40.0
    patience: Patience = field(default_factory=Patience)


@dataclass(frozen=True)
class Kill:
    """A process of a kind died at `at`; `whole` after so many seconds, None where the wait was given up."""

    what: str
    at: float
    whole_s: float | None


@dataclass(frozen=True)
class Outcome:
    """figures: of each kill, in order."""

    kills: list[Kill]
    figures: list[Figures]
    books: Books

    def missed(self, targets: Targets) -> list[str]:
        """Every target that was missed, in words."""
        out = [fault for one in self.figures for fault in targets.missed(one)]
        out += [f"{kill.what}: not whole within {_LIMIT_S:g} s" for kill in self.kills if kill.whole_s is None]
        return out + self.books.findings


async def _fire(load: ChaosLoad, victims: Victims, kinds: Sequence[str], console: Console) -> list[Kill]:
    """Kill one process of each kind in turn, while the load runs."""
    running, kills = asyncio.create_task(load.run()), list[Kill]()
    try:
        if await _until(lambda: untroubled(load.calls, 0.0, _SETTLED_CALLS), running) is None:
            raise RuntimeError("the server does not bear this load even before anything is killed")
        for kind in kinds:
            kill = await _kill(load, victims, kind, running)
            told = figures_of(kind, load.calls, kill.at, float("inf"))
            console.print(f"  {kind} was killed: {told.failed_attempts}, all is well after {kill.whole_s} s", markup=False)
            kills.append(kill)
        load.stop()
        await running
    finally:
        running.cancel()
    return kills


async def _kill(load: ChaosLoad, victims: Victims, kind: str, running: asyncio.Task[None]) -> Kill:
    """Kill one, and wait for its successor and for calls that are answered as if nothing had happened."""
    if kind == NOTHING:
        at = time.monotonic()
        settled = await _until(lambda: untroubled(load.calls, at, _SETTLED_CALLS), running)
        return Kill(kind, at, settled and round(settled - at, 1))
    before, at = await asyncio.to_thread(victims.kill, kind)
    succeeded = await _until(lambda: any(pid not in before for pid in victims.find(kind)), running)
    settled = await _until(lambda: untroubled(load.calls, at, _SETTLED_CALLS), running)
    return Kill(kind, at, None if succeeded is None or settled is None else round(max(succeeded, settled) - at, 1))


async def _until(condition: Callable[[], bool], running: asyncio.Task[None]) -> float | None:
    """When `condition` came true, while the load is `running`; None: not in time."""
    limit = time.monotonic() + _LIMIT_S
    while not await asyncio.to_thread(condition):
        if running.done():
            running.result()
        if time.monotonic() > limit:
            return None
        await asyncio.sleep(_LOOK_EVERY_S)
    return time.monotonic()


def shop_of(data: Path) -> Shop:
    """What the world has; of its users a thousand, so that some come often enough to meet their caps."""
    catalogue = read_catalogue(data / "catalogue")
    return Shop(
        catalogue.items["item_id"].to_pylist(),
        catalogue.users["user_id"].to_pylist()[:1_000],
        catalogue.campaigns["campaign_id"].to_pylist(),
    )


def run(data: Path, plan: Plan, console: Console) -> Outcome:
    """One server, every kill, and the books after it."""
    with served(data, {}, plan.topology) as server:
        url = f"http://127.0.0.1:{server.port}"
        contract = Contract(httpx.get(f"{url}/openapi.json", timeout=30.0).json())
        load = ChaosLoad(url, plan.shop(url), contract, rate=plan.rate, patience=plan.patience)
        kills = asyncio.run(_fire(load, Victims.of(server.process), plan.kinds, console))
    return Outcome(kills, _figures(load.calls, kills), examine(data, load.calls))


def _figures(calls: Sequence[Call], kills: Sequence[Kill]) -> list[Figures]:
    """Those of each kill: from it to the next."""
    ends = [*(kill.at for kill in kills[1:]), float("inf")]
    return [figures_of(kill.what, calls, kill.at, end) for kill, end in zip(kills, ends, strict=True)]


def main(
    out: Annotated[Path | None, typer.Option(help="Folder for chaos-TOPOLOGY.json.")] = None,
    topology: Annotated[str, typer.Option(help="fused or chain.")] = "chain",
    rate: Annotated[float, typer.Option(help="Calls a second: half of them lists, half send decisions.")] = 40.0,
    gives_up_s: Annotated[float, typer.Option(help="Time after which the client begins no further attempt.")] = 20.0,
    kind: Annotated[list[str] | None, typer.Option(help="Kill only this kind; may be given several times.")] = None,
    data: Annotated[Path | None, typer.Option(help="A data folder made by an earlier run; it is written to.")] = None,
) -> None:
    """Kill, measure, examine, judge."""
    console = Console()
    with tempfile.TemporaryDirectory(prefix="hc-chaos-") as scratch:
        folder = data or Path(scratch) / "data"
        if not (folder / "releases").is_dir():
            _make_data(folder, console)
        plan = Plan(
            topology, kind or kinds_of(topology), lambda url: _shop(folder, url), rate, Patience(gives_up_s=gives_up_s)
        )
        outcome = run(folder, plan, console)
    report = _report(plan, outcome)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"chaos-{topology}.json").write_text(json.dumps(report, indent=1))
    _show(console, report, outcome)
    sys.exit(1 if report["missed"] else 0)


def _make_data(folder: Path, console: Console) -> None:
    """A small world and a release of it."""
    world = ["world", "--users", "400", "--items", "300", "--days", "10", "--seed", "7"]
    for arguments in (world, ["ledger", "seed"], ["build", "--local", "--promote"]):
        console.print(f"  hindcast {' '.join(arguments)}", highlight=False)
        subprocess.run(
            [sys.executable, "-m", "hindcast", *arguments, "--data", str(folder)], check=True, capture_output=True
        )


def _shop(data: Path, url: str) -> Shop:
    """The world's items; users and campaigns of our own, so few that users come often enough to meet their caps, and by a
    class and channel that nothing but caps and gaps keeps from being sent."""
    users, campaigns = [f"chaos-{number:03d}" for number in range(_USERS)], [f"chaos-{number}" for number in range(8)]
    known = {"zone": "Asia/Seoul", "region": "kr", "reachable": ["email"]}
    told = {"message_class": "informational", "channels": ["email"]}
    with httpx.Client(base_url=url, timeout=60.0) as http:
        for user in users:
            http.put(f"/v1/users/{user}", json=known).raise_for_status()
        for number, campaign in enumerate(campaigns):
            http.put(
                f"/v1/campaigns/{campaign}", json={**told, "text": campaign, "category": f"c{number % 3}"}
            ).raise_for_status()
    return Shop(read_catalogue(data / "catalogue").items["item_id"].to_pylist(), users, campaigns)


def _report(plan: Plan, outcome: Outcome) -> dict[str, Any]:
    pairs = zip(outcome.figures, outcome.kills, strict=True)
    return {
        "hardware": hardware(),
        "topology": plan.topology,
        "rate": plan.rate,
        "client": asdict(plan.patience),
        "targets": asdict(Targets()),
        "kills": [{**one.told(), "whole_s": kill.whole_s} for one, kill in pairs],
        "books": asdict(outcome.books),
        "missed": outcome.missed(Targets()),
    }


_HEADINGS = ("killed", "calls", "failed attempts", "foreign", "failed for the client", "degraded", "trouble s", "slowest s")


def _show(console: Console, report: dict[str, Any], outcome: Outcome) -> None:
    table = Table(title=f"kill -9 at {report['rate']:g} calls/s, {report['topology']}")
    table.caption = (
        f"attempts are repeated for {report['client']['gives_up_s']:g} s; foreign: answered without a problem document; "
        "trouble: until the last failed attempt or held-up answer had ended"
    )
    for heading in _HEADINGS:
        table.add_column(heading, justify="left" if heading in ("killed", "failed attempts") else "right")
    for one in outcome.figures:
        kinds: Counter[str] = Counter()
        for what, count in one.failed_attempts.items():
            kinds[what.split(" (")[0]] += count
        failed = ", ".join(f"{count} {what}" for what, count in kinds.most_common()) or "none"
        table.add_row(
            one.what, str(one.calls), failed, str(one.foreign), str(one.visible), str(one.degraded),
            f"{one.recovery_s:.1f}", f"{one.slowest_s:.1f}",
        )  # fmt: skip
    console.print(table)
    books = outcome.books
    console.print(
        f"{books.answered:,} answers ({books.decisions:,} decisions, {books.grants:,} granted sends): "
        f"{books.missing} missing in the log, {books.keys_twice} keys decided twice"
    )
    for fault in report["missed"]:
        console.print(f"[red]{fault}[/]")
    console.print("[red]targets missed[/]" if report["missed"] else "[green]every target held[/]")


if __name__ == "__main__":
    typer.run(main)
