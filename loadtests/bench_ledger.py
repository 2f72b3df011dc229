"""What a decision costs the ledger: `read` and `commit` of batches, per backend, against the memory ledger.

Every backend gets the same users, the same plans (a grant for 40 % of the rows, a decision record for each) and takes its
turn within each round, so that whatever else the machine does hits all of them. Processor time is counted apart for the
client (a process of its own per backend) and the server (`INFO cpu` of every redis-server started here). SQLite is opened
with `durability="disk"`, Redis with `appendfsync always`: an answered commit is on disk in both. Run:
``python -m loadtests.bench_ledger``.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from redis import Redis
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from loadtests.hardware import hardware
from loadtests.redis_servers import redis_cluster, redis_server
from serve_app.batch import lengths_to_offsets
from serve_app.ledger.columns import HISTORY_DTYPE, CommitPlan, CommitStatus, UserState
from serve_app.ledger.memory import MemoryLedger
from serve_app.ledger.protocol import Ledger
from serve_app.ledger.redis import RedisLedger
from serve_app.ledger.sqlite import SqliteLedger

__all__ = ["BACKENDS", "Subject", "main", "make_plan", "measure"]

NOW = 1_790_000_000_000_000
SENDS = 0.4
BACKENDS = ("memory", "sqlite", "redis", "redis-cluster")
TURNS = 4
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]


@dataclass
class Tally:
    """Sums over the calls of one backend at one batch size."""

    rows: int = 0
    wall_us: float = 0.0
    client_us: float = 0.0
    server_us: float = 0.0
    calls_us: list[int] = field(default_factory=list)

    def __iadd__(self, other: Tally) -> Tally:
        self.rows += other.rows
        self.wall_us += other.wall_us
        self.client_us += other.client_us
        self.server_us += other.server_us
        self.calls_us += other.calls_us
        return self

    def figures(self) -> dict[str, float]:
        """Per user, and the wall time of a whole read + commit."""
        per = max(self.rows, 1)
        cpu = {"client_us": self.client_us / per, "server_us": self.server_us / per}
        whole = {f"p{p}_us": float(np.percentile(self.calls_us, p)) for p in (50, 99)}
        return {"users_per_s": per / (self.wall_us / 1e6), **cpu, "cpu_us": sum(cpu.values()), **whole}


def make_plan(rng: np.random.Generator, users: U64, versions: I64, record_bytes: int) -> CommitPlan:
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
    at = np.full(rows, NOW)
    return CommitPlan(users, versions, at, entries, lengths_to_offsets(sends), records, requests)


@dataclass
class Subject:
    """A backend under test: its ledger, the clients that tell the servers' processor time, and its people."""

    ledger: Ledger
    servers: list[Redis]
    people: U64
    record_bytes: int

    def server_us(self) -> float:
        """Processor time of all its servers, in microseconds."""
        infos = [server.info("cpu") for server in self.servers]
        return 1e6 * sum(float(info["used_cpu_user"]) + float(info["used_cpu_sys"]) for info in infos)

    def turn(self, size: int, seconds: float, seed: int) -> Tally:
        """Read and commit for so long. Everything this process does is counted but the making of plans, so that what a
        backend does in the background is."""
        rng, tally, aside = np.random.default_rng(seed), Tally(), 0
        for _ in range(3):
            self.step(rng, size, tally)
        tally, server, used = Tally(), self.server_us(), time.process_time_ns()
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            aside += self.step(rng, size, tally)
        tally.client_us = (time.process_time_ns() - used - aside) / 1e3
        tally.server_us = self.server_us() - server
        return tally

    def step(self, rng: np.random.Generator, size: int, tally: Tally) -> int:
        """One batch; returns this thread's time, in nanoseconds, that went into making it."""
        began = time.thread_time_ns()
        users = (
            self.people[rng.integers(0, len(self.people), 1)] if size == 1 else rng.choice(self.people, size, replace=False)
        )
        aside = time.thread_time_ns() - began
        start = time.perf_counter_ns()
        versions = self.ledger.read(users).versions
        read_ns = time.perf_counter_ns() - start
        began = time.thread_time_ns()
        plan = make_plan(rng, users, versions, self.record_bytes)
        aside += time.thread_time_ns() - began
        start = time.perf_counter_ns()
        result = self.ledger.commit(plan)
        took_us = (time.perf_counter_ns() - start + read_ns) // 1_000
        if (result.status != CommitStatus.committed).any():
            raise RuntimeError("a commit nobody competed with was refused")
        tally.rows += size
        tally.wall_us += took_us
        tally.calls_us.append(took_us)
        return aside

    def settle_in(self) -> None:
        """Everyone has consented, is reachable and has four sends behind him."""
        for start in range(0, len(self.people), 2_000):
            users = self.people[start : start + 2_000]
            state = UserState.unknown(len(users))
            state.consent_ad_at[:], state.reachable[:] = NOW, 3
            versions = self.ledger.put_users(users, state)
            entries = np.zeros(4 * len(users), HISTORY_DTYPE)
            entries["at"] = NOW
            at, offsets = np.full(len(users), NOW), np.arange(len(users) + 1) * 4
            self.ledger.commit(CommitPlan(users, versions, at, entries, offsets, [], users))


