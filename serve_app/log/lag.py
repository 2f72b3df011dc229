"""How far the log is behind what was answered."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass

from serve_app.log.journal import journal_files
from serve_app.log.snapshot import load_snapshot, log_folder

__all__ = ["LogLag", "log_lag"]


@dataclass(frozen=True, slots=True)
class LogLag:
    """waiting: bytes of the journal that no file of the log contains yet. seconds: age of the oldest of them at most; 0:
    nothing waits."""

    waiting: int
    seconds: float


def log_lag(data: str | os.PathLike[str], *, now_us: int) -> LogLag:
    """Of a data folder. A journal file's name says when it was begun; of one that was compacted in part, the rest counts
    from that compaction's commit."""
    consumed = load_snapshot(data).consumed
    waiting = {
        name: size - consumed.get(name, 0) for name, size in journal_files(data).items() if size > consumed.get(name, 0)
    }
    if not waiting:
        return LogLag(0, 0.0)
    committed_us = 0
    with suppress(FileNotFoundError):
        committed_us = (log_folder(data) / "snapshot.json").stat().st_mtime_ns // 1000
    since = (committed_us if name in consumed else _begun_us(name) for name in waiting)
    return LogLag(sum(waiting.values()), max((now_us - min(since)) / 1e6, 0.0))


def _begun_us(name: str) -> int:
    """`writer/<created ns>-<key>.frames` -> microseconds."""
    return int(name.rsplit("/", 1)[-1].split("-", 1)[0]) // 1000
