"""The Redis ledger beyond the contract: what it refuses, what it does when the server is away, falls back or forgets."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.errors import DamagedArtifact, LedgerUnavailable, NotReady, OutcomeUnknown
from serve_app.ledger.columns import CommitStatus
from serve_app.ledger.protocol import LedgerSettings, UserChanges
from serve_app.ledger.redis import RedisLedger
from serve_app.ledger.redis_keys import META_KEYS, SHARDS, Script, key_of, user_key
from serve_app.ledger.redis_plans import commit_pieces
from tests.unit.ledger_support import DAY, NOW, RedisServer, commit_one, free_port, plan, require_redis, u64


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


# --- plans as calls


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3_000_000)), min_size=1, max_size=40), st.booleans())
def test_calls_take_every_row_once_no_shard_twice_and_bounded_bytes(drawn: list[tuple[int, int]], by_shard: bool) -> None:
    records = [bytes(size) for _, size in drawn]
    users = u64(*((shard << 56) + row for row, (shard, _) in enumerate(drawn)))
    count = len(drawn)
    made = plan(users.tolist(), [0] * count, list(range(count)), records=records)
    script = Script("redis_commit.lua")
    pieces = commit_pieces(script, made, np.zeros(SHARDS, np.int64), LedgerSettings(), DAY, by_shard=by_shard)
    assert sorted(row for piece in pieces for row in piece.rows.tolist()) == list(range(count))
    for piece in pieces:
        assert len(set(piece.shards.tolist())) == len(piece.shards)
        assert set(piece.shards.tolist()) == {drawn[row][0] for row in piece.rows.tolist()}
        assert piece.route == piece.shards[0]
        size = sum(len(records[row]) for row in piece.rows.tolist())
        assert size <= 8 << 20 or len(piece.rows) == 1
        assert len(piece.command.data) >= size
        assert not by_shard or len(piece.shards) == 1


def test_thousands_of_users_of_one_shard_and_of_many_are_written_and_found(server: RedisServer) -> None:
    ledger = RedisLedger(server.url)
    users = [*range(1, 2_501), *((k % 256 << 56) + 7_000 + k for k in range(1_500))]
    records = [b"%d" % user * (user % 5) for user in users]
    for turn in range(2):
        requests = [2 * user + turn for user in range(len(users))]
        result = ledger.commit(plan(users, [turn] * len(users), requests, records=records))
        assert (result.status == CommitStatus.committed).all()
        assert (result.versions == turn + 1).all()
    kept = {(one.user, one.version): one.record for one in ledger.pending_records(10**5)}
    expected = {(user, turn): one for user, one in zip(users, records, strict=True) for turn in (1, 2) if one}
    assert kept == expected
    assert ledger.find_decision(users[2_488], 2 * 2_488) == records[2_488]
    ledger.ack_records([one.id for one in ledger.pending_records(3_000)])
    assert len(ledger.pending_records(10**5)) == len(expected) - 3_000
    ledger.close()


def test_rows_that_lose_leave_nothing_of_their_record_behind(server: RedisServer) -> None:
    ledger = RedisLedger(server.url)
    commit_one(ledger, 2, 11)
    lost = plan([1, 2, 3], [0, 0, 0], [21, 22, 23], records=[b"first", b"never said", b"third"])
    assert ledger.commit(lost).status.tolist() == [CommitStatus.committed, CommitStatus.conflict, CommitStatus.committed]
    alone = plan([2], [0], [24], records=[b"nor this"])
    assert ledger.commit(alone).status.tolist() == [CommitStatus.conflict]
    kept = [server.client.get(key) for key in server.client.scan_iter("hc:{000}:b*")]
    assert sorted(kept) == [b"first" + bytes(10) + b"third", b"r11"]
    assert (ledger.find_decision(1, 21), ledger.find_decision(2, 22), ledger.find_decision(3, 23)) == (
        b"first",
        None,
        b"third",
    )
    ledger.close()


def test_copied_records_go_when_no_key_can_ask_for_them_any_more(server: RedisServer) -> None:
    ledger = RedisLedger(server.url, LedgerSettings(key_horizon_us=1_000))
    for request in range(6):
        commit_one(ledger, 1, request)
    ledger.ack_records([one.id for one in ledger.pending_records(4)])
    for key in server.client.scan_iter("hc:{000}:c*"):
        server.client.setrange(key, 0, (0).to_bytes(8, "little"))  # as if written long ago
    meta = bytearray(server.client.get(META_KEYS[0]))
    meta[40:48] = bytes(8)
    server.client.set(META_KEYS[0], bytes(meta))
    commit_one(ledger, 1, 6)
    assert [ledger.find_decision(1, request) for request in range(7)] == [None] * 4 + [b"r4", b"r5", b"r6"]
    assert len(list(server.client.scan_iter("hc:{000}:[cb]*"))) == 6
    commit_one(ledger, 1, 7)  # what was not copied stays, however old
    assert ledger.find_decision(1, 4) == b"r4"
    ledger.close()


def test_a_store_of_another_layout_is_refused_and_not_read_as_empty(server: RedisServer) -> None:
    server.client.set("hc:{0}:n", 5)
    with pytest.raises(LedgerUnavailable, match="layout 1, this version reads 2"):
        RedisLedger(server.url)


def test_a_damaged_row_is_said_so(server: RedisServer) -> None:
    ledger = RedisLedger(server.url)
    commit_one(ledger, 1, 11)
    row = server.client.get(user_key(b"u", 1))
    for damaged in (row[:-8], row[:-3], row[:40], row[: len(row) - 48] + bytes(48)):
        server.client.set(user_key(b"u", 1), damaged)
        with pytest.raises(DamagedArtifact, match="0000000000000001"):
            ledger.read(u64(2, 1))
    ledger.close()


def test_a_sweep_asks_each_shard_once_and_reads_what_is_due_alone(server: RedisServer) -> None:
    ledger = RedisLedger(server.url)
    users = [k << 56 for k in range(20)]
    until = np.asarray([NOW + k for k in range(20)])
    ledger.commit(plan(users, [0] * 20, list(range(20)), grants=0, deferred_until=until))
    server.client.config_resetstat()
    assert [one.user for one in ledger.due_deferrals(NOW + 30, 3)] == users[:3]
    stats = server.client.info("commandstats")
    assert stats["cmdstat_zrange"]["calls"] == 256
    assert stats["cmdstat_hmget"]["calls"] == 3
    ledger.close()
