"""The ledger as processes that do not own it see it: the same protocol, every call sent to the owner.

A `LedgerClient` is synchronous, for use in worker threads; `call` carries a method's name and arguments to the owner and
back. What gets lost on the way is said in the protocol's words: a read that did not arrive is LedgerUnavailable, a commit
whose answer did not arrive is OutcomeUnknown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.errors import HindcastError, LedgerUnavailable, OutcomeUnknown
from serve_app.ledger.columns import CommitPlan, CommitResult, LedgerView, Recents, UserState
from serve_app.ledger.protocol import (
    CampaignRow,
    CatalogueChange,
    Deferral,
    LedgerSettings,
    OutboxItem,
    QueueDepths,
    StoredRecord,
    UserChanges,
    UserRecord,
)
from serve_app.serving.lost import own_error

__all__ = ["LedgerCall", "LedgerClient", "translated"]

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

LedgerCall = Callable[..., Any]
"""call(method, *arguments, **keywords) -> what the owner's ledger answered; raises what it raised."""

_WRITES = frozenset(
    {
        "commit", "refund", "put_user", "put_users", "change_user", "delete_user", "append_catalogue_change", "put_campaign",
    }
)  # fmt: skip


def translated(error: BaseException, method: str) -> HindcastError:
    """An error of a remote call as one of ours: the owner's own words where it had any."""
    own = own_error(error)
    if own is not None:
        return own
    said = f"the ledger's owner did not answer {method}: {type(error).__name__}"
    if method in _WRITES:
        return OutcomeUnknown(said, field="ledger", hint="retry with the same idempotency key")
    return LedgerUnavailable(said, field="ledger", hint="retry")


class LedgerClient:
    """A `serve_app.ledger.protocol.Ledger` whose methods run in the owner's process."""

    def __init__(self, call: LedgerCall, settings: LedgerSettings | None = None) -> None:
        self._call = call
        self.settings = settings or LedgerSettings()

    def _ask(self, method: str, *arguments: Any, **keywords: Any) -> Any:
        try:
            return self._call(method, *arguments, **keywords)
        except Exception as error:
            raise translated(error, method) from error

    def read(self, users: U64) -> LedgerView:
        """See Ledger."""
        return self._ask("read", users)

    def commit(self, plan: CommitPlan) -> CommitResult:
        """See Ledger."""
        return self._ask("commit", plan)

    def refund(self, user: int, request_id: int, slot: int) -> bool:
        """See Ledger."""
        return self._ask("refund", user, request_id, slot)

    def put_user(self, user: int, changes: UserChanges) -> int:
        """See Ledger."""
        return self._ask("put_user", user, changes)

    def put_users(self, users: U64, state: UserState) -> I64:
        """See Ledger."""
        return self._ask("put_users", users, state)

    def get_user(self, user: int) -> UserRecord | None:
        """See Ledger."""
        return self._ask("get_user", user)

    def delete_user(self, user: int) -> bool:
        """See Ledger."""
        return self._ask("delete_user", user)

    def record_events(self, users: U64, items: U64, at: I64) -> None:
        """See Ledger."""
        self._ask("record_events", users, items, at)

    def recents(self, users: U64) -> Recents:
        """See Ledger."""
        return self._ask("recents", users)

    def dedupe_events(self, ids: U64, at: int, *, mark: bool = True) -> npt.NDArray[np.bool_]:
        """See Ledger."""
        return self._ask("dedupe_events", ids, at, mark=mark)

    def append_catalogue_change(self, kind: str, payload: bytes) -> int:
        """See Ledger."""
        return self._ask("append_catalogue_change", kind, payload)

    def catalogue_head(self) -> int:
        """See Ledger."""
        return self._ask("catalogue_head")

    def catalogue_changes(self, after_seq: int, limit: int = 10_000) -> list[CatalogueChange]:
        """See Ledger."""
        return self._ask("catalogue_changes", after_seq, limit)

    def put_campaign(self, campaign_id: str, document: bytes) -> CampaignRow:
        """See Ledger."""
        return self._ask("put_campaign", campaign_id, document)

    def get_campaigns(self) -> list[CampaignRow]:
        """See Ledger."""
        return self._ask("get_campaigns")

    def find_decision(self, user: int, request_id: int, slot: int = 0) -> bytes | None:
        """See Ledger."""
        return self._ask("find_decision", user, request_id, slot)

    def pending_records(self, limit: int, after: int = -1) -> list[StoredRecord]:
        """See Ledger."""
        return self._ask("pending_records", limit, after)

    def ack_records(self, ids: Sequence[int]) -> None:
        """See Ledger."""
        self._ask("ack_records", ids)

    def due_deferrals(self, now: int, limit: int) -> list[Deferral]:
        """See Ledger."""
        return self._ask("due_deferrals", now, limit)

    def drop_deferral(self, user: int, request_id: int) -> bool:
        """See Ledger."""
        return self._ask("drop_deferral", user, request_id)

    def claim_outbox(self, now: int, limit: int, lease_us: int) -> list[OutboxItem]:
        """See Ledger."""
        return self._ask("claim_outbox", now, limit, lease_us)

    def ack_outbox(self, ids: Sequence[int]) -> int:
        """See Ledger."""
        return self._ask("ack_outbox", ids)

    def postpone_outbox(self, ids: Sequence[int], until: Sequence[int], attempts: Sequence[int]) -> int:
        """See Ledger."""
        return self._ask("postpone_outbox", ids, until, attempts)

    def buried_outbox(self, limit: int) -> list[OutboxItem]:
        """See Ledger."""
        return self._ask("buried_outbox", limit)

    def queue_depths(self, now: int) -> QueueDepths:
        """See Ledger."""
        return self._ask("queue_depths", now)

    def snapshot(self, as_of: int, chunk: int = 10_000) -> Iterator[LedgerView]:
        """See Ledger. Page by page."""
        token = self._ask("snapshot_open", as_of, chunk)
        while (page := self._ask("snapshot_next", token)) is not None:
            yield page

    def set_history_horizon(self, horizon_us: int) -> None:
        """See Ledger."""
        self._ask("set_history_horizon", horizon_us)

    def close(self) -> None:
        """The owner closes its ledger itself."""
