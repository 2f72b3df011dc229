"""A shop without models, its ledger and its journal: enough to defer, to sweep and to deliver, without a server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from serve_app.campaigns import CampaignDocument, notification_candidates, parse_campaign
from serve_app.catalogue import Catalogue, table_of, write_catalogue
from serve_app.decide import DecidedBatch, decide
from serve_app.ids import hash_id
from serve_app.ledger.protocol import Ledger, UserChanges
from serve_app.ledger.record import unpack_record
from serve_app.log.journal import Journal, read_journal
from serve_app.policy.compile import CompiledPolicy
from serve_app.release.histories import UserHistories
from serve_app.release.load import load_release
from serve_app.release.manifest import Lineage, ReleaseNotes, write_release
from serve_app.release.rows import in_row_order
from serve_app.segments.shelf import SegmentShelf
from serve_app.serving.asking import notification_requests
from serve_app.serving.deciding import DecideCall, Decided
from serve_app.serving.journalling import JournalHost
from serve_app.serving.library import Edition, Held
from serve_app.serving.live import ItemsView
from serve_app.serving.outbox import DeskSettings, OutboxDesk
from serve_app.serving.sweeping import Sweeper, SweepSettings
from serve_app.stages.decision import Decision
from serve_app.stages.stage import Context
from tests.unit.decision_support import compiled

NIGHT = {"id": "night", "start": "22:00", "end": "08:00"}
UNSCORED = {"informational": {"bypass_threshold": True}, "advertising": {"bypass_threshold": True}}
EVERYWHERE = 63


def policy_of(**settings: Any) -> CompiledPolicy:
    """Quiet from 22 to 8, half an hour of spread, nothing needs a score, unless stated otherwise."""
    base: dict[str, Any] = {
        "message_classes": UNSCORED,
        "quiet_hours": [NIGHT],
        "deferral": {"spread_minutes": 30},
        "surfaces": {},
    }
    return compiled(**(base | settings))


def campaign(name: str, **fields: Any) -> CampaignDocument:
    """An informational message by push, delivered by the caller, unless stated otherwise."""
    base = {"campaign_id": name, "text": f"about {name}", "message_class": "informational", "channels": ["push"]}
    return parse_campaign(base | fields)


@dataclass
class Shop:
    """One ledger with what decides on it. `now` is the clock of everything."""

    ledger: Ledger
    edition: Edition
    journal: JournalHost
    folder: Path
    now: int = 0
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(2))

    def clock(self) -> int:
        """As the parts take it."""
        return self.now

    async def call(self, method: str, *arguments: Any, **keywords: Any) -> Any:
        """One method of the ledger, as the state owner offers it."""
        return getattr(self.ledger, method)(*arguments, **keywords)

    @asynccontextmanager
    async def editions(self) -> AsyncIterator[Edition]:
        """The edition in force."""
        yield self.edition

    async def decide(self, call: DecideCall) -> Decided:
        """As a Decision replica decides, without scores and journal."""
        return Decided(self.decide_now(call), True)

    def decide_now(self, call: DecideCall) -> DecidedBatch:
        """The same, at once."""
        own = self.edition
        return decide(
            self.ledger, Decision(), call.batch, own.context, keys=call.keys, digests=call.digests, commit=call.commit,
            item_hashes=own.view.hashes,
        )  # fmt: skip

    def ask(
        self, users: list[str], *, at: int, keys: list[bytes] | None = None, campaigns: list[str] | None = None, **own: Any
    ) -> DecidedBatch:
        """Decide on `users` as a caller asks; request ids follow from user and time, so asking again asks the same."""
        hashes = np.array([hash_id(one) for one in users], np.uint64)
        batch = notification_requests(
            self.edition,
            request_ids=hashes ^ np.uint64(at),
            users=hashes,
            decided_at=np.full(len(users), at, np.int64),
            deadline_at=np.full(len(users), at, np.int64),
            slots=np.full(len(users), own.get("slots", 1), np.int32),
            expires_at=np.full(len(users), own.get("expires_at", 0), np.int64),
        )
        batch = notification_candidates(batch, self.edition.campaigns)
        digests = None if keys is None else [b"d" * 16] * len(keys)
        return decide(
            self.ledger, Decision(), batch, self.edition.context, keys=keys, digests=digests,
            item_hashes=self.edition.view.hashes,
        )  # fmt: skip

    def sweeper(self, **settings: Any) -> Sweeper:
        """A sweeper of its own."""
        return Sweeper(self.call, self.editions, self.decide, self.pool, SweepSettings(**settings), clock=self.clock)

    def desk(self, **settings: Any) -> OutboxDesk:
        """An outbox desk of its own."""
        own = DeskSettings(**settings)
        return OutboxDesk(self.call, self.editions, self.journal, self.pool, own, clock=self.clock)

    def with_policy(self, **settings: Any) -> None:
        """Put another policy in force."""
        self.edition = _edition(self.edition.held, policy_of(**settings), dict(self.edition.documents), self.folder)

    def with_campaigns(self, *documents: CampaignDocument) -> None:
        """Put other campaigns in force."""
        policy = self.edition.policy
        self.edition = _edition(self.edition.held, policy, {one.campaign_id: one for one in documents}, self.folder)

    def put(self, *users: str, **changes: Any) -> None:
        """Users in Seoul, region US, reachable everywhere, but for what is given."""
        base = {"zone": "Asia/Seoul", "region": "US", "reachable": EVERYWHERE}
        for one in users:
            self.ledger.put_user(hash_id(one), UserChanges(**(base | {"user_id": one} | changes)))

    def history(self, user: str) -> np.ndarray:
        """A user's entries."""
        return self.ledger.read(np.array([hash_id(user)], np.uint64)).histories.entries

    def decision(self, user: str, request_id: int) -> dict[str, Any]:
        """A stored decision, unpacked."""
        record = self.ledger.find_decision(hash_id(user), request_id)
        assert record is not None
        return unpack_record(record)

    def events(self) -> list[dict[str, Any]]:
        """Events in the journal, in order."""
        batches = read_journal(self.folder, {}, tables=["events"]).rows.get("events", [])
        return [row for batch in batches for row in batch.to_pylist()]

    def close(self) -> None:
        """Let go of threads and files."""
        self.pool.shutdown()
        self.journal.close()
        self.ledger.close()


