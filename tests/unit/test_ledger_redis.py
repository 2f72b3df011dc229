"""The Redis ledger beyond the contract: what it refuses, what it does when the server is away, falls back or forgets."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from serve_app.errors import LedgerUnavailable, NotReady, OutcomeUnknown
from serve_app.ledger.protocol import CommitStatus, UserChanges
from serve_app.ledger.redis import RedisLedger
from serve_app.ledger.redis_keys import META_KEYS, key_of, user_key
from tests.unit.ledger_support import NOW, RedisServer, commit_one, free_port, plan, require_redis, u64


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    require_redis()
    started = RedisServer(tmp_path, "--repl-diskless-sync-delay", "0")
    yield started
    started.kill()


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("appendonly", "no", "Redis has appendonly no"),
        ("appendfsync", "everysec", "Redis has appendfsync everysec"),
        ("maxmemory-policy", "allkeys-lru", "Redis has maxmemory-policy allkeys-lru"),
    ],
)
def test_a_server_that_could_forget_is_refused_with_the_fix(server: RedisServer, name: str, value: str, text: str) -> None:
    server.client.config_set(name, value)
    with pytest.raises(NotReady, match=text) as caught:
        RedisLedger(server.url)
    assert f"set `{name} " in str(caught.value.hint)


def test_a_weaker_server_is_taken_only_when_asked_for_and_says_so(server: RedisServer) -> None:
    server.client.config_set("appendfsync", "everysec")
    ledger = RedisLedger(server.url, require="weaker")
    assert ledger.durability == "weaker"
    assert commit_one(ledger, 1, 11).status.tolist() == [CommitStatus.committed]
    ledger.close()


def test_a_server_that_evicts_is_never_taken(server: RedisServer) -> None:
    server.client.config_set("maxmemory-policy", "allkeys-lru")
    with pytest.raises(NotReady, match="maxmemory-policy"):
        RedisLedger(server.url, require="weaker")


def test_missing_replicas_are_refused(server: RedisServer) -> None:
    with pytest.raises(NotReady, match="has 0 replicas, 1 must confirm"):
        RedisLedger(server.url, replicas=1)


def test_no_server_is_said_so() -> None:
    with pytest.raises(LedgerUnavailable, match="cannot be reached"):
        RedisLedger(f"redis://127.0.0.1:{free_port()}/0")


def test_writes_wait_for_a_replica_and_say_when_it_is_gone(server: RedisServer, tmp_path: Path) -> None:
    replica = RedisServer(tmp_path / "replica", "--replicaof", "127.0.0.1", str(server.port))
    try:
        deadline = time.monotonic() + 20
        while server.client.info("replication").get("slave0", {}).get("state") != "online":
            assert time.monotonic() < deadline
        ledger = RedisLedger(server.url, replicas=1, timeout_s=4.0)
        assert commit_one(ledger, 1, 11).status.tolist() == [CommitStatus.committed]
        assert replica.client.exists(user_key(b"u", 1)) == 1
    finally:
        replica.kill()
    with pytest.raises(OutcomeUnknown, match="fewer than 1 replicas"):
        commit_one(ledger, 1, 12)
    ledger.close()


def test_a_server_that_is_away_is_unavailable_and_comes_back_by_itself(server: RedisServer) -> None:
    ledger = RedisLedger(server.url)
    commit_one(ledger, 1, 11)
    view = ledger.read(u64(1))
    server.kill()
    with pytest.raises(LedgerUnavailable):
        ledger.commit(plan([1], view.versions.tolist(), [12]))
    with pytest.raises(LedgerUnavailable):
        ledger.read(u64(1))
    server.start()
    assert ledger.read(u64(1)).histories.entries["request_id"].tolist() == [11]
    assert commit_one(ledger, 1, 13).versions.tolist() == [2]
    ledger.close()


def test_a_server_that_does_not_answer_leaves_the_outcome_unknown(server: RedisServer) -> None:
    ledger = RedisLedger(server.url, timeout_s=0.3)
    commit_one(ledger, 2, 10)
    key = {"keys": [b"k" * 16], "digests": [b"d" * 16]}
    version = ledger.read(u64(1)).versions.tolist()
    with server.frozen(), pytest.raises(OutcomeUnknown):
        ledger.commit(plan([1], version, [11], **key))
    deadline = time.monotonic() + 10
    while ledger.find_decision(1, 11) is None:  # what was sent is still carried out
        assert time.monotonic() < deadline
    result = commit_one(ledger, 1, 12, **key)
    assert result.status.tolist() == [CommitStatus.duplicate]
    assert result.stored == [b"r11"]
    ledger.close()


def test_a_forgotten_script_is_loaded_again(server: RedisServer) -> None:
    ledger = RedisLedger(server.url)
    commit_one(ledger, 1, 11)
    server.client.script_flush()
    assert commit_one(ledger, 1, 12).status.tolist() == [CommitStatus.committed]
    ledger.close()


def test_a_full_server_refuses_and_grants_nothing(server: RedisServer) -> None:
    ledger = RedisLedger(server.url)
    commit_one(ledger, 1, 11)
    server.client.config_set("maxmemory", 1)
    with pytest.raises(LedgerUnavailable, match="maxmemory"):
        commit_one(ledger, 1, 12)
    server.client.config_set("maxmemory", 0)
    assert ledger.read(u64(1)).histories.entries["request_id"].tolist() == [11]
    ledger.close()


def test_a_bucket_that_lost_writes_is_closed_until_reopened(server: RedisServer) -> None:
    ledger = RedisLedger(server.url)
    other = 5 << 56
    lagging: dict[bytes, bytes] = {}
    for turn in range(3):
        ledger.commit(plan([1, other], [turn, turn], [turn, turn]))
        lagging = lagging or {key: server.client.get(key) for key in (META_KEYS[0], user_key(b"u", 1))}
    server.client.mset(lagging)  # what a fail-over to a replica that lagged would leave
    result = ledger.commit(plan([1, other], [1, 3], [8, 8]))
    assert [CommitStatus(status).name for status in result.status] == ["regressed", "committed"]
    assert ledger.closed_buckets() == list(range(16))  # the shard of bucket 0
    with pytest.raises(LedgerUnavailable, match="lost writes and is closed"):
        ledger.put_user(1, UserChanges(reachable=1))
    fresh = RedisLedger(server.url)  # a process that has not seen the higher counter is refused too
    assert commit_one(fresh, 1, 9).status.tolist() == [CommitStatus.regressed]
    fresh.close()
    ledger.reopen_bucket(0)
    assert commit_one(ledger, 1, 10).status.tolist() == [CommitStatus.committed]
    assert {one.request_id for one in ledger.pending_records(99) if one.user == 1} >= {0, 10}
    assert ledger.closed_buckets() == []
    ledger.close()


def test_a_catalogue_log_that_falls_back_is_not_served(server: RedisServer) -> None:
    ledger = RedisLedger(server.url)
    ledger.append_catalogue_change("availability", b"a")
    ledger.append_catalogue_change("availability", b"b")
    server.client.rpop("hc:{catalogue}:log")
    with pytest.raises(LedgerUnavailable, match="fell back from 2 to 1"):
        ledger.catalogue_head()
    ledger.close()


def test_all_keys_of_a_user_lie_in_its_shard_and_go_with_it(server: RedisServer) -> None:
    ledger = RedisLedger(server.url)
    user = (77 << 52) + 5
    ledger.put_user(user, UserChanges(zone="Asia/Seoul"))
    columns = {"keys": [b"k" * 16], "digests": [b"d" * 16], "outbox": [b"o"], "deferred_until": np.array([NOW])}
    commit_one(ledger, user, 11, **columns)
    ledger.record_events(u64(user), u64(3), np.array([NOW]))
    layout = b"hc:{catalogue}:layout"
    keys = set(server.client.scan_iter()) - {layout}
    assert {key[9:10] for key in keys} == {b"%c" % letter for letter in b"nuwcbkszyop"}
    assert all(key.startswith(b"hc:{004}:") for key in keys)  # bucket 77, sixteen to a shard
    assert ledger.delete_user(user)
    chunk = key_of(4, b"c", (1).to_bytes(8, "big"))
    (records,) = server.client.scan_iter("hc:{004}:b*")
    assert set(server.client.scan_iter()) == {layout, META_KEYS[4], chunk, records, user_key(b"u", user)}
    assert server.client.get(records) == bytes(3)
    assert user.to_bytes(8, "big") not in server.client.get(chunk)
    assert ledger.pending_records(9) == []
    ledger.close()
