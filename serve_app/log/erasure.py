"""Users who asked to be forgotten: what no reader shows from then on, and how it leaves the disk.

``DATA/log/erased.jsonl`` gets one line an erasure, synced before anybody is told. From that moment every reader of the log,
of files and of journal frames, leaves out what the user did up to the instant of erasure, wherever it still lies. The next
upkeep of the log (`serve_app.log.upkeep`) writes the files that hold such rows anew without them, and blanks the user in the
catalogue; the one after it deletes the old files and overwrites the journal's bytes. So with upkeep every five minutes, the
default, nothing is on disk any more after about ten; offline, `hindcast log erase` does both at once. An erasure during an
upkeep waits for the next two.

The line itself (a hash and a time) stays: rows of before may still arrive, from a delayed client or a restored copy.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from serve_app.errors import DamagedArtifact
from serve_app.log.schema import PER_USER
from serve_app.log.snapshot import log_folder, sync_folder

__all__ = ["Erased", "erase_user", "erased_in", "erased_users", "load_erased", "without_erased"]

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]

_FILE = "erased.jsonl"
_CACHE: dict[str, tuple[tuple[int, int], Erased]] = {}
_LOCK = threading.Lock()


class Erased:
    """Erased users (sorted u64[n]) and the instant of each (i64[n], microseconds UTC, the newest where it happened twice).
    lines: how many erasures that were. named: the user of each, None where a line was cut short."""

    def __init__(self, at: Mapping[int, int], lines: int, named: Sequence[int | None] = ()) -> None:
        self.users: U64 = np.array(sorted(at), np.uint64)
        self.at: I64 = np.array([at[user] for user in self.users.tolist()], np.int64)
        self.lines = lines
        self._named = named

    def __len__(self) -> int:
        return len(self.users)

    def covers(self, users: U64, ts: I64) -> npt.NDArray[np.bool_]:
        """bool[n]: this user at this time is to be forgotten."""
        if not len(self.users):
            return np.zeros(len(users), np.bool_)
        place = np.minimum(np.searchsorted(self.users, users), len(self.users) - 1)
        return (self.users[place] == users) & (ts <= self.at[place])

    def named_in(self, after: int, upto: int) -> Erased:
        """The users named in the lines after the first `after`, up to line `upto`, with their newest instants."""
        named = {user for user in self._named[after:upto] if user is not None}
        place = np.searchsorted(self.users, np.array(sorted(named), np.uint64))
        return Erased(dict(zip(self.users[place].tolist(), self.at[place].tolist(), strict=True)), upto)


def erase_user(data: str | os.PathLike[str], user: int, at: int) -> None:
    """Forget what `user` did up to `at` (microseconds UTC). Durable when it returns."""
    root = log_folder(data)
    root.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"user": f"{user:016x}", "at": at}) + "\n"
    handle = os.open(root / _FILE, os.O_CREAT | os.O_RDWR | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        size = os.fstat(handle).st_size
        torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"  # a writer died within its line
        os.write(handle, (b"\n" if torn else b"") + line.encode())
        os.fsync(handle)
    finally:
        os.close(handle)
    sync_folder(root)


def erased_users(data: str | os.PathLike[str]) -> dict[int, int]:
    """user hash -> instant up to which everything of that user is forgotten."""
    erased = load_erased(data)
    return dict(zip(erased.users.tolist(), erased.at.tolist(), strict=True))


def load_erased(data: str | os.PathLike[str]) -> Erased:
    """All erasures; read again only when the file has changed. DamagedArtifact: a line cannot be read."""
    path = log_folder(data) / _FILE
    try:
        stat = path.stat()
    except FileNotFoundError:
        return Erased({}, 0)
    version = (stat.st_mtime_ns, stat.st_size)
    with _LOCK:
        known = _CACHE.get(str(path))
        if known is not None and known[0] == version:
            return known[1]
    erased = _read(path)
    with _LOCK:
        _CACHE[str(path)] = (version, erased)
    return erased


def _read(path: Path) -> Erased:
    at: dict[int, int] = {}
    named: list[int | None] = []
    lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last line end was never answered
    for number, line in enumerate(lines, 1):
        if not line.endswith(b"}"):  # cut short by the death of its writer, closed by the next one
            named.append(None)
            continue
        try:
            said = json.loads(line)
            user = int(said["user"], 16)
            at[user] = max(at.get(user, 0), int(said["at"]))
            named.append(user)
        except (ValueError, KeyError, TypeError) as error:
            message = f"{path} line {number} is not an erasure"
            raise DamagedArtifact(message, field="log", hint="restore it from a backup") from error
    return Erased(at, len(lines), named)


def erased_in(path: str | os.PathLike[str]) -> Erased:
    """The erasures of the log that Parquet file DATA/log/<table>/day=.../buckets=.../part-... belongs to."""
    parents = Path(path).parents
    return load_erased(parents[4]) if len(parents) > 4 and parents[3].name == "log" else Erased({}, 0)


def without_erased(table: str, rows: pa.Table, erased: Erased) -> pa.Table:
    """Rows of a log table (with `user` and `ts`) that are not to be forgotten."""
    if not len(erased) or table not in PER_USER or not len(rows):
        return rows
    gone = erased.covers(rows["user"].to_numpy(), rows["ts"].to_numpy())
    return rows.filter(pa.array(~gone)) if gone.any() else rows
