"""A log out of a store (see `serve_app.log.shared`) into a folder that replays and builds read."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from serve_app.errors import DamagedArtifact, UnknownIdentifier
from serve_app.log.erasure import load_erased
from serve_app.log.forgetting import remove_packs
from serve_app.log.shared import BESIDE, PARTS, SharedLog, copied_from, may_be_pulled, read_shared
from serve_app.log.snapshot import Snapshot, commit, log_folder, sync_folder, writer_lock
from serve_app.stores import Content, Progress, Store, content_of, copied

__all__ = ["Pulled", "pull_log"]

_ATTEMPTS = 8
_ASIDE = ".pulled"


@dataclass(frozen=True, slots=True)
class Pulled:
    """What one pull did, in files. bytes: of those fetched; rows: of the whole log as it is here now."""

    fetched: int
    bytes: int
    known: int
    removed: int
    rows: int


class _Gone(Exception):
    """A file that the store listed is not there."""


def pull_log(data: Path, url: str, progress: Progress = lambda *_: None) -> Pulled:
    """Bring DATA to the state of the log at `url`: files it lacks are fetched and checked, those that left the log go (as
    after a commit: at once where users were erased, else after their readers' grace). The log changes in one step.

    What fails leaves the log as it was; files that came whole are not fetched again. progress(done, total) in bytes.
    UnknownIdentifier: there is no log; InvalidInput: DATA is no copy of it, or was written to; DamagedArtifact: a file there
    is missing or holds something else; NotReady: the store does not answer, or another process writes DATA.
    """
    store = Store(url)
    shared = _read(store)
    with writer_lock(data):
        for _ in range(_ATTEMPTS):
            snapshot = may_be_pulled(data, shared)
            try:
                fetched = _fetched(store, _lacking(data, shared, snapshot), progress)
                return _taken(data, store.url, shared, snapshot, fetched)
            except _Gone as gone:
                newer = _read(store)
                if newer.sequence == shared.sequence and newer.beside == shared.beside:
                    raise DamagedArtifact("it is missing", field=f"{store.url}/{gone}", hint="push the log again") from None
                shared = newer
    raise DamagedArtifact("the log kept changing while it was read", field=store.url, hint="try again")


def _read(store: Store) -> SharedLog:
    shared = read_shared(store)
    if shared is None:
        raise UnknownIdentifier("no log was pushed there", field=store.url, hint="hindcast log push --url URL")
    return shared


def _lacking(data: Path, shared: SharedLog, snapshot: Snapshot) -> dict[str, tuple[Path, Content]]:
    """Where each file goes that is not here, and what it must hold, by its name in the store. What lies beside the log goes
    aside first, as it changes under its name."""
    listed = {one.path for one in snapshot.files}
    out: dict[str, tuple[Path, Content]] = {}
    for one in shared.files:
        path = log_folder(data) / one.path
        if one.path not in listed and not _holds(path, one.content):
            out[f"{PARTS}/{one.path}"] = path, one.content
    for other in shared.beside:
        if not _holds(data / other.path, other.content) and not _holds(_aside(data, other.sha256), other.content):
            out[f"{BESIDE}/{other.sha256}"] = _aside(data, other.sha256), other.content
    return out


def _aside(data: Path, sha256: str) -> Path:
    return log_folder(data) / _ASIDE / sha256


def _holds(path: Path, content: Content) -> bool:
    return path.is_file() and path.stat().st_size == content.bytes and content_of(path) == content


def _fetched(store: Store, files: dict[str, tuple[Path, Content]], progress: Progress) -> list[Content]:
    sizes = {name: content.bytes for name, (_, content) in files.items()}
    out = copied(lambda name: _fetch(store, name, *files[name]), sizes, progress)
    for folder in {path.parent for path, _ in files.values()}:
        sync_folder(folder)
    return list(out.values())


def _fetch(store: Store, name: str, path: Path, content: Content) -> Content:
    aside = path.with_name(f".{path.name}.tmp")
    try:
        found = store.fetch(name, aside)
        if found != content:
            said = f"it holds {found.bytes} bytes of {found.sha256[:12]}, not {content.bytes} of {content.sha256[:12]}"
            hint = "delete it and log.json there, and push again"
            raise DamagedArtifact(said, field=f"{store.url}/{name}", hint=hint)
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    except FileNotFoundError:
        raise _Gone(name) from None
    finally:
        aside.unlink(missing_ok=True)
    return content


def _taken(data: Path, url: str, shared: SharedLog, old: Snapshot, fetched: list[Content]) -> Pulled:
    """Make what was fetched the log."""
    copied_from(data, url, shared, old.sequence)
    for one in shared.beside:
        if (aside := _aside(data, one.sha256)).is_file():
            _put(aside, data / one.path)
    remove_packs(data, load_erased(data))
    removed = {one.path for one in old.files} - {one.path for one in shared.files}
    now_us = time.time_ns() // 1000
    left = now_us if shared.erased == old.erased else 0  # of users who were erased nothing stays for readers
    trash = old.trash | dict.fromkeys(sorted(removed), left)
    now = Snapshot(shared.sequence, [one.listed() for one in shared.files], trash=trash, erased=shared.erased)
    now.overwritten = shared.erased  # there is no journal
    due = now.due(now_us) if left else list(trash)
    for path in due:
        del trash[path]
    commit(data, now)
    for path in due:
        (log_folder(data) / path).unlink(missing_ok=True)
    shutil.rmtree(log_folder(data) / _ASIDE, ignore_errors=True)
    size, rows = sum(one.bytes for one in fetched), sum(one.rows for one in shared.files)
    return Pulled(len(fetched), size, len(shared.names()) - len(fetched), len(removed), rows)


def _put(source: Path, target: Path) -> None:
    """A copy of `source` in place of `target`, in one step."""
    aside = target.with_name(f".{target.name}.tmp")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, aside)
    with aside.open("rb") as file:
        os.fsync(file.fileno())
    aside.replace(target)
    sync_folder(target.parent)