def serve(pipe: Connection, backend: str, urls: list[str], folder: str, people: int, record_bytes: int) -> None:
    """One backend's process: takes (size, seconds, seed) from the pipe, gives a Tally, until None comes."""
    Subject(MemoryLedger(), [], np.arange(9, dtype=np.uint64), 9).settle_in()  # kernels are compiled outside all time limits
    ledger: Ledger
    if backend == "memory":
        ledger = MemoryLedger()
    elif backend == "sqlite":
        ledger = SqliteLedger(Path(folder) / "ledger.sqlite", durability="disk")
    else:
        ledger = RedisLedger(urls[0])
    crowd = np.unique(np.random.default_rng(3).integers(0, 2**64, people, np.uint64))
    subject = Subject(ledger, [Redis.from_url(url) for url in urls], crowd, record_bytes)
    subject.settle_in()
    pipe.send(None)
    while (asked := pipe.recv()) is not None:
        pipe.send(subject.turn(*asked))
    ledger.close()


@contextmanager
def opened(names: list[str], folder: Path, people: int, record_bytes: int) -> Iterator[dict[str, Connection]]:
    """A process per backend, ready; redis ones with servers of their own."""
    processes = get_context("spawn")
    with ExitStack() as stack:
        pipes: dict[str, Connection] = {}
        for name in names:
            own = folder / name
            urls: list[str] = []
            if name.startswith("redis"):
                urls = stack.enter_context(redis_server(own) if name == "redis" else redis_cluster(own))
            else:
                own.mkdir()
            pipes[name], theirs = processes.Pipe()
            process = processes.Process(target=serve, args=(theirs, name, urls, str(own), people, record_bytes), daemon=True)
            process.start()
            theirs.close()
            stack.callback(process.join)
            stack.callback(pipes[name].send, None)
        for pipe in pipes.values():
            pipe.recv()
        yield pipes


def measure(
    pipes: Mapping[str, Connection], size: int, seconds: float, tick: Callable[[], None]
) -> dict[str, dict[str, float]]:
    """Figures per backend at one batch size; the backends take turns, four each."""
    tallies = {name: Tally() for name in pipes}
    for turn in range(TURNS):
        for name, pipe in pipes.items():
            pipe.send((size, seconds / TURNS, turn))
            tallies[name] += pipe.recv()
            tick()
    figures = {name: tally.figures() for name, tally in tallies.items()}
    for own in figures.values():
        own["cpu_ratio"] = own["cpu_us"] / figures["memory"]["cpu_us"]
    return figures


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
    batches = [int(size) for size in sizes.split(",")]
    results: list[dict[str, Any]] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        Progress(console=console) as bar,
        opened(names, Path(folder), people, record_bytes) as pipes,
    ):
        task = bar.add_task("", total=len(batches) * len(names) * TURNS)
        for size in batches:
            bar.update(task, description=f"batches of {size}")
            results.append({"batch": size, "backends": measure(pipes, size, seconds, lambda: bar.advance(task))})
    report = {"hardware": hardware(), "people": people, "record_bytes": record_bytes, "sends": SENDS, "results": results}
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
