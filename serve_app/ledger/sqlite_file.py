"""The file of the SQLite ledger: its lock, its schema, its user rows."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from serve_app.batch import lengths_to_offsets
from serve_app.errors import DamagedArtifact, NotReady
from serve_app.ledger.block import checksum
from serve_app.ledger.columns import HISTORY_DTYPE, Histories
from serve_app.ledger.table import RECENT_DTYPE, STATE_DTYPE, UserTable

__all__ = [
    "BUSY_MS",
    "Durability",
    "OwnerLock",
    "connect",
    "load_users",
    "to_key",
    "to_keys",
    "to_user",
    "to_users",
    "user_rows",
]

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Durability = Literal["disk", "process"]
"""What an answered write survives: "disk": power loss; "process": kill -9 of the process, but not power loss."""

_APPLICATION_ID, _SCHEMA = 1212761932, 1
# What files of the same schema made earlier lack.
_LATER = (
    "CREATE TABLE IF NOT EXISTS user_ids (key INTEGER PRIMARY KEY, id TEXT NOT NULL)",
    "CREATE INDEX IF NOT EXISTS blocks_by_time ON blocks (kind, at)",
    "CREATE INDEX IF NOT EXISTS outbox_by_lease ON outbox (leased_until, id)",
    "CREATE TABLE IF NOT EXISTS deferred (id INTEGER PRIMARY KEY, size INTEGER NOT NULL, record BLOB NOT NULL)",
)
_TOP = 1 << 63
_RESTORE = "restore the file from a copy, or move it away to start empty"
_CHUNK = 20_000
BUSY_MS = 5_000  # how long a statement waits for others to let the file go


class OwnerLock:
    """An exclusive lock beside the file, held for as long as this process owns the ledger."""

    def __init__(self, path: Path) -> None:
        self._file = open(path.with_name(path.name + ".lock"), "a+", encoding="ascii")  # noqa: SIM115 (held, not scoped)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.seek(0)
            owner = self._file.read().strip() or "unknown"
            self._file.close()
            hint = "one process owns the file and serves all others; if that is a server, stop it first (hindcast down)"
            raise NotReady(f"{path} is owned by process {owner}", field="ledger", hint=hint) from None
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()

    def release(self) -> None:
        """Let the next owner in."""
        self._file.close()


def to_key(user: int) -> int:
    """User hash -> SQLite's signed key, in the order of the hash."""
    return user - _TOP


def to_user(key: int) -> int:
    """The reverse of `to_key`."""
    return key + _TOP


def to_keys(users: U64) -> list[int]:
    """`to_key` of each."""
    keys: list[int] = (users ^ np.uint64(_TOP)).view(np.int64).tolist()
    return keys


def to_users(keys: list[int]) -> U64:
    """`to_user` of each."""
    return np.asarray(keys, np.int64).view(np.uint64) ^ np.uint64(_TOP)


def connect(path: Path, durability: Durability, *, read_only: bool) -> sqlite3.Connection:
    """An open, checked connection; an empty file gets the schema. Raises DamagedArtifact, naming the file."""
    if read_only and not path.exists():
        raise NotReady(f"there is no ledger at {path}", field="ledger", hint="start the server once, or name another --data")
    mode = "ro" if read_only else "rwc"
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None, timeout=BUSY_MS / 1000
    )
    try:
        _prepare(connection, path, durability, read_only=read_only)
    except sqlite3.DatabaseError as error:
        connection.close()
        if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
            raise NotReady(f"{path} is in use by another program", field="ledger", hint="close it") from error
        raise DamagedArtifact(f"{path} is damaged: {error}", hint=_RESTORE) from error
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection, path: Path, durability: Durability, *, read_only: bool) -> None:
    if not read_only:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {'FULL' if durability == 'disk' else 'NORMAL'}")
        connection.execute("PRAGMA secure_delete = ON")
        connection.execute("PRAGMA wal_autocheckpoint = 8000")
    connection.execute("PRAGMA cache_size = -16384")  # KB: users are in memory, rounds go through the tables in key order
    connection.execute("PRAGMA temp_store = MEMORY")
    application, schema = (connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
    if (application, schema) == (0, 0) and not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        script = resources.files("serve_app.ledger").joinpath("sqlite_schema.sql").read_text(encoding="utf-8")
        connection.executescript(f"BEGIN;\n{script}\nCOMMIT;")
    elif application != _APPLICATION_ID:
        raise DamagedArtifact(f"{path} is not a Hindcast ledger", hint="name another file")
    elif schema != _SCHEMA:
        raise DamagedArtifact(f"{path} has ledger schema {schema}, this version reads {_SCHEMA}", hint="upgrade hindcast")
    elif not read_only:
        for statement in _LATER:
            connection.execute(statement)


def user_rows(table: UserTable, rows: I64, seq: int) -> Iterator[tuple[int, int, int, bytes, bytes, bytes]]:
    """The table's `rows` as rows of `users`."""
    state = table.state[rows].tobytes()
    entries, offsets = table.histories.gather(rows)
    seen, seen_offsets = table.recents_of.gather(rows)
    history, recents = entries.tobytes(), seen.tobytes()
    ends, seen_ends = (offsets * HISTORY_DTYPE.itemsize).tolist(), (seen_offsets * RECENT_DTYPE.itemsize).tolist()
    width = STATE_DTYPE.itemsize
    for i, key in enumerate(to_keys(table.index.keys[rows])):
        blobs = state[i * width : (i + 1) * width], history[ends[i] : ends[i + 1]], recents[seen_ends[i] : seen_ends[i + 1]]
        yield (key, seq, checksum(*blobs), *blobs)


def _ragged(blobs: list[bytes], dtype: np.dtype[np.void]) -> Histories:
    lengths = np.fromiter(map(len, blobs), np.int64, len(blobs)) // dtype.itemsize
    return Histories(np.frombuffer(b"".join(blobs), dtype), lengths_to_offsets(lengths))


def load_users(connection: sqlite3.Connection, table: UserTable, path: Path) -> I64:
    """All user rows into `table`; returns i64[table.count], the journal position each contains. Raises DamagedArtifact."""
    cursor = connection.execute("SELECT key, seq, sum, state, history, recents FROM users ORDER BY key")
    positions: list[I64] = []
    while chunk := cursor.fetchmany(_CHUNK):
        keys, seqs, sums, states, histories, recents = map(list, zip(*chunk, strict=True))
        for key, expected, *blobs in zip(keys, sums, states, histories, recents, strict=True):
            if checksum(*blobs) != expected:
                raise DamagedArtifact(f"{path}: user {to_user(key):016x} fails its checksum", hint=_RESTORE)
        state = np.frombuffer(b"".join(states), STATE_DTYPE)
        table.load(to_users(keys), state, _ragged(histories, HISTORY_DTYPE), _ragged(recents, RECENT_DTYPE))
        positions.append(np.asarray(seqs, np.int64))
    return np.concatenate(positions) if positions else np.zeros(0, np.int64)
