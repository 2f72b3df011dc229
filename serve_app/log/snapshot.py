"""Which files are the log: one small JSON file, replaced by one rename.

``DATA/log/snapshot.json`` lists every live Parquet file and, per journal file, how many bytes of it those Parquet files
already contain. Because both change in the same rename, a crash at any point neither loses nor doubles a row. Files that a
newer snapshot no longer lists stay on disk for an hour, so that a reader that holds the older one can finish; those that
hold rows of erased users go with the commit after it.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from serve_app.errors import DamagedArtifact, NotReady
from serve_app.log.migrations import READABLE
from serve_app.log.schema import SCHEMA_VERSION

__all__ = ["TRASH_GRACE_US", "LogFile", "Snapshot", "commit", "journal_folder", "load_snapshot", "log_folder", "writer_lock"]

TRASH_GRACE_US = 3_600_000_000
"""How long files that left the log stay on disk: replays and builds list them once and read them for minutes."""


@dataclass(frozen=True, slots=True)
class LogFile:
    """One Parquet file: `path` relative to DATA/log, `day` ISO text, buckets `low`..`high` inclusive, number of rows."""

    table: str
    path: str
    day: str
    low: int
    high: int
    rows: int


@dataclass(slots=True)
class Snapshot:
    """sequence counts commits; consumed: bytes of each journal file ("writer/name") that are in `files`; retired: journal
    files consumed to their end; trash: Parquet files (relative to DATA/log) to delete, and when each left the log
    (microseconds UTC; 0: it goes with the next commit); erased: how many erasures (lines of `serve_app.log.erasure`) neither
    a listed file nor one with a time in `trash` holds rows of any more; overwritten: of how many the journal's bytes are
    gone too."""

    sequence: int = 0
    files: list[LogFile] = field(default_factory=list)
    consumed: dict[str, int] = field(default_factory=dict)
    retired: list[str] = field(default_factory=list)
    trash: dict[str, int] = field(default_factory=dict)
    erased: int = 0
    overwritten: int = 0

    def due(self, now_us: int, grace_us: int = TRASH_GRACE_US) -> list[str]:
        """Trash to delete now. A clock that was set back ends the grace: it must not make it longer."""
        return [path for path, left in self.trash.items() if not left <= now_us < left + grace_us]


def log_folder(data: str | os.PathLike[str]) -> Path:
    """DATA/log"""
    return Path(data) / "log"


def journal_folder(data: str | os.PathLike[str]) -> Path:
    """DATA/journal"""
    return Path(data) / "journal"


def load_snapshot(data: str | os.PathLike[str]) -> Snapshot:
    """The current snapshot, empty where there is none. DamagedArtifact: unreadable, or another schema version."""
    path = log_folder(data) / "snapshot.json"
    try:
        text = path.read_text()
    except FileNotFoundError:
        return Snapshot()
    try:
        body = json.loads(text)
        version = body.pop("schema_version")
        if version in READABLE:
            if isinstance(body.get("trash"), list):
                # Written before times were kept, by code that takes the paths from a mapping too. It could let late rows of
                # users in whose erasure was done with: all are looked for once more.
                body |= {"trash": dict.fromkeys(body["trash"], 0), "erased": 0}
            return Snapshot(**{**body, "files": [LogFile(**one) for one in body["files"]]})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedArtifact(
            f"{path} is not a log snapshot: {error}", field="log", hint="restore it from a backup"
        ) from error
    raise DamagedArtifact(
        f"{path} has schema version {version}, this code reads {READABLE[0]} to {SCHEMA_VERSION}",
        field="log.schema_version",
        hint="use the version of hindcast that wrote it, or import or generate the log again",
    )


def commit(data: str | os.PathLike[str], snapshot: Snapshot) -> None:
    """Make `snapshot` the log: aside, synced, renamed. Call with `writer_lock` held."""
    root = log_folder(data)
    root.mkdir(parents=True, exist_ok=True)
    body = {"schema_version": SCHEMA_VERSION, **asdict(snapshot)}
    aside = root / ".snapshot.json.tmp"
    with aside.open("w") as out:
        json.dump(body, out)
        out.flush()
        os.fsync(out.fileno())
    aside.replace(root / "snapshot.json")
    sync_folder(root)


def sync_folder(folder: Path) -> None:
    """Make the folder's renames and deletions durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def writer_lock(data: str | os.PathLike[str]) -> Iterator[None]:
    """One writer of DATA/log at a time, on one host; NotReady when another holds it. The kernel frees it at process end."""
    root = log_folder(data)
    root.mkdir(parents=True, exist_ok=True)
    handle = os.open(root / ".lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise NotReady(f"another process is writing {root}", field="log", hint="wait for it to end") from None
        yield
    finally:
        os.close(handle)
