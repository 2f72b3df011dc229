"""Buckets that a fail-over closed get back from the log what was lost, and open."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from redis import Redis

from serve_app.audit.ledger_side import of_ledger
from serve_app.audit.run import audit
from serve_app.ledger.columns import CommitStatus
from serve_app.ledger.reconcile import reconcile
from serve_app.ledger.redis import RedisLedger
from serve_app.ledger.redis_keys import META_KEYS, shard_of, user_key
from serve_app.log.journal import Journal
from serve_app.policies import store_policy
from serve_app.policy.compile import CompiledPolicy
from tests.unit.decision_support import HOUR, at, compiled
from tests.unit.ledger_support import Backend, commit_one, redis_backend
from tests.unit.truth_support import asked, decide_on, journal_rows

NOON = at("2026-03-10T12:00:00")
SHARD = 7
USERS = [(SHARD << 56) + n + 1 for n in range(12)]
ELSEWHERE = (9 << 56) + 1


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    with redis_backend(tmp_path_factory.mktemp("redis")) as backend:
        yield backend


@pytest.fixture
def policy() -> CompiledPolicy:
    return compiled(
        caps=[{"id": "day", "scope": "global", "limit": 3, "window": {"rolling_hours": 24.0}}],
        holdouts=[{"id": "g", "scope": "global", "percent": 40, "salt": "g"}],
    )


def serve(ledger: RedisLedger, policy: CompiledPolicy, data: Path, turn: int) -> None:
    decided = decide_on(
        ledger, policy, asked([*USERS, ELSEWHERE], [policy], now=NOON + turn * HOUR, first_request=1000 * (turn + 1))
    )
    with Journal(data, "server") as journal:
        journal.append(journal_rows(decided, policy))


def histories(ledger: RedisLedger) -> list[tuple]:
    view = ledger.read(np.array(USERS, np.uint64))
    owner = np.repeat(view.users, np.diff(view.histories.offsets))
    return [(user, *entry.item()) for user, entry in zip(owner.tolist(), view.histories.entries, strict=True)]


def test_lost_sends_and_ghosts_come_back_and_versions_rise_above_all(
    server: Backend, policy: CompiledPolicy, tmp_path: Path
) -> None:
    server.empty()
    ledger = server.open()
    assert isinstance(ledger, RedisLedger)
    store_policy(tmp_path, policy.document)
    client = client_of(ledger)
    serve(ledger, policy, tmp_path, 0)
    keys = [META_KEYS[SHARD], *(user_key(b"u", user) for user in USERS)]
    lagging = {key: client.get(key) for key in keys}
    serve(ledger, policy, tmp_path, 1)
    serve(ledger, policy, tmp_path, 2)
    before, versions = histories(ledger), ledger.read(np.array(USERS, np.uint64)).versions
    assert any(entry[4] for entry in before), "ghosts are among them"
    client.mset(lagging)
    assert len(histories(ledger)) < len(before)
    assert commit_one(ledger, USERS[0], 9).status.tolist() == [CommitStatus.regressed]
    assert {one // 16 for one in ledger.closed_buckets()} == {SHARD}

    done = reconcile(ledger, tmp_path)
    assert (done.shards, done.users) == (1, len(USERS))
    assert ledger.closed_buckets() == []
    assert histories(ledger) == before
    after = ledger.read(np.array(USERS, np.uint64))
    assert (after.versions > versions).all()
    assert after.state.reachable.tolist() == [63] * len(USERS)
    assert reconcile(ledger, tmp_path).users == 0
    serve(ledger, policy, tmp_path, 3)
    side = of_ledger(ledger)
    report = audit(tmp_path, side, now_us=NOON + 5 * HOUR)
    assert {"grant_not_ledgered", "over_cap", "granted_twice", "version_twice"}.isdisjoint(report.counts), report.document()
    ledger.close()


def client_of(ledger: RedisLedger) -> Redis:
    pool = ledger._wire._pool
    return Redis(host=pool.connection_kwargs["host"], port=pool.connection_kwargs["port"])


def test_a_shard_that_nobody_decided_in_is_simply_opened(server: Backend, tmp_path: Path) -> None:
    server.empty()
    ledger = server.open()
    assert isinstance(ledger, RedisLedger)
    client = client_of(ledger)
    commit_one(ledger, USERS[0], 1)
    lagging = client.get(META_KEYS[shard_of(USERS[0])])
    commit_one(ledger, USERS[0], 2)
    client.set(META_KEYS[shard_of(USERS[0])], lagging)
    commit_one(ledger, USERS[0], 3)
    assert ledger.closed_buckets()
    assert reconcile(ledger, tmp_path).shards == 1
    assert commit_one(ledger, USERS[0], 4).status.tolist() == [CommitStatus.committed]
    ledger.close()
