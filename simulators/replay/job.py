"""The replay as a Ray Data job: one task a bucket group, results as files, resumed where it was stopped.

A task writes its sums aside and renames them, so a file is whole or absent. The folder carries the digest of everything the
result follows from; files of another digest are not reused. Sums are added in bucket order, whatever order they came in.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from serve_app.errors import InvalidInput
from serve_app.ids import BUCKETS
from serve_app.log.reader import BucketGroup, bucket_groups, log_days, read_files
from serve_app.vocabulary import Surface
from simulators.replay.allocation import keep_freed_memory
from simulators.replay.pack import pack_manifest
from simulators.replay.pack_shelf import (
    PACKS,
    SOURCE_ITSELF,
    digest_of,
    erased_among,
    lone_packs,
    pack_path,
    read_ahead,
    shelf_of,
    split,
)
from simulators.replay.partition import TABLES_READ
from simulators.replay.parts import Task, group_of, make_missing, part_file, parts_folder, task_of
from simulators.replay.shard import Shard, empty_shard, read_shard, replay_group, write_shard
from simulators.replay.spec import ReplaySpec

__all__ = ["groups_of", "log_end", "log_start", "logged_heads", "logged_revisions", "run_replay", "summed"]

_DAY_US = 86_400_000_000


def run_replay(
    spec: ReplaySpec,
    out: Path,
    *,
    progress: Callable[[int, int], None] = lambda *_: None,
    local: bool = False,
    packs: Path | None = None,
) -> Shard:
    """Replay every bucket group of `spec.data` that `out` does not hold yet; returns the sum of all. local: in this process
    instead of Ray. packs: see `pack_shelf.shelf_of`, which is taken where it is None. progress(groups done, groups). Raises
    what a task raised; what other tasks finished stays."""
    data = Path(spec.data)
    shelf = packs if packs is not None else shelf_of(data, out)
    groups = groups_of(data, shelf)
    if not any(group.files.get("requests") for group in groups) and not lone_packs(shelf):
        raise InvalidInput("the log holds no compacted requests", field="log", hint="run `hindcast log compact` first")
    folder = _folder(out, spec, groups, shelf)
    missing = [group for group in groups if not part_file(folder, group).is_file()]
    step = 1 if local else os.cpu_count() or 1
    make_missing(_task(spec, folder, shelf), _tasks(missing, step), len(groups), progress, local=local)
    total = summed([part_file(folder, group) for group in groups], spec)
    _refuse_nothing(total)
    return total


def _refuse_nothing(total: Shard) -> None:
    """InvalidInput where no decision counts: a report on nothing would look like one on no change."""
    counts = total.counts
    decided = pc.and_(pc.equal(counts["policy"], "logged"), pc.equal(counts["measure"], "decisions"))
    if counts.filter(decided).num_rows:
        return
    if total.requests:
        message = f"none of the {total.requests:,} notification decisions of the log lies in the window"
        raise InvalidInput(message, field="--from, --to", hint="name days that the log holds, in UTC")
    raise InvalidInput("the log holds no notification that a policy decided", field="log", hint="replay a log that has some")


def groups_of(data: Path, shelf: Path) -> list[BucketGroup]:
    """What a replay reads, task by task: ranges of the log's buckets, or the packs of a log that has nothing else."""
    groups = bucket_groups(data, TABLES_READ)
    return split(data, groups) if groups else lone_packs(shelf)


def summed(files: Sequence[Path], spec: ReplaySpec) -> Shard:
    """The sum of such parts, in this order."""
    total = empty_shard(spec)
    for file in files:
        total = total + read_shard(file, spec)
    return total


def logged_revisions(data: Path) -> list[str]:
    """Policies that decided notifications in the compacted log."""
    return sorted(_distinct(data, "policy_revision") | {one for said in _lone(data) for one in said["revisions"]})


def logged_heads(data: Path) -> tuple[str, ...]:
    """Heads that scored notifications in the compacted log; none where nothing was scored, or where they changed (each group
    then says so, or has its own)."""
    named = {tuple(text.split(",")) for text in _distinct(data, "head_names") if text}
    named |= {tuple(said["heads"]) for said in _lone(data) if said["heads"]}
    return next(iter(named)) if len(named) == 1 else ()


def _distinct(data: Path, column: str) -> set[str]:
    """Of the notification requests, file by file."""
    found: set[str] = set()
    for group in bucket_groups(data, ("requests",)):
        for path in group.files["requests"]:
            rows = read_files([path], "requests", columns=(column, "surface"))
            mine = rows.filter(pc.equal(rows["surface"], int(Surface.notification)))[column]
            found.update(pc.unique(mine).to_pylist())
    return found


def _lone(data: Path) -> list[dict[str, Any]]:
    """Manifests of the packs of a log that has nothing else."""
    if bucket_groups(data, TABLES_READ):
        return []
    shelf = data / PACKS
    folders = [pack_path(shelf, one, SOURCE_ITSELF) for one in lone_packs(shelf)]
    return list(_manifests(tuple((folder, folder.stat().st_mtime_ns) for folder in folders)))


@lru_cache(maxsize=2)
def _manifests(folders: tuple[tuple[Path, int], ...]) -> tuple[dict[str, Any], ...]:
    """Of packs with the times they were last changed at: asked for several times while a replay is set up."""
    return tuple(pack_manifest(folder) for folder, _ in folders)


def log_start(data: Path) -> int:
    """Midnight (UTC) before the log's first day with events; 0 without any."""
    days = log_days(data, "events") or [said["days"][0] for said in _lone(data)]
    return _midnight(min(days)) if days else 0


def log_end(data: Path) -> int:
    """Until when events can be expected to be in the log: midnight (UTC) after its last day with events; 0 without any."""
    days = log_days(data, "events") or [said["days"][-1] for said in _lone(data)]
    return _midnight(max(days)) + _DAY_US if days else 0


def _midnight(day: str) -> int:
    return (date.fromisoformat(day).toordinal() - date(1970, 1, 1).toordinal()) * _DAY_US


def _folder(out: Path, spec: ReplaySpec, groups: Sequence[BucketGroup], shelf: Path) -> Path:
    """The folder of this replay's parts."""
    data = Path(spec.data)
    ranges = [(group.low, group.high) for group in groups]
    of = {str(Path(path).relative_to(data)) for group in groups for some in group.files.values() for path in some}
    of |= {digest_of(pack_path(shelf, group, SOURCE_ITSELF)) for group in groups if not group.files}
    name = spec.digest([*of, f"{ranges}", erased_among(data, 0, BUCKETS - 1)])
    return parts_folder(out, name, asdict(spec), groups)


def _tasks(groups: Sequence[BucketGroup], step: int) -> list[Task]:
    """One a group; each names the group whose pack should be read meanwhile: that which its worker does next."""
    ahead = [groups[min(place + step, len(groups) - 1)] for place in range(len(groups))]
    return [task_of(group, ahead=(later.low, later.high)) for group, later in zip(groups, ahead, strict=True)]


def _task(spec: ReplaySpec, folder: Path, shelf: Path) -> Callable[[Task], Task]:
    def run(task: Task) -> Task:
        keep_freed_memory()
        group, (low, high) = group_of(task), task["ahead"]
        read_ahead(shelf, int(low), int(high))
        write_shard(part_file(folder, group), replay_group(group, spec, shelf))
        return {"low": group.low}

    return run
