"""What every ledger backend does: per-user state under one version, compare-and-set, idempotent keys.

A user's row holds state (consents, opt-outs, zone, reachability), history (grants, and ghosts under their holdout) and a
version that every write raises by one. `read` gives columns for the whole batch; `commit` writes, per user all or nothing,
history, decision record, outbox row and deferral, if the version is still the one read. Losers read and decide again.

Beside the users lie a sequenced catalogue log (availability, upserts, campaigns), bounded lists of recently viewed items
and a durable set of event ids. All times are i64 microseconds since 1970-01-01 UTC and come from the caller: a ledger
reads no clock. Calls are thread-safe.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from serve_app.ledger.columns import CommitPlan, CommitResult, LedgerView, Recents, UserState

__all__ = [
    "OUTBOX_BURIED",
    "CampaignRow",
    "CatalogueChange",
    "Consent",
    "Deferral",
    "Ledger",
    "LedgerSettings",
    "OutboxItem",
    "PromptLedger",
    "QueueDepths",
    "StoredRecord",
    "UserChanges",
    "UserRecord",
]

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

OUTBOX_BURIED = 1 << 53
"""Put an outbox row off until this time (the year 2255) and it is dead: no claim takes it, it stays to be looked at."""


@dataclass(frozen=True, slots=True)
class LedgerSettings:
    """Bounds every backend keeps; memory per user is bounded by them."""

    history_horizon_us: int = 40 * 86_400_000_000
    """Entries older than this, counted from the user's newest entry, are dropped when one is added. Must cover the
    policy's longest window (a calendar month in any zone is under 33 days); `set_history_horizon` raises it."""
    history_max_entries: int = 20_000
    """Newest entries kept per user. Where this bites inside the horizon, `LedgerView.known_since` says so."""
    recents_max: int = 64
    """Recently viewed items kept per user."""
    key_horizon_us: int = 2 * 86_400_000_000
    """How long an idempotency key answers `duplicate` or `key_reused`."""
    event_horizon_us: int = 2 * 86_400_000_000
    """How long an event id is remembered at least (at most twice this)."""
    keep_records: bool = True
    """Keep decision records (a simulation that logs them itself may say no)."""


@dataclass(frozen=True, slots=True)
class Consent:
    """One consent: when it was given (0: withdrawn or never given), when it was recorded, and the proof of it."""

    at: int
    recorded_at: int = 0
    proof: str = ""


@dataclass(frozen=True, slots=True)
class UserChanges:
    """Changes to one user's state; None leaves a field as it is. zone is an IANA name, region a region's name ("" is
    unknown)."""

    consent_ad: Consent | None = None
    consent_night: Consent | None = None
    customer_until: int | None = None
    reachable: int | None = None
    opted_out: int | None = None
    zone: str | None = None
    region: str | None = None
    user_id: str | None = None
    """The id behind the hash, for those who deliver messages."""


@dataclass(frozen=True, slots=True)
class UserRecord:
    """One user's state as stored, names and proofs included. user_id: "" where it was never told."""

    user: int
    version: int
    consent_ad: Consent
    consent_night: Consent
    customer_until: int
    reachable: int
    opted_out: int
    zone: str
    region: str
    user_id: str = ""


@dataclass(frozen=True, slots=True)
class CatalogueChange:
    """One entry of the sequenced catalogue log. Sequence numbers rise by one and are never reused."""

    seq: int
    kind: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class CampaignRow:
    """A campaign's newest document; `version` rises by one with each put, `seq` is its place in the catalogue log."""

    campaign_id: str
    version: int
    seq: int
    document: bytes


@dataclass(frozen=True, slots=True)
class Deferral:
    """A decision to be made anew at `until`; `record` is the deferred decision's record."""

    user: int
    request_id: int
    until: int
    record: bytes


@dataclass(frozen=True, slots=True)
class OutboxItem:
    """A granted message waiting for a worker. `attempts` counts claims, this one included."""

    id: int
    user: int
    request_id: int
    payload: bytes
    attempts: int


@dataclass(frozen=True, slots=True)
class QueueDepths:
    """Rows waiting: deferrals in all and those `due`; outbox rows in all, those `ready` to be claimed, those `buried`."""

    deferrals: int
    due: int
    outbox: int
    ready: int
    buried: int


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """A decision record that compaction has not acknowledged yet. `id` is what `ack_records` takes."""

    id: int
    user: int
    request_id: int
    version: int
    record: bytes


