"""A log on its way into a store (see `serve_app.log.shared`), where replays and builds on other machines find it."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from serve_app.errors import DamagedArtifact, InvalidInput, NotReady
from serve_app.log.lag import LogLag, log_lag
from serve_app.log.schema import SCHEMA_VERSION
from serve_app.log.shared import (
    BESIDE,
    NAME,
    PARTS,
    Beside,
    SharedFile,
    SharedLog,
    beside_files,
    identity,
    ours,
    read_shared,
)
from serve_app.log.snapshot import LogFile, Snapshot, load_snapshot, log_folder
from serve_app.stores import Content, Progress, Store, content_of, copied

__all__ = ["Pushed", "push_log"]

_ATTEMPTS = 8


@dataclass(frozen=True, slots=True)
class Pushed:
    """What one push did, in files. bytes: of those sent; rows: of the whole log as it is there now; lag: what of the
    journal no file holds yet, which stays here."""

    sent: int
    bytes: int
    known: int
    removed: int
    rows: int
    lag: LogLag


class _Changed(Exception):
    """A commit took a file that was about to be sent."""


def push_log(data: Path, url: str, progress: Progress = lambda *_: None) -> Pushed:
    """Bring the store at `url` to the log's present state: files it lacks are sent, those that left the log deleted there.

    The log may be written meanwhile. What fails leaves the state that was there, and the next push goes on from it.
    progress(done, total) in bytes. NotReady: nothing is logged yet, the store does not answer, or another push is at work;
    InvalidInput: the store holds another log, or a newer state of this one.
    """
    store = Store(url)
    if load_snapshot(data).sequence == 0:
        raise NotReady("its log holds no file yet", field=str(data), hint="hindcast log compact")
    with _alone(data):
        for _ in range(_ATTEMPTS):
            snapshot = load_snapshot(data)
            try:
                return _push(data, store, snapshot, progress)
            except _Changed as gone:
                if load_snapshot(data).sequence == snapshot.sequence:
                    raise DamagedArtifact(f"{gone} is missing", field="log", hint="hindcast log check") from None
    raise NotReady("the log kept changing while it was read", field="log", hint="try again")


@contextmanager
def _alone(data: Path) -> Iterator[None]:
    handle = os.open(log_folder(data) / ".push.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise NotReady("another process pushes this log", field=str(data), hint="wait for it to end") from None
        yield
    finally:
        os.close(handle)


def _push(data: Path, store: Store, snapshot: Snapshot, progress: Progress) -> Pushed:
    own, there = identity(data), read_shared(store)
    if there is not None and there.log != own:
        raise InvalidInput("another log is kept there", field=store.url, hint="push to an empty folder")
    if there is not None and there.sequence > snapshot.sequence:
        raise InvalidInput("a newer state of this log is kept there", field=store.url, hint="push to an empty folder")
    known, stored = there.names() if there else {}, {**store.listed(PARTS), **store.listed(BESIDE)}
    beside = {path: _read(data / path) for path in beside_files(data)}
    # Of two files that hold the same, one is sent.
    files = {f"{PARTS}/{one.path}": log_folder(data) / one.path for one in snapshot.files}
    files |= {f"{BESIDE}/{content.sha256}": data / path for path, content in beside.items()}
    lacking = {name: path for name, path in files.items() if name not in known}
    sent = _sent(store, lacking, stored, progress)
    for name, content in sent.items():
        if name.startswith(BESIDE) and not name.endswith(content.sha256):
            raise _Changed(lacking[name])  # it was written anew between the two readings
    held = known | sent
    now = SharedLog(
        schema_version=SCHEMA_VERSION,
        log=own,
        sequence=snapshot.sequence,
        erased=snapshot.erased,
        files=tuple(_listed(one, held[f"{PARTS}/{one.path}"]) for one in snapshot.files),
        beside=tuple(Beside(path=path, bytes=one.bytes, sha256=one.sha256) for path, one in beside.items()),
    )
    store.write(NAME, now.model_dump_json().encode())
    # Also what a push left there that was cut short. A pull that is at one of them begins again.
    removed = [name for name in sorted(stored) if name not in files and ours(name)]
    for name in removed:
        store.remove(name)
    size, rows = sum(one.bytes for one in sent.values()), sum(one.rows for one in snapshot.files)
    return Pushed(len(sent), size, len(files) - len(sent), len(removed), rows, log_lag(data, now_us=time.time_ns() // 1000))


def _listed(one: LogFile, content: Content) -> SharedFile:
    return SharedFile(
        table=one.table, path=one.path, day=one.day, low=one.low, high=one.high, rows=one.rows,
        bytes=content.bytes, sha256=content.sha256,
    )  # fmt: skip


def _sent(store: Store, files: dict[str, Path], stored: dict[str, int], progress: Progress) -> dict[str, Content]:
    """Bring `files` to the store, by their name there; what they hold. stored: lengths of what is there."""
    sizes = {name: _size(path) for name, path in files.items()}

    def send(name: str) -> Content:
        if stored.get(name) == sizes[name]:  # by a push that was cut short
            return _read(files[name])
        try:
            return store.send(files[name], name)
        except FileNotFoundError:
            raise _Changed(files[name]) from None

    return copied(send, sizes, progress)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        raise _Changed(path) from None


def _read(path: Path) -> Content:
    try:
        return content_of(path)
    except FileNotFoundError:
        raise _Changed(path) from None
