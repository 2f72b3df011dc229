"""Where packs stand, and when one may be used: a folder a pack, named by its buckets and by what it was made from.

A pack is made of one bucket group of a log and used as long as nothing it follows from has changed: the files of the group,
who asked to be forgotten, the snapshot that histories start from, the code that compared it. Another log, policy or span of
time to count needs no other pack. Packs of what is no longer so are removed when a new one is made; those that hold an
erased user also by `hindcast log` upkeep (`serve_app.log.forgetting`).

A log may also consist of packs alone (`SOURCE_ITSELF`): a generated one, made to measure on.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import orjson

from serve_app.log.erasure import load_erased
from serve_app.log.fingerprint import code_version, fingerprint
from serve_app.log.reader import BucketGroup
from serve_app.log.snapshot import load_snapshot, log_folder
from simulators.replay.pack import FORMAT

__all__ = [
    "PACKS",
    "SOURCE_ITSELF",
    "digest_of",
    "erased_among",
    "lone_packs",
    "pack_path",
    "read_ahead",
    "remove_stale",
    "shelf_of",
    "source_of",
    "split",
]

PACKS = "replay-packs"
SOURCE_ITSELF = "itself"
_NAME = re.compile(r"buckets-(\d{4})-(\d{4})-([0-9a-z]+)(?:-[0-9a-f]+)?")
_DECISIONS = 1_000_000  # of one group, about: what bounds a replay's memory
_CANDIDATES = 6_000_000


def shelf_of(data: Path, out: Path) -> Path:
    """DATA/replay-packs, or ``OUT/packs`` where DATA cannot be written."""
    return data / PACKS if os.access(data, os.W_OK) else out / "packs"


def source_of(data: Path, group: BucketGroup) -> str:
    """Names what a pack of the group follows from, but for where histories start."""
    files = sorted(str(Path(one).relative_to(log_folder(data))) for some in group.files.values() for one in some)
    said = {
        "format": FORMAT,
        "files": files,
        "range": [group.low, group.high],
        "erased": erased_among(data, group.low, group.high),
        "code": code_version(),
        "fingerprint": fingerprint(),
    }
    return hashlib.sha256(orjson.dumps(said, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


def erased_among(data: Path, low: int, high: int) -> str:
    """Digest of the erasures of users in these buckets."""
    erased = load_erased(data)
    bucket = erased.users >> np.uint64(52)
    mine = (bucket >= low) & (bucket <= high)
    return hashlib.sha256(erased.users[mine].tobytes() + erased.at[mine].tobytes()).hexdigest()[:16] if mine.any() else ""


def pack_path(shelf: Path, group: BucketGroup, source: str, start: int = 0) -> Path:
    """Where that pack stands, or would. start: microseconds UTC, see `partition.read_partition`; of no account where the log
    has no ledger snapshots."""
    name = f"buckets-{group.low:04d}-{group.high:04d}-{source}"
    return shelf / (f"{name}-{start % 2**64:016x}" if group.files.get("ledger_snapshot") else name)


def lone_packs(shelf: Path) -> list[BucketGroup]:
    """Groups of a log that consists of packs, by buckets; they have no files."""
    found = [match for one in shelf.glob("buckets-*") if (match := _NAME.fullmatch(one.name)) and match[3] == SOURCE_ITSELF]
    return [BucketGroup(int(one[1]), int(one[2]), {}) for one in sorted(found, key=lambda match: match[0])]


def read_ahead(shelf: Path, low: int, high: int) -> None:
    """Ask the system to have the packs of these buckets in memory soon. Computing on one pack then hides the reading of the
    next; a hint, which does nothing where there is no such pack."""
    for pack in shelf.glob(f"buckets-{low:04d}-{high:04d}-*"):
        for file in pack.glob("*.parquet"):
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(descriptor)


def digest_of(path: Path) -> str:
    """Of all that a pack holds: its manifest names every file's checksum."""
    return hashlib.sha256((path / "pack.json").read_bytes()).hexdigest()


def remove_stale(shelf: Path, group: BucketGroup, source: str) -> None:
    """Remove packs of these buckets that follow from something else."""
    for folder in shelf.glob("buckets-*"):
        match = _NAME.fullmatch(folder.name)
        if match and match[3] not in (source, SOURCE_ITSELF) and int(match[1]) <= group.high and group.low <= int(match[2]):
            shutil.rmtree(folder, ignore_errors=True)
    for folder in shelf.glob(f".buckets-{group.low:04d}-{group.high:04d}-*.{socket.gethostname()}.*.new"):
        if not Path("/proc", folder.name.split(".")[-2]).exists():  # its maker was killed
            shutil.rmtree(folder, ignore_errors=True)


def split(data: Path, groups: Sequence[BucketGroup]) -> list[BucketGroup]:
    """The same groups, large ones cut into ranges of buckets of about a million decisions each."""
    root = log_folder(data)
    rows = {str(root / one.path): one.rows for one in load_snapshot(data).files}
    out: list[BucketGroup] = []
    for group in groups:
        counts = {
            table: sum(rows.get(one, 0) for one in group.files.get(table, ())) for table in ("decisions", "candidates")
        }
        buckets = group.high - group.low + 1
        wanted = max(-(-counts["decisions"] // _DECISIONS), -(-counts["candidates"] // _CANDIDATES), 1)
        cuts = np.linspace(0, buckets, min(wanted, buckets) + 1).astype(int) + group.low
        out += [replace(group, low=int(a), high=int(b) - 1) for a, b in pairwise(cuts)]
    return out