class Ledger(Protocol):
    """The one truth of what was granted. Raises LedgerUnavailable (no write attempted) or OutcomeUnknown."""

    settings: LedgerSettings

    def read(self, users: U64) -> LedgerView:
        """State, histories and versions of `users` (u64[n], may repeat), consistent per user."""

    def commit(self, plan: CommitPlan) -> CommitResult:
        """Compare-and-set each row of the plan; durable per the backend's stated durability when it returns.
        Every committed row raises its user's version by one, grants or not. InvalidInput when a user repeats."""

    def refund(self, user: int, request_id: int, slot: int) -> bool:
        """Mark the factual use of that decision as refunded (`delivery_failed`). False when there is none or it was
        refunded before; True raises the version."""

    def put_user(self, user: int, changes: UserChanges) -> int:
        """Change one user's state; returns the new version. No commit that read an earlier version succeeds after."""

    def put_users(self, users: U64, state: UserState) -> I64:
        """Bulk: replace the whole state of `users` (distinct); returns the new versions. Consents carry no proof."""

    def get_user(self, user: int) -> UserRecord | None:
        """State with names and proofs; None for a user never written, or erased."""

    def delete_user(self, user: int) -> bool:
        """Erase state, consents and proofs, history, records, keys, deferrals, outbox rows and recents. False when nothing
        was known. Only the version stays (raised by one), so that a decision under way cannot commit."""

    def record_events(self, users: U64, items: U64, at: I64) -> None:
        """Append viewed items (u64[n] hashes) to their users' bounded lists of recents, in row order."""

    def recents(self, users: U64) -> Recents:
        """Recently viewed items of `users` (u64[n], may repeat)."""

    def dedupe_events(self, ids: U64, at: int, *, mark: bool = True) -> npt.NDArray[np.bool_]:
        """bool[n]: True where the event id is new (first of its kind in `ids`, and not marked within the horizon).
        mark=False only asks: ask, journal, then mark, and a crash between leads to a repeat and never to a loss."""

    def append_catalogue_change(self, kind: str, payload: bytes) -> int:
        """Append to the catalogue log; returns its sequence number (from 1)."""

    def catalogue_head(self) -> int:
        """Newest sequence number; 0: nothing yet."""

    def catalogue_changes(self, after_seq: int, limit: int = 10_000) -> list[CatalogueChange]:
        """Changes with seq > after_seq, in order, at most `limit`."""

    def put_campaign(self, campaign_id: str, document: bytes) -> CampaignRow:
        """Store a campaign's document as its next version, as a change of kind "campaign" in the catalogue log."""

    def get_campaigns(self) -> list[CampaignRow]:
        """The newest version of every campaign, by id."""

    def find_decision(self, user: int, request_id: int, slot: int = 0) -> bytes | None:
        """The record of the decision, which holds all slots of (user, request_id); None when it is not (or no longer)
        kept."""

    def pending_records(self, limit: int, after: int = -1) -> list[StoredRecord]:
        """Decision records not acknowledged yet, by rising id, those above `after`; within a user in version order. Commits
        may wait while they are read: ask for some at a time."""

    def ack_records(self, ids: Sequence[int]) -> None:
        """The records are safe in the log; the ledger may drop them once the key horizon has passed."""

    def due_deferrals(self, now: int, limit: int) -> list[Deferral]:
        """Deferrals with until <= now, earliest first. They stay until a commit settles them or `drop_deferral`."""

    def drop_deferral(self, user: int, request_id: int) -> bool:
        """Forget a deferral without a decision (its request expired); False when there is none."""

    def claim_outbox(self, now: int, limit: int, lease_us: int) -> list[OutboxItem]:
        """Take up to `limit` rows, hidden from other claims until now + lease_us; oldest first."""

    def ack_outbox(self, ids: Sequence[int]) -> int:
        """Remove sent rows; returns how many there were."""

    def postpone_outbox(self, ids: Sequence[int], until: Sequence[int], attempts: Sequence[int]) -> int:
        """Hide rows until the given times (OUTBOX_BURIED: for good) and set how many attempts they have behind them;
        returns how many rows there were."""

    def buried_outbox(self, limit: int) -> list[OutboxItem]:
        """Rows put off for good, oldest first."""

    def queue_depths(self, now: int) -> QueueDepths:
        """How much waits."""

    def snapshot(self, as_of: int, chunk: int = 10_000) -> Iterator[LedgerView]:
        """All known users in hash order, `chunk` at a time, with the entries at <= as_of. Versions are today's."""

    def set_history_horizon(self, horizon_us: int) -> None:
        """Keep history at least this long from now on (the policy's longest window). Never shortens what is promised."""

    def close(self) -> None:
        """Finish writes under way and let go of files, locks and connections. Safe to call twice."""


@runtime_checkable
class PromptLedger(Ledger, Protocol):
    """A ledger in this process that its event loop may ask by itself: no thread is held up for what takes microseconds."""

    def read_at_once(self, users: U64) -> LedgerView | None:
        """`read`; None where it would have to wait, or could not be read."""

    def recents_at_once(self, users: U64) -> Recents | None:
        """`recents`, likewise."""

    @property
    def queued(self) -> int:
        """Writes that wait for those before them."""

    async def commit_soon(self, plan: CommitPlan) -> CommitResult:
        """`commit`, awaited. Where the caller is cancelled, a commit that has not begun never will."""
