"""What a decision costs the ledger: `read` and `commit` of batches, per backend, against the memory ledger.

Every backend gets the same users, the same plans (a grant for 40 % of the rows, a decision record for each) and takes its
turn within each round, so that whatever else the machine does hits all of them. Processor time is counted apart for the
client (this process) and the server (`INFO cpu` of every redis-server started here). SQLite is opened with
`durability="disk"`, Redis with `appendfsync always`: an answered commit is on disk in both. Run:
``python -m loadtests.bench_ledger``.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from hdrh.histogram import HdrHistogram
from redis import Redis
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from loadtests.redis_servers import redis_cluster, redis_server
from serve_app.batch import lengths_to_offsets
from serve_app.ledger.memory import MemoryLedger
from serve_app.ledger.protocol import HISTORY_DTYPE, CommitPlan, CommitStatus, Ledger, UserState
from serve_app.ledger.redis import RedisLedger
from serve_app.ledger.sqlite import SqliteLedger

__all__ = ["BACKENDS", "Subject", "main", "make_plan", "measure"]

NOW = 1_790_000_000_000_000
SENDS = 0.4
BACKENDS = ("memory", "sqlite", "redis", "redis-cluster")
U64 = npt.NDArray[np.uint64]


@dataclass
class Subject:
    """A backend under test: its ledger, and the clients that tell the server's processor time."""

    name: str
    ledger: Ledger
    servers: list[Redis] = field(default_factory=list)

    def server_us(self) -> float:
        """Processor time of all its servers, in microseconds."""
        infos = [server.info("cpu") for server in self.servers]
        return 1e6 * sum(float(info["used_cpu_user"]) + float(info["used_cpu_sys"]) for info in infos)


@dataclass
class Tally:
    """Sums over the calls of one backend at one batch size."""

    rows: int = 0
    wall_us: float = 0.0
    client_us: float = 0.0
    server_us: float = 0.0
    calls: HdrHistogram = field(default_factory=lambda: HdrHistogram(1, 60_000_000, 3))

    def figures(self) -> dict[str, float]:
        """Per user, and the wall time of a whole read + commit."""
        per = max(self.rows, 1)
        cpu = {"client_us": self.client_us / per, "server_us": self.server_us / per}
        whole = {f"p{p:g}_us": float(self.calls.get_value_at_percentile(p)) for p in (50, 99)}
        return {"users_per_s": per / (self.wall_us / 1e6), **cpu, "cpu_us": sum(cpu.values()), **whole}


def make_plan(rng: np.random.Generator, users: U64, read: Callable[[U64], Any], record_bytes: int) -> CommitPlan:
    """A decision about each of `users`: 40 % sends, and a record of `record_bytes` for every one."""
    rows = len(users)
    sends = (rng.random(rows) < SENDS).astype(np.int64)
    requests = rng.integers(1, 2**63, rows).astype(np.uint64)
    entries = np.zeros(int(sends.sum()), HISTORY_DTYPE)
    entries["at"], entries["request_id"] = NOW, requests[sends > 0]
    # A quarter of a real record differs from decision to decision; names, gates and limits repeat.
    noise, rest = record_bytes // 4, b"\0" * (record_bytes - record_bytes // 4)
    drawn = rng.bytes(noise * rows)
    records = [drawn[row * noise : (row + 1) * noise] + rest for row in range(rows)]
    at, versions = np.full(rows, NOW), np.asarray(read(users).versions)
    return CommitPlan(users, versions, at, entries, lengths_to_offsets(sends), records, requests)


