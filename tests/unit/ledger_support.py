"""Ledger backends for tests, and plans to commit."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serve_app.batch import lengths_to_offsets
from serve_app.ledger.memory import MemoryLedger
from serve_app.ledger.protocol import HISTORY_DTYPE, CommitPlan, CommitResult, Ledger, LedgerSettings
from serve_app.ledger.sqlite import SqliteLedger

NOW = 1_790_000_000_000_000
DAY = 86_400_000_000


def u64(*values: int) -> np.ndarray:
    return np.asarray(values, np.uint64)


def entry(at: int, request: int, slot: int = 0, *, campaign: int = 7, holdout: int = 0) -> np.ndarray:
    one = np.zeros(1, HISTORY_DTYPE)
    one["at"], one["request_id"], one["slot"], one["campaign"], one["holdout"] = at, request, slot, campaign, holdout
    return one


def plan(
    users: list[int],
    versions: list[int],
    requests: list[int],
    *,
    at: int = NOW,
    grants: int = 1,
    record: bytes = b"r",
    **columns,
) -> CommitPlan:
    """One row per user, each with `grants` history entries and the record b"r<request id>"."""
    rows = len(users)
    entries = [entry(at, request, slot) for request in requests for slot in range(grants)]
    return CommitPlan(
        u64(*users),
        np.asarray(versions, np.int64),
        np.full(rows, at, np.int64),
        np.concatenate(entries) if entries else np.empty(0, HISTORY_DTYPE),
        lengths_to_offsets(np.full(rows, grants)),
        [b"r%d" % request for request in requests],
        u64(*requests),
        **columns,
    )


def commit_one(ledger: Ledger, user: int, request: int, **columns) -> CommitResult:
    """Commit a grant on the version the user has now."""
    version = int(ledger.read(u64(user)).versions[0])
    return ledger.commit(plan([user], [version], [request], **columns))


@dataclass
class Backend:
    """A way to open one ledger again and again."""

    name: str
    open: Callable[..., Ledger]
    persistent: bool


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def memory_backend() -> Backend:
    return Backend("memory", lambda settings=None: MemoryLedger(settings or LedgerSettings()), persistent=False)


def sqlite_backend(folder: Path) -> Backend:
    path = folder / "ledger.sqlite"
    return Backend("sqlite", lambda settings=None: SqliteLedger(path, settings, durability="process"), persistent=True)
