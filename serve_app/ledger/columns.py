"""What goes into a ledger and comes out of it for a whole batch, as columns.

All times are i64 microseconds since 1970-01-01 UTC; users, request ids, items and campaigns are u64 hashes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag

import numpy as np
import numpy.typing as npt

from serve_app.batch import Ragged
from serve_app.ledger.wire import Wired

__all__ = [
    "HISTORY_DTYPE",
    "NEVER_KNOWN",
    "CommitPlan",
    "CommitResult",
    "CommitStatus",
    "Histories",
    "HistoryFlag",
    "LedgerView",
    "Recents",
    "UserState",
]

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
_I8, _I16, _U16 = np.dtype(np.int8), np.dtype(np.int16), np.dtype(np.uint16)
_I64, _U64 = np.dtype(np.int64), np.dtype(np.uint64)

NEVER_KNOWN = np.iinfo(np.int64).min
"""`known_since` of a history nothing was ever dropped from: it is complete for all time."""


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
    ],
    align=True,  # 56 bytes: whole words to copy, aligned fields to read
)


@dataclass(slots=True)
class Histories(Wired):
    """History entries of n users: `entries` is a structured array (HISTORY_DTYPE) in version order, `offsets` i64[n + 1]."""

    WIRE = (HISTORY_DTYPE, _I64)

    entries: npt.NDArray[np.void]
    offsets: I64

    @classmethod
    def empty(cls, rows: int) -> Histories:
        """No entries for `rows` users."""
        return cls(np.empty(0, HISTORY_DTYPE), np.zeros(rows + 1, np.int64))

    def take(self, rows: I64) -> Histories:
        """The histories of some users, in that order."""
        taken = Ragged(self.entries, self.offsets).take(rows)
        return Histories(taken.values, taken.offsets)


@dataclass(slots=True)
class UserState(Wired):
    """State columns of n users, as the batch carries them (see serve_app.columns for units and meanings).

    zone and region are indices of this process; -1 is unknown, also for a stored name this process does not know (the
    backend keeps the name). A user never written has every field unknown, 0 or without bits: no consent, unreachable.
    """

    WIRE = (_I16, _I16, _I64, _I64, _I64, _U16, _U16)

    zone: npt.NDArray[np.int16]
    region: npt.NDArray[np.int16]
    consent_ad_at: I64
    consent_night_at: I64
    customer_until: I64
    reachable: npt.NDArray[np.uint16]
    opted_out: npt.NDArray[np.uint16]

    @classmethod
    def unknown(cls, rows: int) -> UserState:
        """The state of `rows` users nobody has written."""
        return cls(
            np.full(rows, -1, np.int16),
            np.full(rows, -1, np.int16),
            np.zeros(rows, np.int64),
            np.zeros(rows, np.int64),
            np.zeros(rows, np.int64),
            np.zeros(rows, np.uint16),
            np.zeros(rows, np.uint16),
        )


@dataclass(slots=True)
class LedgerView(Wired):
    """What `read` saw: versions i64[n] (0: never written), state, histories. `known_since` i64[n]: the history is
    complete for t > known_since (NEVER_KNOWN: nothing was ever dropped)."""

    WIRE = (_U64, _I64, None, None, _I64)

    users: U64
    versions: I64
    state: UserState
    histories: Histories
    known_since: I64

    def take(self, rows: I64) -> LedgerView:
        """The view of some users, in that order."""
        own = self.state
        state = UserState(**{name: getattr(own, name)[rows] for name in own.__dataclass_fields__})
        return LedgerView(self.users[rows], self.versions[rows], state, self.histories.take(rows), self.known_since[rows])


class CommitStatus(IntEnum):
    """Outcome of one user's commit."""

    committed = 0
    conflict = 1  # the version moved: read and decide again
    duplicate = 2  # the idempotency key was committed before: `stored` is that decision's record
    key_reused = 3  # the key was committed before with another body digest: 409
    regressed = 4  # the backend shows a lower version than was seen: the bucket is closed until reconciled
    unavailable = 5  # the row's node is away, nothing was written (others of the plan were answered)
    unknown = 6  # the row's node took the commit and did not answer: retry the same key


@dataclass(slots=True)
class CommitPlan(Wired):
    """Rows to commit, at most one per user.

    new_entries / new_offsets: history entries to append (ragged over rows). records: the full decision record of each
    row (bytes; serve_app.ledger.record), or empty. keys: 16-byte digest of (client, user, idempotency key), b"" for none;
    digests: 16-byte digest of the parsed body. outbox: payload bytes or b"". deferred_until: i64, 0 for none, with the
    record holding what the sweeper needs. settles: u64, request id of the user's deferral that this decision answers
    (removed by the same commit), 0 for none. Empty sequences mean "none in any row".
    """

    WIRE = (_U64, _I64, _I64, HISTORY_DTYPE, _I64, None, _U64, None, None, None, _I64, _U64)

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
    settles: U64 | None = None


@dataclass(slots=True)
class CommitResult(Wired):
    """status i8[n] (CommitStatus), versions i64[n] after the commit, stored: earlier record for duplicates, else b""."""

    WIRE = (_I8, _I64, None)

    status: npt.NDArray[np.int8]
    versions: I64
    stored: list[bytes]


@dataclass(slots=True)
class Recents(Wired):
    """Recently viewed items of n users, oldest first: items u64, at i64 (flat), offsets i64[n + 1]."""

    WIRE = (_U64, _I64, _I64)

    items: U64
    at: I64
    offsets: I64
