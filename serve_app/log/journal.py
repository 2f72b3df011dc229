"""The durable journal: every writing process appends frames to its own file, one `write` a micro-batch.

``DATA/journal/<writer>/<created ns>-<random 16 hex>.frames``. What `append` returned from survives the death of the process
(it is in the kernel); with ``durability="disk"`` it survives the death of the machine, at the price of an fsync that all
appends waiting at that moment share. A file is locked (flock) while its writer lives, so a reader can tell a frame that is
being written from one that was torn.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import secrets
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal

import pyarrow as pa

from serve_app.errors import InvalidInput, ResourceShortage
from serve_app.log.erasure import Erased, load_erased
from serve_app.log.frames import Rows, decode_payloads, encode_payload, framed, scan_frames
from serve_app.log.schema import PER_USER
from serve_app.log.snapshot import journal_folder, sync_folder

__all__ = ["Durability", "Journal", "JournalRead", "journal_files", "living_writers", "read_journal"]

Durability = Literal["process", "disk"]
_DEFAULT_FILE_BYTES = 16 << 20
_RUN_BYTES = 4 << 20  # eight times that unpacked, and twice while it is joined


class Journal:
    """Append rows of log tables, from any number of threads of one process.

    data: the data folder. writer: name of this writer (letters, digits, dot, dash, underscore), one file series each.
    durability: "process" (kernel has it when append returns) or "disk" (fsync'd). file_bytes: size at which a new file
    begins. Raises ResourceShortage when the disk is full: nothing of that append is in the journal then.
    """

    def __init__(
        self,
        data: str | os.PathLike[str],
        writer: str,
        *,
        durability: Durability = "process",
        file_bytes: int = _DEFAULT_FILE_BYTES,
    ) -> None:
        if not writer or not writer.isascii() or not all(c.isalnum() or c in "._-" for c in writer) or writer[0] == ".":
            raise InvalidInput(f"{writer!r} is not a writer's name", field="writer", hint="letters, digits, . _ -")
        if durability not in ("process", "disk"):
            raise InvalidInput(f"{durability!r} is neither process nor disk", field="durability")
        self._folder = journal_folder(data) / writer
        self._folder.mkdir(parents=True, exist_ok=True)
        self._disk = durability == "disk"
        self._file_bytes = file_bytes
        self._write_lock = threading.Lock()
        self._sync_lock = threading.Lock()
        self._handle = -1
        self._key = 0
        self._size = 0
        self._appended = 0  # frames written
        self._synced = 0  # frames known to be on disk

    def append(self, rows: Mapping[str, Rows]) -> None:
        """Write one frame with the rows of all given tables; returns when they are as durable as promised."""
        if not any(len(one) for one in rows.values()):
            return
        payload = encode_payload(rows)
        with self._write_lock:
            if self._handle < 0 or self._size >= self._file_bytes:
                self._rotate()
            frame = framed(payload, key=self._key, offset=self._size)
            self._write(frame)
            self._size += len(frame)
            self._appended += 1
            ticket = self._appended
        if self._disk:
            self._wait_synced(ticket)

    def close(self) -> None:
        """Sync and release the current file; a later append begins a new one."""
        with self._sync_lock, self._write_lock:
            self._release(sync=True)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _write(self, frame: bytes) -> None:
        try:
            written = os.write(self._handle, frame)
        except OSError as error:
            raise ResourceShortage(f"cannot write {self._folder}: {error}", field="journal") from error
        if written != len(frame):
            os.ftruncate(self._handle, self._size)
            raise ResourceShortage(f"only {written} of {len(frame)} bytes fit on {self._folder}", field="journal")

    def _rotate(self) -> None:
        self._release(sync=self._disk)
        self._key = secrets.randbits(64)
        path = self._folder / f"{time.time_ns():020d}-{self._key:016x}.frames"
        unlocked = path.with_suffix(".new")  # readers must not see it before the lock says that its writer lives
        try:
            self._handle = os.open(unlocked, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o644)
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            unlocked.rename(path)
            if self._disk:
                sync_folder(self._folder)
        except OSError as error:
            raise ResourceShortage(f"cannot create {path}: {error}", field="journal") from error
        self._size = 0

    def _release(self, *, sync: bool) -> None:
        """sync: wait for the disk. Where only the process's death is to be survived, no append waits for it: a disk may take
        longer for a whole file than an append has."""
        if self._handle >= 0:
            if sync:
                os.fsync(self._handle)
                self._synced = self._appended
            os.close(self._handle)
            self._handle = -1

    def _wait_synced(self, ticket: int) -> None:
        with self._sync_lock:
            if self._synced >= ticket:  # an fsync begun after our write covered it
                return
            with self._write_lock:
                covered = self._appended
                handle = os.dup(self._handle) if self._handle >= 0 else -1
            if handle < 0:
                return  # released meanwhile, which syncs
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
            self._synced = max(self._synced, covered)


@dataclass(slots=True)
class JournalRead:
    """rows: record batches by table, in order of writing per writer; numbers: the frame each of them stood in. offsets:
    bytes of each file ("writer/name") that need not be read again: up to its last good frame, or to its end where no writer
    lives. finished: files without a living writer. damaged: stretches of bad bytes before a good frame; torn: bad tails of
    finished files."""

    rows: dict[str, list[pa.RecordBatch]] = field(default_factory=dict)
    numbers: dict[str, list[int]] = field(default_factory=dict)
    offsets: dict[str, int] = field(default_factory=dict)
    finished: list[str] = field(default_factory=list)
    frames: int = 0
    damaged: int = 0
    torn: int = 0


def read_journal(
    data: str | os.PathLike[str],
    consumed: Mapping[str, int],
    *,
    tables: Collection[str] | None = None,
    files: Collection[str] | None = None,
) -> JournalRead:
    """Every good frame after the `consumed` bytes of each file (of `files`, default all; rows of `tables`, default all).
    Never yields a row of a torn or corrupt frame, nor one that is to be forgotten (`serve_app.log.erasure`)."""
    out = JournalRead()
    for name in journal_files(data):
        if files is None or name in files:
            _read_file(journal_folder(data) / name, name, consumed, tables, out)
    erased = load_erased(data)
    if erased:
        for table, batches in out.rows.items():
            out.rows[table] = [_remembered(table, one, erased) for one in batches]
    return out


def _remembered(table: str, batch: pa.RecordBatch, erased: Erased) -> pa.RecordBatch:
    if table not in PER_USER or not len(batch):
        return batch
    gone = erased.covers(batch["user"].to_numpy(), batch["ts"].to_numpy())
    return batch.filter(pa.array(~gone)) if gone.any() else batch


def journal_files(data: str | os.PathLike[str]) -> dict[str, int]:
    """Size in bytes of each journal file, by "writer/name", in order of writer and creation."""
    root = journal_folder(data)
    sizes: dict[str, int] = {}
    for path in sorted(root.glob("*/*.frames")):
        with contextlib.suppress(FileNotFoundError):  # compacted and deleted since it was listed
            sizes[path.relative_to(root).as_posix()] = path.stat().st_size
    return sizes


def living_writers(data: str | os.PathLike[str]) -> list[str]:
    """Names of writers whose process holds a journal file under `data` open."""
    root = journal_folder(data)
    alive: set[str] = set()
    for name in journal_files(data):
        with contextlib.suppress(FileNotFoundError), (root / name).open("rb") as file:
            if _writer_alive(file.fileno()):
                alive.add(name.split("/")[0])
    return sorted(alive)


def _read_file(path: Path, name: str, consumed: Mapping[str, int], tables: Collection[str] | None, out: JournalRead) -> None:
    start = consumed.get(name, 0)
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return  # consumed to its end and deleted since it was listed
    try:
        alive = _writer_alive(handle)  # asked before the size: what a dead writer left is final
        size = os.fstat(handle).st_size
        out.offsets[name] = start
        if not alive:
            out.finished.append(name)
        if size > start:
            with mmap.mmap(handle, size, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as buffer:
                scan = scan_frames(buffer, key=_key_of(path), start=start)
                for first, run in _runs(scan.payloads):
                    with contextlib.ExitStack() as views:
                        payloads = [views.enter_context(buffer[low:high]) for low, high in run]
                        decoded = decode_payloads(payloads, tables)
                    for table, rows in decoded.items():
                        out.rows.setdefault(table, []).extend(batch for _, batch in rows)
                        out.numbers.setdefault(table, []).extend(out.frames + first + place for place, _ in rows)
            out.offsets[name] = scan.end if alive else size
            out.frames += len(scan.payloads)
            out.damaged += scan.damaged
            out.torn += scan.torn > 0 and not alive
    finally:
        os.close(handle)


def _runs(payloads: Sequence[tuple[int, int]]) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """Payloads to be read at once, a bounded number of bytes, and the number of the first of each run."""
    first, size = 0, 0
    for at, (low, high) in enumerate(payloads):
        if size + high - low > _RUN_BYTES and at > first:
            yield first, list(payloads[first:at])
            first, size = at, 0
        size += high - low
    if first < len(payloads):
        yield first, list(payloads[first:])


def _key_of(path: Path) -> int:
    try:
        return int(path.stem.split("-")[1], 16)
    except (IndexError, ValueError):
        raise InvalidInput(f"{path} is not named like a journal file", field="journal", hint="move it away") from None


def _writer_alive(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(handle, fcntl.LOCK_UN)
    return False
