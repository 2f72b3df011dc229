"""One decision stands in the log once: of several copies of a request, the one the ledger holds.

The same request can be written twice: an append whose answer was late is repeated; a commit whose outcome was unknown was
journalled as not sent, and the ledger's record says that it was; a deferral's child is decided again after a crash, perhaps
on another day. A copy with a commit version is the ledger's word and beats any without; among equals the first stays.

Requests, candidates and decisions of one request come and go together.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from serve_app.log.reader import read_files
from serve_app.log.snapshot import LogFile, log_folder
from serve_app.log.writer import LogWriter, day_text

__all__ = ["DECISION_TABLES", "Found", "days_near", "find_requests", "keep_once", "supersede"]

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
I8 = npt.NDArray[np.int8]
Bools = npt.NDArray[np.bool_]
Array = npt.NDArray[Any]

DECISION_TABLES = ("requests", "candidates", "decisions")
ABSENT, UNCOMMITTED, COMMITTED = 0, 1, 2
_NEAR_DAYS = 3


@dataclass(slots=True)
class Found:
    """state i8[n]: 0 absent, 1 logged without a commit, 2 logged with one. partitions: (day, low, high) of files that hold
    requests of state 1 (of any that were 1 in some file)."""

    state: I8
    partitions: set[tuple[str, int, int]] = field(default_factory=set)


def days_near(ts: I64) -> set[str]:
    """Days of `ts`, and those so near that a repeated request may lie there."""
    days = {int(one) for one in np.unique(ts // 86_400_000_000)}
    return {day_text(day + near) for day in days for near in range(-_NEAR_DAYS, 2)}


def groups_of(*sides: tuple[Array, ...]) -> list[I64]:
    """The same number for rows whose keys are equal, over all `sides` (each: equally long key columns)."""
    keys = [np.concatenate(columns) for columns in zip(*sides, strict=True)]
    order = np.argsort(keys[-1])  # ids are nearly unique: by them alone, equal rows are neighbours
    new = _changes(keys[-1], order)
    if any(bool((_changes(key, order) & ~new).any()) for key in keys[:-1]):
        order = np.lexsort(keys[::-1])
        new = np.logical_or.reduce([_changes(key, order) for key in keys])
    number = np.empty(len(order), np.int64)
    number[order] = np.cumsum(new)
    ends = np.cumsum([len(side[0]) for side in sides])[:-1]
    return list(np.split(number, ends))


def _changes(key: Array, order: I64) -> Bools:
    """bool[n]: in this order, not the value of the row before."""
    values = key[order]
    out = np.zeros(len(order), np.bool_)
    out[1:] = values[1:] != values[:-1]
    return out


def find_requests(
    data: str | os.PathLike[str],
    files: Sequence[LogFile],
    users: U64,
    request_ids: U64,
    *,
    days: Collection[str] | None = None,
) -> Found:
    """What the Parquet log says of n requests (u64[n] each). days None: any day, newest first, until all are found
    committed. Reads one file's identities at a time."""
    found = Found(np.zeros(len(users), np.int8))
    own = [one for one in files if one.table == "decisions" and (days is None or one.day in days)]
    buckets = (users >> np.uint64(52)).astype(np.int64)
    for one in sorted(own, key=lambda file: file.day, reverse=True):
        mine = np.flatnonzero((buckets >= one.low) & (buckets <= one.high) & (found.state < COMMITTED))
        if not len(mine):
            continue
        rows = _of_ids(str(log_folder(data) / one.path), pa.array(request_ids[mine]))
        if not len(rows):
            continue
        logged, wanted = groups_of(
            (rows["user"].to_numpy(), rows["request_id"].to_numpy()), (users[mine], request_ids[mine])
        )
        state = np.zeros(max(int(logged.max(initial=-1)), int(wanted.max(initial=-1))) + 1, np.int8)
        state[logged] = UNCOMMITTED
        state[logged[rows["commit_version"].to_numpy() >= 0]] = COMMITTED
        if (state[wanted] == UNCOMMITTED).any():
            found.partitions.add((one.day, one.low, one.high))
        found.state[mine] = np.maximum(found.state[mine], state[wanted])
    return found


