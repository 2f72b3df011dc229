"""Taking erased users off the disk: files of the log, the journal, the catalogue."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from serve_app.ids import hash_ids
from serve_app.log.erasure import Erased, load_erased, without_erased
from serve_app.log.journal import journal_files
from serve_app.log.reader import read_files
from serve_app.log.schema import PER_USER
from serve_app.log.snapshot import Snapshot, journal_folder, load_snapshot, log_folder, sync_folder
from serve_app.log.writer import LogWriter

__all__ = ["forget", "overwrite_consumed"]

_ZEROS = bytes(1 << 20)


def forget(data: str | os.PathLike[str], *, groups: int) -> int:
    """Write every file anew that holds rows of users erased since the last time, without them; returns how many rows went.
    The old files stay for readers that hold them until the next commit."""
    erased = load_erased(data)
    if erased.lines <= load_snapshot(data).erased:
        return 0
    _blank_catalogue(Path(data), erased)
    _remove_packs(Path(data), erased)
    gone = 0
    with LogWriter(data, groups=groups) as writer:
        for one in writer.live():
            if one.table not in PER_USER or not _may_hold(erased, one.low, one.high):
                continue
            path = [str(log_folder(data) / one.path)]
            held = read_files(path, one.table, columns=["user", "ts"], with_erased=True)
            count = int(erased.covers(held["user"].to_numpy(), held["ts"].to_numpy()).sum())
            if count:
                rows = read_files(path, one.table, with_erased=True)
                writer.drop([one])
                writer.write(one.table, without_erased(one.table, rows, erased))
                gone += count
        writer.snapshot.erased = erased.lines
    return gone


def _remove_packs(data: Path, erased: Erased) -> None:
    """What replays kept of these users (`simulators.replay.pack`): it is made again, without them, when it is needed."""
    for manifest in sorted((data / "replay-packs").glob("*/pack.json")):
        said = json.loads(manifest.read_bytes())
        if said["source"] != "itself" and said["erasures"] < erased.lines and _may_hold(erased, said["low"], said["high"]):
            shutil.rmtree(manifest.parent)


def _may_hold(erased: Erased, low: int, high: int) -> bool:
    buckets = erased.users >> np.uint64(52)
    return bool(((buckets >= low) & (buckets <= high)).any())


def _blank_catalogue(data: Path, erased: Erased) -> None:
    """Erased users leave the catalogue's users, and the reviews they wrote lose their author."""
    _rewrite(data / "catalogue" / "users.parquet", lambda rows: _without_users(rows, erased))
    _rewrite(data / "catalogue" / "reviews.parquet", lambda rows: _without_authors(rows, erased))


def _without_users(rows: pa.Table, erased: Erased) -> pa.Table | None:
    gone = np.isin(rows["user"].to_numpy(), erased.users)
    return rows.filter(pa.array(~gone)) if gone.any() else None


def _without_authors(rows: pa.Table, erased: Erased) -> pa.Table | None:
    names = rows["user_id"].combine_chunks().dictionary_encode()
    theirs = np.isin(hash_ids(one or "" for one in names.dictionary.to_pylist()), erased.users)
    theirs &= np.array([bool(one) for one in names.dictionary.to_pylist()], np.bool_)
    if not theirs.any():
        return None
    texts = ["" if gone else one for one, gone in zip(names.dictionary.to_pylist(), theirs, strict=True)]
    written = pa.array(texts, pa.string()).take(names.indices)
    return rows.set_column(rows.schema.get_field_index("user_id"), rows.schema.field("user_id"), written)


def _rewrite(path: Path, change: Callable[[pa.Table], pa.Table | None]) -> None:
    if not path.exists():
        return
    rows = pq.read_table(path, partitioning=None)
    changed = change(rows)
    if changed is None:
        return
    aside = path.with_name(f".{path.name}.tmp")
    with aside.open("wb") as out:
        pq.write_table(changed, out, compression="zstd")
        out.flush()
        os.fsync(out.fileno())
    aside.replace(path)
    sync_folder(path.parent)


def overwrite_consumed(data: str | os.PathLike[str], before: Snapshot, *, groups: int) -> int:
    """Zero the bytes of journal files whose writers live that were compacted when `before` was the log, if users were erased
    since the last time; returns how many bytes. Call one upkeep after `forget`, so that no reader is at them any more."""
    if before.erased <= before.overwritten:
        return 0
    alive = set(journal_files(data))
    total = sum(_zero(journal_folder(data) / name, end) for name, end in before.consumed.items() if name in alive)
    with LogWriter(data, groups=groups) as writer:
        writer.snapshot.overwritten = before.erased
    return total


def _zero(path: Path, end: int) -> int:
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)  # pwrite to a file opened with O_APPEND would append
    except FileNotFoundError:
        return 0
    try:
        at = 0
        while at < end:
            at += os.pwrite(handle, _ZEROS[: min(len(_ZEROS), end - at)], at)
        os.fsync(handle)
    finally:
        os.close(handle)
    return end