def step(subject: Subject, users: U64, seed: int, record_bytes: int, tally: Tally) -> None:
    """One batch: read and commit are counted, making the plan is not."""
    rng = np.random.default_rng(seed)
    spent = [0, 0]

    def timed(call: Callable[[Any], Any], argument: Any) -> Any:
        began, used = time.perf_counter_ns(), time.process_time_ns()
        answer = call(argument)
        spent[1] += time.process_time_ns() - used
        spent[0] += time.perf_counter_ns() - began
        return answer

    plan = make_plan(rng, users, lambda some: timed(subject.ledger.read, some), record_bytes)
    result = timed(subject.ledger.commit, plan)
    if (result.status != CommitStatus.committed).any():
        raise RuntimeError(f"{subject.name}: a commit nobody competed with was refused")
    tally.rows += len(users)
    tally.wall_us += spent[0] / 1e3
    tally.client_us += spent[1] / 1e3
    tally.calls.record_value(max(1, spent[0] // 1_000))


def measure(
    subjects: list[Subject], people: U64, size: int, seconds: float, record_bytes: int, tick: Callable[[], None]
) -> dict[str, dict[str, float]]:
    """Figures per backend at one batch size; the backends take turns, `seconds` each, in four rounds."""
    tallies = {subject.name: Tally() for subject in subjects}
    for turn in range(4):
        for subject in subjects:
            rng, tally = np.random.default_rng(turn), tallies[subject.name]
            for warm in range(3):
                step(subject, rng.choice(people, size, replace=False, shuffle=False), warm, record_bytes, Tally())
            before, until = subject.server_us(), time.perf_counter() + seconds / 4
            while time.perf_counter() < until:
                users = people[rng.integers(0, len(people), size)] if size == 1 else rng.choice(people, size, replace=False)
                step(subject, users, int(rng.integers(2**31)), record_bytes, tally)
            tally.server_us += subject.server_us() - before
            tick()
    figures = {name: tally.figures() for name, tally in tallies.items()}
    for own in figures.values():
        own["cpu_ratio"] = own["cpu_us"] / figures["memory"]["cpu_us"]
    return figures


@contextmanager
def opened(names: list[str], folder: Path) -> Iterator[list[Subject]]:
    """The backends by name; redis ones start their own servers on loopback."""
    with ExitStack() as stack:
        subjects = []
        for name in names:
            own = folder / name
            servers: list[Redis] = []
            ledger: Ledger
            if name == "memory":
                ledger = MemoryLedger()
            elif name == "sqlite":
                own.mkdir()
                ledger = SqliteLedger(own / "ledger.sqlite", durability="disk")
            else:
                urls = stack.enter_context(redis_server(own) if name == "redis" else redis_cluster(own))
                servers = [Redis.from_url(url) for url in urls]
                ledger = RedisLedger(urls[0])
            stack.callback(ledger.close)
            subjects.append(Subject(name, ledger, servers))
        yield subjects


def settle_in(subjects: list[Subject], people: U64) -> None:
    """Everyone has consented, is reachable and has four sends behind him."""
    state = UserState.unknown(len(people))
    state.consent_ad_at[:], state.reachable[:] = NOW, 3
    entries = np.zeros(4 * len(people), HISTORY_DTYPE)
    entries["at"] = NOW
    for subject in subjects:
        for start in range(0, len(people), 10_000):
            users = people[start : start + 10_000]
            part = UserState(*(getattr(state, name)[: len(users)] for name in state.__slots__))
            versions = subject.ledger.put_users(users, part)
            at, offsets = np.full(len(users), NOW), np.arange(len(users) + 1) * 4
            subject.ledger.commit(CommitPlan(users, versions, at, entries[: 4 * len(users)], offsets, [], users))


def main(
    backends: Annotated[str, typer.Option(help="Comma-separated; memory is always measured.")] = ",".join(BACKENDS),
    sizes: Annotated[str, typer.Option(help="Users a batch.")] = "1,32,1000",
    seconds: Annotated[float, typer.Option(min=0.1, help="Time per backend and size.")] = 6.0,
    people: Annotated[int, typer.Option(min=2_000, help="Users known to the ledger.")] = 100_000,
    record_bytes: Annotated[int, typer.Option(min=4, help="Length of a decision record.")] = 2_048,
    out: Annotated[Path | None, typer.Option(help="Write ledger.json into this folder (or to this .json file).")] = None,
) -> None:
    """Users per second and processor time per user, read + commit."""
    console = Console()
    names = [name for name in BACKENDS if name == "memory" or name in backends.split(",")]
    if shutil.which("redis-server") is None and any(name.startswith("redis") for name in names):
        console.print("[yellow]no redis-server here (apt-get install redis-server): its rows are left out[/]")
        names = [name for name in names if not name.startswith("redis")]
    crowd = np.unique(np.random.default_rng(3).integers(0, 2**64, people, np.uint64))
    batches = [int(size) for size in sizes.split(",")]
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, opened(names, Path(folder)) as subjects, Progress(console=console) as bar:
        task = bar.add_task("users move in", total=len(batches) * len(subjects) * 4)
        settle_in(subjects, crowd)
        for size in batches:
            bar.update(task, description=f"batches of {size}")
            figures = measure(subjects, crowd, size, seconds, record_bytes, lambda: bar.advance(task))
            results.append({"batch": size, "backends": figures})
    hardware = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "python": sys.version.split()[0]}
    report = {"hardware": hardware, "people": len(crowd), "record_bytes": record_bytes, "sends": SENDS, "results": results}
    show(console, report)
    if out is not None:
        path = out if out.suffix == ".json" else out / "ledger.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=1))


def show(console: Console, report: Mapping[str, Any]) -> None:
    """The figures as a table."""
    table = Table(title=f"read + commit, {report['sends']:.0%} sends, records of {report['record_bytes']:,} bytes")
    table.caption = "processor time per user; wall time of a whole batch; ratio of processor time to the memory ledger's"
    for heading in ("batch", "backend", "users/s", "client us", "server us", "cpu us", "ratio", "p50 ms", "p99 ms"):
        table.add_column(heading, justify="right")
    for one in report["results"]:
        for name, own in one["backends"].items():
            cpu = [f"{own[key]:,.1f}" for key in ("client_us", "server_us", "cpu_us", "cpu_ratio")]
            wall = [f"{own[key] / 1e3:,.2f}" for key in ("p50_us", "p99_us")]
            table.add_row(str(one["batch"]), name, f"{own['users_per_s']:,.0f}", *cpu, *wall)
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
