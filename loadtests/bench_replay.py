"""How fast `hindcast replay` is, end to end: Parquet in, reasons and sums out, on a log made for it.

    python -m loadtests.bench_replay --rows 20000000 --out bench-results/replay.json

writes the log (`loadtests.replay_log`; timed apart, kept with --keep), then runs the command on it as a person would: once
for volume alone (the realised track), once with the analytic track, estimates and report. Memory is sampled of the command
and of all processes below it. Templates of --distinct decisions are decided by the serving core; larger logs repeat them for
other users, each group with users of its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from loadtests.hardware import hardware
from loadtests.memory import Memory
from loadtests.replay_log import (
    DAY_US,
    DAYS,
    START_US,
    behaviour_policy,
    copied,
    made_partition,
    target_policy,
    users_of,
    write_journal,
)
from serve_app.ids import BUCKETS
from serve_app.log.compaction import compact
from serve_app.log.fingerprint import fingerprint_parts
from serve_app.policies import store_policy
from serve_app.policy.document import canonical_json
from simulators.replay.pack import pack_of
from simulators.replay.pack_shelf import PACKS, SOURCE_ITSELF

__all__ = ["main", "raw", "run", "write_log"]

_USERS = 12_400  # of one group: about a million decisions
_PER_USER = 80
_RUNS = {"volume": ("--volume-only",), "estimates": ("--estimators", "quick")}
_EXPECTED = (0, 11, 12)  # verdicts on the policy are no failures of the run


@dataclass(frozen=True, slots=True)
class _Group:
    """One pack to write: group `number` of `groups`, of so many users."""

    number: int
    groups: int
    users: int

    def path(self, data: Path) -> Path:
        """Where its pack stands."""
        return data / PACKS / f"buckets-{self.low:04d}-{self.high:04d}-{SOURCE_ITSELF}"

    @property
    def low(self) -> int:
        """First bucket."""
        return self.number * (BUCKETS // self.groups)

    @property
    def high(self) -> int:
        """Last bucket."""
        return (self.number + 1) * (BUCKETS // self.groups) - 1

    def said(self, decisions: int) -> dict[str, Any]:
        """What its manifest says of the log."""
        days = [str(np.datetime64(START_US // DAY_US + day, "D")) for day in range(DAYS + 1)]
        return {
            "low": self.low, "high": self.high, "source": SOURCE_ITSELF, "erasures": 0, "requests": decisions,
            "bots": [0, 0], "days": days, "parity": None,
        }  # fmt: skip


def write_log(data: Path, rows: int, distinct: int, processes: int) -> dict[str, Any]:
    """Write a log of about `rows` decisions as packs, and the policy it was written under; returns what that took. Packs
    that are there already stay."""
    groups = min(1 << max(round(np.log2(rows / (_USERS * _PER_USER))), 0), BUCKETS)
    users = max(rows // _PER_USER // groups, 1)
    templates = max(min(distinct // (users * _PER_USER), groups), 1)
    (data / PACKS).mkdir(parents=True, exist_ok=True)
    store_policy(data, behaviour_policy())
    every = [_Group(number, groups, users) for number in range(groups)]
    began = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        _each(pool.imap_unordered(partial(_decided, data), every[:templates]), templates, "groups decided")
        decided = time.perf_counter()
        _each(pool.imap_unordered(partial(_repeated, data, templates), every[templates:]), groups - templates, "written")
    ended = time.perf_counter()
    packs = [one.path(data) for one in every]
    written = sum(json.loads((one / "pack.json").read_bytes())["decisions"] for one in packs)
    size = sum(file.stat().st_size for one in packs for file in one.iterdir())
    return {
        "decisions": written, "users": users * groups, "groups": groups, "distinct_groups": templates, "bytes": size,
        "bytes_a_decision": size / written, "deciding_s": decided - began, "copying_s": ended - decided,
    }  # fmt: skip


def _each(results: Iterable[None], count: int, what: str) -> None:
    for done, _ in enumerate(results):
        print(f"\r{done + 1} of {count} {what}   ", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)


def _decided(data: Path, group: _Group) -> None:
    """A group whose decisions the serving core takes."""
    if not group.path(data).is_dir():
        partition = made_partition(group.number, users_of(group.number, group.groups, group.users))
        rows = len(partition.asked)
        pack_of(partition, np.zeros(rows, np.int64), group.path(data), group.said(rows))


def _repeated(data: Path, templates: int, group: _Group) -> None:
    """A group of other users with the decisions of a template."""
    if not group.path(data).is_dir():
        template = _Group(group.number % templates, group.groups, group.users).path(data)
        copied(template, group.path(data), users_of(group.number, group.groups, group.users), group.said)


def run(data: Path, out: Path, *arguments: str) -> dict[str, Any]:
    """`hindcast replay` over the log, as a person would run it: what it took, memory of it and of its workers."""
    out.mkdir(parents=True, exist_ok=True)
    target = out / "bench-target.json"
    target.write_bytes(canonical_json(target_policy()))
    command = [
        str(Path(sys.executable).with_name("hindcast")), "replay", "--log", str(data), "--policy", str(target), "--out",
        str(out), *arguments,
    ]  # fmt: skip
    began = time.perf_counter()
    with (out / "output.txt").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        memory = Memory(process.pid)
        code = process.wait()
    took = time.perf_counter() - began
    said = (out / "output.txt").read_text(errors="replace")
    if code not in _EXPECTED:
        raise SystemExit(f"{' '.join(command)} ended with {code}:\n{said[-4000:]}")
    parity = re.search(r"parity: ([\d,]+) of ([\d,]+)", said)
    same, decisions = (int(one.replace(",", "")) for one in parity.groups()) if parity else (0, 0)
    cores = 1 if "--in-process" in arguments else os.cpu_count() or 1
    return {
        "command": command[1:], "exit_code": code, "wall_s": took, "decisions": decisions, "parity": same, "cores": cores,
        "decisions_a_second": decisions / took, "a_second_and_core": decisions / took / cores,
        **_apart(out, decisions, took, cores), **memory.result(),
    }  # fmt: skip


def _apart(out: Path, decisions: int, took: float, cores: int) -> dict[str, float]:
    """The pace once every core has written its first part, by the times at which parts were written, and what the run took
    beyond that pace: start and end. Nothing where there are too few parts to tell."""
    written = sorted(part.stat().st_mtime for part in out.glob("parts/*/*.npz"))
    if len(written) < 4 * cores or written[-1] == written[cores - 1]:
        return {}
    a_part = (written[-1] - written[cores - 1]) / (len(written) - cores)
    computing = a_part * len(written)
    return {
        "computing_s": computing, "start_and_end_s": took - computing,
        "computed_a_second_and_core": decisions / computing / cores,
    }  # fmt: skip


def raw(data: Path, decisions: int) -> dict[str, Any]:
    """The same kind of decisions as journal frames in order of time, nobody's beside his own: what bringing them into user
    buckets takes, and what reading and comparing them for the first time does."""
    group = _Group(0, 1, max(decisions // _PER_USER, 1))
    frames = write_journal(data, made_partition(0, users_of(0, 1, group.users)))
    store_policy(data, behaviour_policy())
    began = time.perf_counter()
    compact(data)
    took = time.perf_counter() - began
    return {
        "decisions": frames["decisions"],
        "compaction_s": took,
        "compacted_a_second": frames["decisions"] / took,
        **frames,
    }


def main() -> None:
    """See the module."""
    options = _options()
    scratch = Path(options.data or tempfile.mkdtemp(prefix="hindcast-replay-"))
    print(f"{options.rows:,} decisions in {scratch}", file=sys.stderr)
    result: dict[str, Any] = {"hardware": hardware(), "versions": fingerprint_parts(), "at": datetime.now(UTC).isoformat()}
    result["log"] = write_log(scratch, options.rows, options.distinct, options.processes)
    result["runs"] = {}
    for name, arguments in _RUNS.items():
        if name in options.runs.split(","):
            out = scratch / "out" / name
            shutil.rmtree(out, ignore_errors=True)
            result["runs"][name] = run(scratch, out, *arguments, *(["--in-process"] if options.in_process else []))
    if options.raw:
        folder = scratch / "raw"
        shutil.rmtree(folder, ignore_errors=True)
        result["raw"] = raw(folder, options.raw)
        for name in ("first", "again"):
            result["raw"][name] = run(folder, folder / "out" / name, "--volume-only")
    _tell(result)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    if not options.data:
        shutil.rmtree(scratch)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--distinct", type=int, default=8_000_000, help="decisions that are not repeated for other users")
    parser.add_argument("--data", help="folder to write the log to and keep; what stands there already is used")
    parser.add_argument("--runs", default=",".join(_RUNS), help="of " + ", ".join(_RUNS))
    parser.add_argument("--raw", type=int, default=0, help="decisions to bring from journal frames into buckets, too")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="to write the log with")
    parser.add_argument("--in-process", action="store_true", help="replay without Ray, on one core")
    parser.add_argument("--out", type=Path, help="FILE for the figures as JSON")
    return parser.parse_args()


def _tell(result: Mapping[str, Any]) -> None:
    log = result["log"]
    print(f"log: {log['decisions']:,} decisions, {log['bytes'] / 1e9:.2f} GB, {log['bytes_a_decision']:.1f} bytes each")
    for name, one in result["runs"].items():
        print(
            f"{name}: {one['wall_s']:.1f} s, {one['decisions_a_second']:,.0f} decisions/s, "
            f"{one['a_second_and_core']:,.0f} a core ({one['cores']}); parity {one['parity']:,} of {one['decisions']:,}; "
            f"command {one['driver_mb']:.0f} MB, largest worker {one['worker_mb']:.0f} MB"
        )
        if "computing_s" in one:
            print(
                f"  of it start and end {one['start_and_end_s']:.1f} s; "
                f"without them {one['computed_a_second_and_core']:,.0f} decisions/s a core"
            )
    if "raw" in result:
        one = result["raw"]
        print(f"raw: {one['decisions']:,} decisions compacted in {one['compaction_s']:.1f} s")
        for name in ("first", "again"):
            print(f"  replayed, {name}: {one[name]['wall_s']:.1f} s")


if __name__ == "__main__":
    main()
