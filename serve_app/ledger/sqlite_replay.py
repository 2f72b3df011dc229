"""Replaying journal blocks at start, and erasing a user from them."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.batch import lengths_to_offsets
from serve_app.ledger.block import checksum, encode_block
from serve_app.ledger.hashing import EventIds
from serve_app.ledger.records import Records
from serve_app.ledger.sqlite_checkpoint import Checkpoint
from serve_app.ledger.sqlite_index import DecisionIndex, checked_block
from serve_app.ledger.sqlite_shelves import erased_records
from serve_app.ledger.table import UserTable
from serve_app.ledger.times import LAST_COMMITS

__all__ = ["BlockKind", "Progress", "erase_from_blocks", "replay"]

I64 = npt.NDArray[np.int64]


class BlockKind(IntEnum):
    """What a journal block holds."""

    commits = 1
    viewed = 2
    event_ids = 3


@dataclass(slots=True)
class Progress:
    """The newest journal position, and the times of the last commits."""

    seq: int = 0
    times: list[int] = field(default_factory=list)


def replay(
    connection: sqlite3.Connection,
    table: UserTable,
    index: DecisionIndex,
    events: EventIds,
    checkpoint: Checkpoint,
    contained: I64,
) -> Progress:
    """Apply the blocks behind the checkpoint; `contained` i64[rows]: the position each loaded row has. Event ids lie in
    the journal alone, so those blocks are all read."""
    # +kind: from the end of the journal, not through all its commits.
    last = connection.execute("SELECT at FROM blocks WHERE +kind = 1 ORDER BY seq DESC LIMIT ?", (LAST_COMMITS,)).fetchall()
    (seq,) = connection.execute("SELECT max(seq) FROM blocks").fetchone()
    for position, at, expected, body in connection.execute(
        "SELECT seq, at, sum, body FROM blocks WHERE kind = 3 ORDER BY at, seq"
    ):
        events.mark(checked_block(position, expected, body)["ids"], at)
    query = "SELECT seq, kind, sum, body FROM blocks WHERE seq > ? AND kind IN (1, 2) ORDER BY seq"
    for position, kind, expected, body in connection.execute(query, (checkpoint.reached,)):
        columns = checked_block(position, expected, body)
        if kind == BlockKind.viewed:
            _replay_viewed(table, checkpoint, columns, _missing(table, columns["users"], contained, position))
        else:
            _replay_commits(table, index, checkpoint, columns, contained, position)
    return Progress(seq or 0, [at for (at,) in reversed(last)])


def _missing(table: UserTable, users: npt.NDArray[np.uint64], contained: I64, position: int) -> npt.NDArray[np.bool_]:
    """bool[n]: the user's loaded row does not contain this block."""
    rows = table.index.find(users)
    loaded = (rows >= 0) & (rows < len(contained))
    return ~loaded | (contained[np.where(loaded, rows, 0)] < position) if len(contained) else np.ones(len(users), np.bool_)


def _replay_viewed(
    table: UserTable, checkpoint: Checkpoint, columns: dict[str, Any], missing: npt.NDArray[np.bool_]
) -> None:
    if missing.any():
        checkpoint.touch(table.record_events(*(columns[name][missing] for name in ("users", "items", "at"))))


def _replay_commits(
    table: UserTable, index: DecisionIndex, checkpoint: Checkpoint, columns: dict[str, Any], contained: I64, position: int
) -> None:
    alive = columns["versions"] > 0  # an erased row is left as zeros
    rows = np.flatnonzero(alive & _missing(table, columns["users"], contained, position))
    if len(rows):
        offsets, users = lengths_to_offsets(columns["counts"]), columns["users"][rows]
        wanted = np.zeros(len(alive), np.bool_)
        wanted[rows] = True
        entries = columns["entries"][np.repeat(wanted, columns["counts"])]
        table.commit(users, columns["decided_at"][rows], entries, lengths_to_offsets(np.diff(offsets)[rows]))
        checkpoint.touch(table.index.find(users))
    users, requests, at = columns["users"], columns["requests"], columns["decided_at"]
    index.add(users, requests, at, position, columns["idem"], columns["digests"])


def erase_from_blocks(connection: sqlite3.Connection, commits: set[int], user: int, row_bits: int) -> None:
    """Rewrite the blocks that hold the user: the given commit blocks, and all blocks of viewed items still kept."""
    viewed = {seq for (seq,) in connection.execute("SELECT seq FROM blocks WHERE kind = ?", (int(BlockKind.viewed),))}
    for seq in sorted(commits | viewed):
        found = connection.execute("SELECT kind, sum, body FROM blocks WHERE seq = ?", (seq,)).fetchone()
        if found is None:
            continue
        kind, expected, body = found
        columns = checked_block(seq, expected, body)
        mine = columns["users"] == np.uint64(user)
        if not mine.any():
            continue
        columns = _without_viewed(columns, mine) if kind == BlockKind.viewed else _without_commits(columns, mine)
        body = encode_block(columns)
        records = Records.of(columns.get("records", [])).present
        connection.execute(
            "UPDATE blocks SET sum = ?, body = ?, records = ? WHERE seq = ?", (checksum(body), body, records, seq)
        )
        if kind == BlockKind.commits:
            erased_records(connection, seq, np.flatnonzero(mine).tolist(), row_bits)


def _without_viewed(columns: dict[str, Any], mine: npt.NDArray[np.bool_]) -> dict[str, Any]:
    return {name: values[~mine] for name, values in columns.items()}


def _without_commits(columns: dict[str, Any], mine: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Rows keep their numbers, since places point at them; an erased row is zeros."""
    entries = columns["entries"][np.repeat(~mine, columns["counts"])]
    out: dict[str, Any] = {}
    for name, values in columns.items():
        if name == "entries":
            out[name] = entries
        elif isinstance(values, list | Records):
            out[name] = [b"" if gone else value for value, gone in zip(values, mine.tolist(), strict=True)] if values else []
        else:
            out[name] = np.where(mine, values.dtype.type(0), values)
    return out