def open_shop(folder: Path, ledger: Ledger, *campaigns: CampaignDocument, **settings: Any) -> Shop:
    """A shop of two items, three widgets and the given campaigns in a folder of its own."""
    staging = folder / "releases" / ".staging"
    items = {
        "item_id": ["sock", "shoe"], "title": ["", ""], "category": ["socks", "shoes"], "price": [1.0, 2.0],
        "currency": ["GBP", "GBP"], "created_at": [0, 0], "available": [True, True],
    }  # fmt: skip
    widgets = {
        "widget_id": ["a", "b", "c"], "title": ["", "", ""], "kind": ["taste", "category", "popular"],
        "argument": ["", "socks", ""],
    }  # fmt: skip
    catalogue = Catalogue(table_of("items", items), widgets=table_of("widgets", widgets))
    write_catalogue(in_row_order(catalogue), staging / "catalogue")
    nobody, nothing = np.zeros(1, np.int64), np.empty(0, np.int32)
    UserHistories(nobody, nothing, np.empty(0, np.int64), nobody, nothing).save(staging / "histories")
    lineage = Lineage(log_digest="l", catalogue_digest="c", code_version="0", seed=1)
    release = load_release(write_release(staging, folder / "releases", ReleaseNotes(created_at=1, lineage=lineage)))
    base = ItemsView.of_release(release.catalogue, np.zeros((1, 4), np.float32))
    held = Held(release, base, {}, None, None, None, {})
    documents = {one.campaign_id: one for one in campaigns}
    journal = JournalHost(Journal(folder, "test", durability="process"), 30_000)
    return Shop(ledger, _edition(held, policy_of(**settings), documents, folder), journal, folder)


def _edition(held: Held, policy: CompiledPolicy, documents: dict[str, CampaignDocument], folder: Path) -> Edition:
    parts = {"availability": held.base.overlay, "item_facts": held.base.facts}
    return Edition(held, policy, held.base, Context((policy,), parts), documents, SegmentShelf(folder))


class Breaking:
    """A ledger whose n-th call of the named methods fails, before or after it was done."""

    def __init__(self, inner: Ledger, error: Callable[[], Exception], *, at: int, after: bool, methods: set[str]) -> None:
        self._inner, self._error, self._left, self._after, self._methods = inner, error, at, after, methods
        self.broke = False

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if name not in self._methods:
            return method

        def call(*arguments: Any, **keywords: Any) -> Any:
            self._left -= 1
            if self._left != 0:
                return method(*arguments, **keywords)
            self.broke = True
            if self._after:
                method(*arguments, **keywords)
            raise self._error()

        return call