def _of_ids(path: str, request_ids: pa.Array) -> pa.Table:
    """User, request_id and commit_version of decisions with such ids. Mostly a file has none, which one column says."""
    ids = read_files([path], "decisions", columns=["request_id"], in_order=False)["request_id"]
    found = pc.is_in(ids, value_set=request_ids)
    columns = ["user", "request_id", "commit_version"]
    if not pc.any(found).as_py():
        return read_files([], "decisions", columns=columns)
    return read_files([path], "decisions", columns=columns, in_order=False).filter(found)


def supersede(writer: LogWriter, found: Found, users: U64, request_ids: U64) -> int:
    """Take the uncommitted rows of these requests out of the log: their files are written anew. Returns how many decision
    rows went."""
    gone = 0
    for table in DECISION_TABLES:
        for one in [file for file in writer.live() if _lies_in(file, table, found.partitions)]:
            rows = read_files([str(log_folder(writer.data) / one.path)], table)
            logged, wanted = groups_of((rows["user"].to_numpy(), rows["request_id"].to_numpy()), (users, request_ids))
            drop = np.isin(logged, wanted)
            if drop.any():
                writer.drop([one])
                writer.write(table, rows.filter(pa.array(~drop)))
                gone += int(drop.sum()) if table == "decisions" else 0
    return gone


def _lies_in(one: LogFile, table: str, partitions: set[tuple[str, int, int]]) -> bool:
    return one.table == table and any(
        one.day == day and one.low <= high and low <= one.high for day, low, high in partitions
    )


def keep_once(
    writer: LogWriter, tables: Mapping[str, pa.Table], frames: Mapping[str, I64], *, any_day: bool = False
) -> dict[str, pa.Table]:
    """Rows of the decision tables that are to be written, of `tables` with the number of the frame each row came in
    (i64[rows], rising in order of writing). Rows in the log that they beat are taken out of it."""
    given = {name: rows for name, rows in tables.items() if name in DECISION_TABLES and len(rows)}
    if not given:
        return {}
    columns = [(rows["user"].to_numpy(), rows["request_id"].to_numpy()) for rows in given.values()]
    numbers = groups_of(*columns)
    number = dict(zip(given, numbers, strict=True))
    frame = np.concatenate([frames[name] for name in given])
    every = np.concatenate(numbers)
    committed = np.concatenate([_committed(name, rows) for name, rows in given.items()])
    count = int(every.max()) + 1
    rank = _ranks(every, frame, committed, count)
    first = np.zeros(count, np.int64)
    first[every[::-1]] = np.arange(len(every))[::-1]
    users, ids = (np.concatenate(parts)[first] for parts in zip(*columns, strict=True))
    ts = np.concatenate([rows["ts"].to_numpy() for rows in given.values()])
    found = find_requests(writer.data, writer.live(), users, ids, days=None if any_day else days_near(ts))
    beats = (found.state == ABSENT) | ((found.state == UNCOMMITTED) & rank.committed)
    beaten = beats & (found.state == UNCOMMITTED)
    if beaten.any():
        supersede(writer, found, users[beaten], ids[beaten])
    out = {}
    for name, rows in given.items():
        mine = number[name]
        stays = beats[mine] & (frames[name] == rank.frame[mine])
        out[name] = rows if stays.all() else rows.filter(pa.array(stays))
    return out


def _committed(table: str, rows: pa.Table) -> Bools:
    if table == "decisions":
        return np.asarray(rows["commit_version"].to_numpy() >= 0)
    return np.zeros(len(rows), np.bool_)


@dataclass(slots=True)
class _Ranks:
    """Per group: the frame whose copy counts, and whether that copy is committed."""

    frame: I64
    committed: Bools


def _ranks(group: I64, frame: I64, committed: Bools, count: int) -> _Ranks:
    """A copy is committed where any of its rows is; the first committed copy counts, else the first."""
    only = _Ranks(np.empty(count, np.int64), np.zeros(count, np.bool_))
    only.frame[group] = frame
    if bool((only.frame[group] == frame).all()):  # one copy of each
        only.committed[group[committed]] = True
        return only
    copies = groups_of((group, frame))[0]
    whole = np.zeros(int(copies.max()) + 1, np.bool_)
    np.logical_or.at(whole, copies, committed)
    order = np.lexsort((frame, ~whole[copies], group))
    chosen = order[np.flatnonzero(np.concatenate([[True], group[order][1:] != group[order][:-1]]))]
    out = _Ranks(np.empty(count, np.int64), np.empty(count, np.bool_))
    out.frame[group[chosen]], out.committed[group[chosen]] = frame[chosen], whole[copies[chosen]]
    return out
