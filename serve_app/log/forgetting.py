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

from serve_app.errors import DamagedArtifact
from serve_app.ids import BUCKETS, hash_ids
from serve_app.log.erasure import Erased, load_erased
from serve_app.log.journal import journal_files
from serve_app.log.reader import read_files
from serve_app.log.schema import PER_USER
from serve_app.log.snapshot import Snapshot, journal_folder, load_snapshot, log_folder, sync_folder
from serve_app.log.writer import LogWriter

__all__ = ["forget", "overwrite_consumed", "remove_packs"]

_ZEROS = bytes(1 << 20)
_APART = 8  # buckets


def forget(data: str | os.PathLike[str], *, groups: int, upto: int | None = None) -> int:
    """Write every file anew that holds rows of users erased since the last time, without them; returns how many rows went.
    The old files stay for readers that hold them until the next commit; files with such rows that left the log before go at
    once. upto: number of erasures to see to; those after it are left for the next time."""
    erased = load_erased(data)
    upto = erased.lines if upto is None else upto
    if upto <= load_snapshot(data).erased:
        return 0
    _blank_catalogue(Path(data), erased)
    remove_packs(Path(data), erased)
    gone = 0
    with LogWriter(data, groups=groups) as writer:
        # No file holds rows of earlier ones: they went when those were new, and since then `LogWriter.write` let none in.
        new = erased.named_in(writer.snapshot.erased, upto)
        for one in writer.live():
            path = log_folder(data) / one.path
            if one.table in PER_USER and _holds(path, one.table, new, one.low, one.high):
                rows = read_files([str(path)], one.table, with_erased=True)
                writer.drop([one], grace=False)
                gone += len(rows) - writer.write(one.table, rows)
        for name, left in writer.snapshot.trash.items():
            if left and _trash_holds(log_folder(data), name, new):
                writer.snapshot.trash[name] = 0
        writer.snapshot.erased = max(writer.snapshot.erased, upto)
    return gone


def _holds(path: Path, table: str, erased: Erased, low: int, high: int) -> bool:
    """Whether this file of buckets `low`..`high` has rows to be forgotten. Read are the row groups of the users' buckets, or
    those between the first and the last where it is many."""
    buckets = [one for one in np.unique(erased.users >> np.uint64(52)).tolist() if low <= one <= high]
    ranges = [(one, one) for one in buckets] if len(buckets) <= _APART else [(buckets[0], buckets[-1])]
    columns = ["user_bucket", "user", "ts"]
    for one in ranges:
        rows = read_files([str(path)], table, columns=columns, with_erased=True, buckets=one, in_order=False)
        if erased.covers(rows["user"].to_numpy(), rows["ts"].to_numpy()).any():
            return True
    return False


def _trash_holds(root: Path, name: str, erased: Erased) -> bool:
    """The same of a file that left the log. One that cannot be read serves no reader."""
    table = name.split("/")[0]
    try:
        return table in PER_USER and _holds(root / name, table, erased, 0, BUCKETS - 1)
    except DamagedArtifact:
        return True


def remove_packs(data: Path, erased: Erased) -> None:
    """What replays kept of these users (`simulators.replay.pack`): it is made again, without them, when it is needed."""
    for manifest in sorted((data / "replay-packs").glob("*/pack.json")):
        said = json.loads(manifest.read_bytes())
        new = erased.named_in(said["erasures"], erased.lines)
        if said["source"] != "itself" and _may_hold(new, said["low"], said["high"]):
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
