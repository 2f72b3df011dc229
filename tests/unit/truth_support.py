"""Decided batches, ledgers and journals that belong together, for tests of log, compaction, audit and erasure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from serve_app.batch import Batch, Columns
from serve_app.columns import REQUEST_COLUMNS
from serve_app.decide import DecidedBatch, DecideStatus, decide
from serve_app.ledger.columns import Histories, UserState
from serve_app.ledger.protocol import Ledger
from serve_app.log.assigned import assigned_columns
from serve_app.log.rows import EntityHashes, rows_from_batch
from serve_app.policy.assign import assign
from serve_app.policy.compile import CompiledPolicy
from serve_app.policy.zones import zone_index
from serve_app.regions import region_index
from serve_app.stages.decision import Decision
from serve_app.stages.stage import Context
from serve_app.vocabulary import Surface
from tests.unit.decision_support import HEADS, at, batch_of, candidate, request

__all__ = [
    "ITEM_HASHES",
    "USER",
    "asked",
    "context_of",
    "decide_on",
    "decide_one_batch",
    "journal_rows",
    "reachable",
    "user_of",
]

ITEM_HASHES = np.array([901, 902, 903], np.uint64)
USER = 0x9E3779B97F4A7C15


def user_of(number: int) -> int:
    """A user's hash: the buckets are spread."""
    return (number + 1) * USER & (1 << 64) - 1


def asked(
    users: Sequence[int],
    policies: Sequence[CompiledPolicy],
    *,
    now: int = 0,
    first_request: int = 1000,
    pinned: Sequence[int] | None = None,
    **columns: object,
) -> Batch:
    """One request of three advertisements by each user, arms drawn as a server would."""
    when = now or at("2026-03-10T12:00:00")
    rows = [
        request(
            [candidate(campaign=70 + c, item=c, category=5 + c, heads=(0.9 - 0.1 * c, 0.0), **columns) for c in range(3)],
            user=user,
            request_id=first_request + row,
            decided_at=when,
            policy=pinned[row] if pinned is not None else 0,
        )
        for row, user in enumerate(users)
    ]
    batch = batch_of(rows)
    for index, policy in enumerate(policies):
        mine = np.flatnonzero(batch.requests["policy"] == index)
        drawn = assign(policy.trials, batch.requests["user"][mine], batch.requests["decided_at"][mine])
        for name in ("arms", "cell", "epoch", "p_cell", "variant"):
            values = getattr(drawn, name)
            if name not in batch.requests:
                batch.requests[name] = np.zeros(len(batch), values.dtype)
            batch.requests[name][mine] = values
    n = len(batch)
    more = {"surface": np.full(n, Surface.notification, np.int8), "read_version": np.zeros(n, np.int64)}
    requests = Columns(n, REQUEST_COLUMNS, {**batch.requests, **more})
    meta = {**batch.meta, "heads": HEADS, "release": "r1", "code_version": "c1", "fingerprint": "f1"}
    return Batch(requests, batch.candidates, batch.offsets, meta)


def decide_one_batch(users: int, policies: Sequence[CompiledPolicy]) -> Batch:
    """Decided on empty histories; users take the policies in turn."""
    batch = asked([user_of(n) for n in range(users)], policies, pinned=[n % len(policies) for n in range(users)])
    return Decision().run(batch, context_of(policies, histories=Histories.empty(users)))


def context_of(policies: Sequence[CompiledPolicy], **parts: object) -> Context:
    """A context that knows the three items."""
    return Context(tuple(policies), {"item_hashes": ITEM_HASHES, **parts})


def reachable(ledger: Ledger, users: Sequence[int]) -> None:
    """Users the ledger has not met become reachable everywhere, in Seoul."""
    hashes = np.unique(np.asarray(users, np.uint64))
    new = hashes[ledger.read(hashes).versions == 0]
    if len(new):
        state = UserState.unknown(len(new))
        state.reachable[:] = 63
        state.zone[:], state.region[:] = zone_index("Asia/Seoul"), region_index("US")
        ledger.put_users(new, state)


def decide_on(ledger: Ledger, policy: CompiledPolicy, batch: Batch, keys: Sequence[bytes] | None = None) -> DecidedBatch:
    """Decided and committed, for users who can be reached."""
    reachable(ledger, batch.requests["user"].tolist())
    digests = None if keys is None else [bytes(16) if key else b"" for key in keys]
    context = context_of([policy])
    return decide(ledger, Decision(), batch, context, keys=keys, digests=digests, item_hashes=ITEM_HASHES)


def journal_rows(
    decided: DecidedBatch, policy: CompiledPolicy, keys: Sequence[bytes] | None = None, *, committed: bool = True
) -> dict[str, pa.RecordBatch]:
    """What the server journals of a decided batch; committed=False: as when the commit's outcome was not known."""
    holds = (decided.status == DecideStatus.committed) & committed
    return rows_from_batch(
        decided.batch,
        hashes=EntityHashes(ITEM_HASHES),
        policy_revision=policy.revision,
        release="r1",
        fingerprint="f1",
        salt=int(policy.rules.flip_salt),
        code_version="c1",
        commit_version=np.where(holds, decided.versions, -1),
        granted=decided.granted & committed,
        idempotency_keys=keys,
        **assigned_columns(decided.batch.requests, [policy]),
    )
