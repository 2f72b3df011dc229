"""The ledger's account: what it counts, what it still holds for the log, what waits. Read without owning it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from serve_app.clock import now_us
from serve_app.ledger.columns import Histories, LedgerView, UserState
from serve_app.ledger.opening import ledger_path
from serve_app.ledger.protocol import Ledger
from serve_app.ledger.redis import RedisLedger
from serve_app.ledger.sqlite import SqliteLedger
from serve_app.ledger.sqlite_glance import glance_outbox, glance_pending

__all__ = ["LedgerSide", "ledger_side", "of_ledger"]

U64 = npt.NDArray[np.uint64]
_EVERYTHING = 1 << 30
_FOREVER = (1 << 62) - 1


@dataclass(slots=True)
class LedgerSide:
    """At one moment: `ledger` to read histories from; pending: (user, request) of records not copied yet; outbox: (user,
    request) of queued rows, None where it cannot be listed; deferrals: (user, request); damage: what its own check says;
    taken_at: microseconds UTC."""

    ledger: Ledger
    pending: set[tuple[int, int]]
    outbox: set[tuple[int, int]] | None
    deferrals: set[tuple[int, int]]
    damage: list[str] = field(default_factory=list)
    taken_at: int = field(default_factory=now_us)

    def views(self, users: U64) -> LedgerView:
        """Histories and versions of distinct users, in their order."""
        return self.ledger.read(users) if len(users) else _nobody()

    def users_between(self, low: int, high: int) -> Iterator[LedgerView]:
        """Users of buckets low..high that the ledger knows."""
        for view in self.ledger.snapshot(_FOREVER):
            buckets = (view.users >> np.uint64(52)).astype(np.int64)
            if buckets[-1] >= low and buckets[0] <= high:
                yield view


def _nobody() -> LedgerView:
    none = np.empty(0, np.int64)
    return LedgerView(np.empty(0, np.uint64), none, UserState.unknown(0), Histories.empty(0), none)


def of_ledger(ledger: Ledger, outbox: set[tuple[int, int]] | None = None) -> LedgerSide:
    """The account of an open ledger. `outbox`: its queued rows, which no protocol call lists without claiming them."""
    pending = {(one.user, one.request_id) for one in ledger.pending_records(_EVERYTHING)}
    deferrals = {(one.user, one.request_id) for one in ledger.due_deferrals(_FOREVER, _EVERYTHING)}
    return LedgerSide(ledger, pending, outbox, deferrals)


@contextmanager
def ledger_side(data: Path, redis_url: str | None = None) -> Iterator[LedgerSide | None]:
    """The account of the ledger that belongs to `data`; None where there is none yet. A SQLite file is read beside the
    process that owns it (write-ahead log), as of this moment."""
    if redis_url is not None:
        redis = RedisLedger(redis_url, require="weaker")
        try:
            yield of_ledger(redis)
        finally:
            redis.close()
        return
    path = ledger_path(data)
    if not path.exists():
        yield None
        return
    # Queues first: what leaves them meanwhile is then in the histories, or in the log, which is read last.
    pending, outbox = glance_pending(path), glance_outbox(path)
    ledger = SqliteLedger(path, read_only=True, timeout_s=3600.0)
    try:
        side = of_ledger_file(ledger, pending, outbox)
        side.damage = ledger.check()
        yield side
    finally:
        ledger.close()


def of_ledger_file(ledger: SqliteLedger, pending: set[tuple[int, int]], outbox: set[tuple[int, int]]) -> LedgerSide:
    """The account of a file, its queues listed before."""
    deferrals = {(one.user, one.request_id) for one in ledger.due_deferrals(_FOREVER, _EVERYTHING)}
    return LedgerSide(ledger, pending, outbox, deferrals)
