"""What every ledger backend does: per-user state under one version, compare-and-set, idempotent keys.

A user's row holds state (consents, opt-outs, zone, reachability), history (grants, and ghosts under their holdout) and a
version that every write raises by one. `read` gives columns for the whole batch; `commit` writes, per user all or nothing,
history, decision record, outbox row and deferral, if the version is still the one read. Losers read and decide again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from typing import Protocol

import numpy as np
import numpy.typing as npt

__all__ = [
    "HISTORY_DTYPE",
    "CommitPlan",
    "CommitResult",
    "CommitStatus",
    "Histories",
    "HistoryFlag",
    "Ledger",
    "LedgerView",
    "UserState",
]

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]


class HistoryFlag(IntFlag):
    """Flags of a history entry."""

    refunded = 1  # a ledgered delivery_failed gave the use back
    uncounted = 2  # sent, but the policy says this message class consumes no cap


# One history entry. `holdout` is 0 for a factual send, else the hash of the holdout whose shadow history it belongs to.
# `local_day` is the day number (days since 1970-01-01) in the zone the user had when the entry was written.
HISTORY_DTYPE = np.dtype(
    [
        ("at", "i8"),
        ("campaign", "u8"),
        ("category", "u8"),
        ("holdout", "u8"),
        ("request_id", "u8"),
        ("local_day", "i4"),
        ("slot", "i2"),
        ("channel", "i1"),
        ("message_class", "i1"),
        ("flags", "u1"),
    ]
)


@dataclass(slots=True)
class Histories:
    """History entries of n users: `entries` is a structured array (HISTORY_DTYPE) in version order, `offsets` i64[n + 1]."""

    entries: npt.NDArray[np.void]
    offsets: I64

    @classmethod
    def empty(cls, rows: int) -> Histories:
        """No entries for `rows` users."""
        return cls(np.empty(0, HISTORY_DTYPE), np.zeros(rows + 1, np.int64))


@dataclass(slots=True)
class UserState:
    """State columns of n users, as the batch carries them (see serve_app.columns for units and meanings)."""

    zone: npt.NDArray[np.int16]
    region: npt.NDArray[np.int16]
    consent_ad_at: I64
    consent_night_at: I64
    customer_until: I64
    reachable: npt.NDArray[np.uint16]
    opted_out: npt.NDArray[np.uint16]


@dataclass(slots=True)
class LedgerView:
    """What `read` saw: versions i64[n] (0: never written), state, histories."""

    users: U64
    versions: I64
    state: UserState
    histories: Histories


class CommitStatus(IntEnum):
    """Outcome of one user's commit."""

    committed = 0
    conflict = 1  # the version moved: read and decide again
    duplicate = 2  # the idempotency key was committed before: `stored` is that decision's record
    key_reused = 3  # the key was committed before with another body digest: 409
    regressed = 4  # the backend shows a lower version than was seen: the bucket is closed until reconciled


@dataclass(slots=True)
class CommitPlan:
    """Rows to commit, at most one per user.

    new_entries / new_offsets: history entries to append (ragged over rows). records: the full decision record of each
    row (bytes; serve_app.ledger.record). keys: 16-byte digest of (client, user, idempotency key), b"" for none; digests:
    16-byte digest of the parsed body. outbox: payload bytes or b"". deferred_until: i64, 0 for none, with the record
    holding what the sweeper needs.
    """

    users: U64
    read_versions: I64
    decided_at: I64
    new_entries: npt.NDArray[np.void]
    new_offsets: I64
    records: Sequence[bytes]
    request_ids: U64
    keys: Sequence[bytes] = field(default_factory=list)
    digests: Sequence[bytes] = field(default_factory=list)
    outbox: Sequence[bytes] = field(default_factory=list)
    deferred_until: I64 | None = None


@dataclass(slots=True)
class CommitResult:
    """status i8[n] (CommitStatus), versions i64[n] after the commit, stored: earlier record for duplicates, else b""."""

    status: npt.NDArray[np.int8]
    versions: I64
    stored: list[bytes]


class Ledger(Protocol):
    """The one truth of what was granted. Raises LedgerUnavailable (no commit attempted) or OutcomeUnknown."""

    def read(self, users: U64) -> LedgerView:
        """State, histories and versions of `users` (u64[n], may repeat), consistent per user."""

    def commit(self, plan: CommitPlan) -> CommitResult:
        """Compare-and-set each row of the plan; durable per the backend's stated durability when it returns."""
