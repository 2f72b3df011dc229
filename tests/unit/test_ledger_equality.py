"""Any run of operations gives the same answers on every backend, whenever the persistent ones are closed and reopened."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from serve_app.ledger.memory import MemoryLedger
from serve_app.ledger.protocol import Consent, Ledger, LedgerSettings, StoredRecord, UserChanges
from serve_app.ledger.redis import RedisLedger
from serve_app.ledger.sqlite import SqliteLedger
from tests.unit.ledger_support import DAY, NOW, RedisServer, plan, require_redis, u64

SETTINGS = LedgerSettings(history_horizon_us=3 * DAY, history_max_entries=6, recents_max=3, key_horizon_us=90 * DAY)
USERS = [1, 2, 2**63, 2**64 - 1]

user = st.sampled_from(USERS)
small = st.integers(0, 5)
days = st.integers(0, 6)
operation = st.one_of(
    st.tuples(st.just("commit"), st.lists(user, min_size=1, unique=True), small, st.integers(0, 3), days, st.booleans()),
    st.tuples(st.just("stale"), user, small),
    st.tuples(st.just("refund"), user, small, st.integers(0, 2)),
    st.tuples(st.just("put"), user, st.sampled_from(["Asia/Seoul", "Mars/Base", ""]), small),
    st.tuples(st.just("delete"), user),
    st.tuples(st.just("view"), st.lists(user, min_size=1), small),
    st.tuples(st.just("dedupe"), st.lists(small, min_size=1), st.booleans()),
    st.tuples(st.just("settle"), user, small),
    st.tuples(
        st.just("ack"),
    ),
    st.tuples(st.just("change"), small),
    st.tuples(
        st.just("reopen"),
    ),
)


def apply(ledger: Ledger, number: int, step: tuple[Any, ...]) -> object:
    """The `number`-th operation (request ids are numbered by it); returns all that it answered, in a form to compare."""
    name, *rest = step
    if name == "commit":
        users, key, grants, day, deferred = rest
        versions = ledger.read(u64(*users)).versions.tolist()
        keys = [b"%016d" % (user % 10**9 * 10 + key) if key else b"" for user in users]
        digests = [b"d" * 16 if key else b"" for _ in users]
        until = np.full(len(users), NOW + day * DAY if deferred else 0)
        columns: dict[str, Any] = {"keys": keys, "digests": digests, "deferred_until": until}
        result = ledger.commit(plan(users, versions, [number] * len(users), at=NOW + day * DAY, grants=grants, **columns))
        return result.status.tolist(), result.versions.tolist(), result.stored
    if name == "stale":
        return ledger.commit(plan([rest[0]], [rest[1]], [number])).status.tolist()
    if name == "refund":
        return ledger.refund(*rest)
    if name == "put":
        zone, bits = rest[1:]
        return ledger.put_user(rest[0], UserChanges(consent_ad=Consent(bits, NOW, "p"), zone=zone, opted_out=bits))
    if name == "delete":
        return ledger.delete_user(rest[0])
    if name == "view":
        return ledger.record_events(u64(*rest[0]), np.full(len(rest[0]), rest[1], np.uint64), np.full(len(rest[0]), NOW))
    if name == "dedupe":
        return ledger.dedupe_events(u64(*rest[0]), NOW, mark=rest[1]).tolist()
    if name == "settle":
        version = int(ledger.read(u64(rest[0])).versions[0])
        return ledger.commit(plan([rest[0]], [version], [number], settles=u64(rest[1]))).status.tolist()
    if name == "ack":
        pending = in_order(ledger)[:2]
        ledger.ack_records([one.id for one in pending])
        return [(one.user, one.request_id, one.version) for one in pending]
    if name == "change":
        return ledger.append_catalogue_change("x", bytes([rest[0]])), ledger.put_campaign("c", b"d").version
    return None


def in_order(ledger: Ledger) -> list[StoredRecord]:
    return sorted(ledger.pending_records(10**6), key=lambda one: (one.user, one.version))


def everything(ledger: Ledger) -> object:
    view = ledger.read(u64(*USERS))
    recents = ledger.recents(u64(*USERS))
    return (
        view.versions.tolist(),
        view.known_since.tolist(),
        view.histories.offsets.tolist(),
        view.histories.entries.tolist(),
        view.state.zone.tolist(),
        view.state.opted_out.tolist(),
        [ledger.get_user(user) for user in USERS],
        recents.items.tolist(),
        recents.offsets.tolist(),
        [ledger.find_decision(user, request) for user in USERS for request in range(25)],
        ledger.due_deferrals(NOW + 9 * DAY, 99),
        [(one.user, one.request_id, one.version, one.record) for one in in_order(ledger)],
        ledger.catalogue_changes(0),
        [one.users.tolist() for one in ledger.snapshot(NOW + 2 * DAY)],
    )


def compare(steps: list[tuple[Any, ...]], open_other: Callable[[], Ledger]) -> None:
    memory, other = MemoryLedger(SETTINGS), open_other()
    try:
        for number, step in enumerate(steps):
            if step[0] == "reopen":
                other.close()
                other = open_other()
            assert apply(memory, number, step) == apply(other, number, step), step
        assert everything(memory) == everything(other)
    finally:
        other.close()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(operation, max_size=25))
@example([("commit", USERS, 0, 0, 0, False), ("ack",), ("delete", 1), ("commit", [1], 0, 0, 0, False), ("ack",), ("ack",)])
@example([("dedupe", [0], True), ("commit", [1], 0, 0, 5, False), ("reopen",), ("view", [1], 0), ("dedupe", [0], False)])
@example([("dedupe", [0], True), ("commit", [1], 0, 0, 5, False), ("reopen",), ("reopen",), ("dedupe", [0], False)])
def test_the_sqlite_ledger_answers_as_the_memory_ledger(steps: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.sqlite"
        compare(steps, lambda: SqliteLedger(path, SETTINGS, durability="process", checkpoint_rows=5))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    require_redis()
    started = RedisServer(tmp_path_factory.mktemp("redis"))
    yield started
    started.kill()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=st.lists(operation, max_size=25))
def test_the_redis_ledger_answers_as_the_memory_ledger(server: RedisServer, steps: list[tuple[Any, ...]]) -> None:
    server.client.flushall()
    compare(steps, lambda: RedisLedger(server.url, SETTINGS))
