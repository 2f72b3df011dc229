"""Read the whole log and say what is wrong with it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from serve_app.errors import DamagedArtifact
from serve_app.ids import bucket_of
from serve_app.log.journal import read_journal
from serve_app.log.reader import read_files
from serve_app.log.schema import PER_USER
from serve_app.log.snapshot import LogFile, load_snapshot, log_folder

__all__ = ["LogCheck", "check_log"]


@dataclass(slots=True)
class LogCheck:
    """Numbers of Parquet files, their rows and journal frames read; `problems` are one line each."""

    files: int = 0
    rows: int = 0
    frames: int = 0
    problems: list[str] = field(default_factory=list)


def check_log(data: str | os.PathLike[str], *, progress: Callable[[str], None] = lambda _: None) -> LogCheck:
    """Every file is readable, of this schema, holds as many rows as listed, of its own buckets; every
    journal frame is whole."""
    found = LogCheck()
    snapshot = load_snapshot(data)
    root = log_folder(data)
    for one in snapshot.files:
        progress(one.path)
        try:
            rows = read_files([str(root / one.path)], one.table, with_erased=True)
        except DamagedArtifact as error:
            found.problems.append(str(error))
            continue
        found.files += 1
        found.rows += len(rows)
        found.problems += _file_problems(one, rows)
    read = read_journal(data, snapshot.consumed)
    found.frames = read.frames
    if read.damaged:
        found.problems.append(f"{read.damaged} journal frames are corrupt")
    if read.torn:
        found.problems.append(f"{read.torn} journal files end in a torn frame")
    return found


def _file_problems(one: LogFile, rows: pa.Table) -> list[str]:
    problems = []
    if len(rows) != one.rows:
        problems.append(f"{one.path}: {len(rows)} rows, {one.rows} listed")
    if one.table in PER_USER and len(rows):
        buckets = rows["user_bucket"].to_numpy()
        if not np.array_equal(buckets, bucket_of(rows["user"].to_numpy())):
            problems.append(f"{one.path}: user_bucket is not the bucket of user")
        if int(buckets.min()) < one.low or int(buckets.max()) > one.high:
            problems.append(f"{one.path}: buckets outside {one.low}..{one.high}")
    return problems
