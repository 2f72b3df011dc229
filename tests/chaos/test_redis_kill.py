"""Redis dying, hanging, forgetting, moving and failing over under load: nothing is granted twice, lost or beyond a cap, and
the ledger recovers by itself."""

from __future__ import annotations

import os
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve_app.batch import lengths_to_offsets
from serve_app.errors import LedgerUnavailable, OutcomeUnknown
from serve_app.ledger.cap_audit import CapRule, find_overgrants
from serve_app.ledger.columns import HISTORY_DTYPE, CommitPlan, CommitStatus
from serve_app.ledger.redis import RedisLedger
from serve_app.ledger.redis_keys import SHARDS
from tests.unit.ledger_support import DAY, NOW, RedisServer, commit_one, plan, require_redis, u64

pytestmark = pytest.mark.chaos

CAP = CapRule("global", 12, DAY)
USERS = np.arange(1, 61, dtype=np.uint64) << np.uint64(58)  # a quarter of the shards, so every node has some
ANSWERED = (CommitStatus.committed, CommitStatus.duplicate)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    require_redis()
    started = RedisServer(tmp_path)
    yield started
    started.kill()


def eventually(done: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, what
        threading.Event().wait(0.02)


class Client:
    """Sends requests that have keys, each again with the same key until it is answered, as a caller does."""

    def __init__(self, ledger: RedisLedger, seed: int) -> None:
        self.ledger, self.rng = ledger, random.Random(seed)
        self.answered: dict[bytes, int] = {}
        self.troubles = 0

    def batch(self, stop: threading.Event) -> None:
        """One keyed request for each of ten users."""
        waiting = {user: self.rng.randbytes(16) for user in self.rng.sample(USERS.tolist(), 10)}
        while waiting and not stop.is_set():
            for user, status in self.attempt(waiting).items():
                if status in ANSWERED:
                    self.answered[waiting.pop(user)] = user
            if waiting:
                self.troubles += 1
                stop.wait(0.01)

    def attempt(self, waiting: dict[int, bytes]) -> dict[int, int]:
        """Grant what the cap allows; status per user, or none where nobody was told."""
        users = np.asarray(sorted(waiting), np.uint64)
        requests = np.asarray([self.rng.getrandbits(63) for _ in users], np.uint64)
        keys = [waiting[user] for user in users.tolist()]
        try:
            view = self.ledger.read(users)
            grants = (np.diff(view.histories.offsets) < CAP.limit).astype(np.int64)
            entries = np.zeros(int(grants.sum()), HISTORY_DTYPE)
            entries["at"], entries["request_id"] = NOW, requests[grants > 0]
            at, offsets = np.full(len(users), NOW), lengths_to_offsets(grants)
            # The record is the key: whoever asks again is told by it what was decided, and it says who was decided twice.
            made = CommitPlan(users, view.versions, at, entries, offsets, keys, requests, keys=keys, digests=keys)
            result = self.ledger.commit(made)
        except (LedgerUnavailable, OutcomeUnknown):
            return {}
        for key, status, stored in zip(keys, result.status.tolist(), result.stored, strict=True):
            assert status != CommitStatus.duplicate or stored == key
        return dict(zip(users.tolist(), result.status.tolist(), strict=True))


@contextmanager
def load(ledger: RedisLedger, clients: int = 4) -> Iterator[list[Client]]:
    """Clients at work; at the end every request under way has been answered or given up unanswered."""
    crew, stop, failures = [Client(ledger, seed) for seed in range(clients)], threading.Event(), []

    def work(client: Client) -> None:
        try:
            while not stop.is_set():
                client.batch(stop)
        except Exception as error:  # noqa: BLE001 (shown by the assertion below)
            failures.append(error)

    threads = [threading.Thread(target=work, args=(client,)) for client in crew]
    for thread in threads:
        thread.start()
    try:
        yield crew
    finally:
        stop.set()
        for thread in threads:
            thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads), "threads hang"
    assert failures == []


def progress(crew: list[Client], more: int) -> None:
    """Wait until so many further requests were answered."""
    target = sum(len(client.answered) for client in crew) + more
    eventually(lambda: sum(len(client.answered) for client in crew) >= target, "no progress", 90)


def audit(ledger: RedisLedger, crew: list[Client]) -> None:
    """Answered requests were decided exactly once, versions are exactly the decisions, no cap is passed."""
    records = ledger.pending_records(10**7)
    decided = [one.record for one in records]
    assert len(set(decided)) == len(decided), "a key was decided twice"
    answered = {key for client in crew for key in client.answered}
    assert answered <= set(decided), "an answered decision is lost"
    assert len({(one.user, one.version) for one in records}) == len(records)
    assert int(ledger.read(USERS).versions.sum()) == len(records)
    assert all(ledger.find_decision(one.user, one.request_id) == one.record for one in records[::17])
    assert list(find_overgrants(ledger.snapshot(NOW + DAY), [CAP])) == []
    assert ledger.closed_buckets() == []


def test_kill_9_under_load_with_retries_decides_every_key_exactly_once(server: RedisServer) -> None:
    ledger = RedisLedger(server.url)
    with load(ledger) as crew:
        for _ in range(4):
            progress(crew, 150)
            server.kill()
            server.start()
        progress(crew, 100)
    assert sum(client.troubles for client in crew) > 0
    audit(ledger, crew)
    ledger.close()


def test_a_server_that_hangs_holds_no_more_than_one_caller_at_a_time(server: RedisServer) -> None:
    timeout = 0.5
    ledger = RedisLedger(server.url, timeout_s=timeout)
    with load(ledger, clients=6) as crew:
        progress(crew, 60)
        with server.frozen():
            threading.Event().wait(2 * timeout)  # those that were under way have given up
            together = threading.Barrier(8)

            def took_s(_: int) -> float:
                together.wait(60)
                began = time.monotonic()
                with pytest.raises(LedgerUnavailable):
                    ledger.read(USERS)
                return time.monotonic() - began

            with ThreadPoolExecutor(8) as pool:
                slow = [took > timeout / 2 for took in pool.map(took_s, range(8))]
            assert sum(slow) <= 2, "most are told at once, while one asks the server"
            waiting = len(server_connections(server))
            assert waiting <= 16, "connections pile up"
        progress(crew, 60)
    audit(ledger, crew)
    ledger.close()


def server_connections(server: RedisServer) -> list[str]:
    """Sockets of this process to the server, by the kernel's word."""
    port = f":{server.port:04X}"
    lines = Path(f"/proc/{os.getpid()}/net/tcp").read_text().splitlines()[1:]
    return [line for line in lines if line.split()[2].endswith(port) and line.split()[3] == "01"]


def test_settings_that_are_weakened_while_serving_end_grants_until_they_are_mended(server: RedisServer) -> None:
    ledger = RedisLedger(server.url)
    commit_one(ledger, 1, 11)
    server.client.config_set("appendfsync", "everysec")

    def refused() -> bool:
        try:
            version = int(ledger.read(u64(1)).versions[0])
            ledger.commit(plan([1], [version], [version + 100]))
        except LedgerUnavailable as error:
            return "appendfsync everysec" in str(error)
        return False

    eventually(refused, "weak settings go unnoticed", 10)
    granted = server.client.strlen(b"hc:{000}:u" + (1).to_bytes(8, "big"))
    for _ in range(3):
        assert refused()
    assert server.client.strlen(b"hc:{000}:u" + (1).to_bytes(8, "big")) == granted
    server.client.config_set("appendfsync", "always")
    assert commit_one(ledger, 1, 99).status.tolist() == [CommitStatus.committed]
    ledger.close()


def test_a_server_that_comes_back_weaker_is_refused(server: RedisServer) -> None:
    ledger = RedisLedger(server.url)
    commit_one(ledger, 1, 11)
    server.kill()
    server.start("--appendfsync", "everysec")
    with pytest.raises(LedgerUnavailable, match="appendfsync everysec"):
        ledger.read(u64(1))
    ledger.close()


def test_while_a_restarted_server_loads_nothing_is_executed_and_then_all_goes_on(server: RedisServer) -> None:
    ledger = RedisLedger(server.url)
    commit_one(ledger, 1, 11)
    version = int(ledger.read(u64(1)).versions[0])
    filler = server.client.pipeline()
    for number in range(8_000):  # a server that loads looks up from its file after every 1,024 commands
        filler.set(f"filler{number}", number)
    filler.execute()
    server.kill()
    server.start("--key-load-delay", "250", wait=False)
    try:
        seen: set[str] = set()

        def loaded() -> bool:
            try:
                result = ledger.commit(plan([1], [version], [12]))
            except LedgerUnavailable as error:
                seen.add("loading" if "loading" in str(error).lower() else "away")
                return False
            assert result.status.tolist() == [CommitStatus.committed]
            return True

        eventually(loaded, f"still not there: {seen}", 60)
        assert "loading" in seen
        assert int(ledger.read(u64(1)).versions[0]) == version + 1
    finally:
        ledger.close()


def test_a_restarted_server_is_given_the_scripts_again(server: RedisServer) -> None:
    ledger = RedisLedger(server.url)
    commit_one(ledger, 1, 11, outbox=[b"x"], deferred_until=np.array([NOW]))
    server.kill()
    server.start()
    assert server.client.script_exists(ledger._commit_script.sha) == [False]
    assert commit_one(ledger, 1, 12).status.tolist() == [CommitStatus.committed]
    assert len(ledger.claim_outbox(NOW, 5, DAY)) == 1
    assert ledger.drop_deferral(1, 11)
    assert server.client.keys("hc:{000}:b*")  # no records are left behind or lost by the second try
    assert sorted(one.record for one in ledger.pending_records(9)) == [b"r11", b"r12"]
    ledger.close()


# --- a cluster


class Cluster:
    """Three primaries, each with a replica, on loopback; nodes fail over by themselves."""

    def __init__(self, folder: Path) -> None:
        options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2500", "--repl-diskless-sync-delay", "0")
        options += ("--cluster-require-full-coverage", "no", "--cluster-replica-validity-factor", "0")
        self.nodes = [RedisServer(folder / f"node{k}", *options) for k in range(6)]
        addresses = [f"127.0.0.1:{node.port}" for node in self.nodes]
        create = ["redis-cli", "--cluster", "create", *addresses, "--cluster-replicas", "1", "--cluster-yes"]
        subprocess.run(create, check=True, capture_output=True, timeout=90)
        eventually(lambda: all(self.well(node) for node in self.nodes), "the cluster did not form")

    @staticmethod
    def well(node: RedisServer) -> bool:
        replication = node.client.info("replication")
        linked = replication["role"] == "master" and replication["connected_slaves"] == 1
        linked = linked and replication["slave0"]["state"] == "online"
        return node.client.cluster("info")["cluster_state"] == "ok" and (
            linked or replication.get("master_link_status") == "up"
        )

    def masters(self) -> list[RedisServer]:
        """Living nodes that say they are primaries."""
        return [node for node in self.nodes if node.alive() and node.client.info("replication")["role"] == "master"]

    def close(self) -> None:
        for node in self.nodes:
            node.kill()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    require_redis()
    started = Cluster(tmp_path)
    yield started
    started.close()


def opened(cluster: Cluster) -> RedisLedger:
    """A ledger whose writes a replica confirms: one that has just come online may take its time."""
    found: list[RedisLedger] = []

    def tried() -> bool:
        try:
            found.append(RedisLedger(cluster.nodes[0].url, replicas=1, timeout_s=1.0))
        except OutcomeUnknown:
            return False
        return True

    eventually(tried, "no replica confirms a write")
    return found[0]


def test_when_a_primary_dies_its_replica_takes_over_and_nothing_confirmed_is_lost(cluster: Cluster) -> None:
    ledger = opened(cluster)
    with load(ledger) as crew:
        progress(crew, 150)
        victim = cluster.masters()[1]
        victim.kill()
        eventually(lambda: len(cluster.masters()) == 3, "no replica took over", 40)
        # The new primary has no replica left, so its users cannot be confirmed until the dead node is back, as one.
        victim.start()
        progress(crew, 150)
    audit(ledger, crew)
    ledger.close()


def test_users_of_a_dead_node_are_told_apart_from_those_of_the_living(cluster: Cluster) -> None:
    ledger = RedisLedger(cluster.nodes[0].url, timeout_s=1.0)
    every = (np.arange(SHARDS, dtype=np.uint64) << np.uint64(56)).tolist()
    with cluster.masters()[2].frozen():
        first = ledger.commit(plan(every, [0] * SHARDS, [7] * SHARDS)).status
        assert {CommitStatus(status).name for status in first.tolist()} == {"committed", "unknown"}
        second = ledger.commit(plan(every, first.tolist(), [8] * SHARDS)).status  # a wrong version, where it is unknown
        assert (second[first == CommitStatus.committed] == CommitStatus.conflict).all()
        assert (second[first == CommitStatus.unknown] == CommitStatus.unavailable).all()
    ledger.close()


def test_a_slot_that_moves_refuses_while_it_moves_and_is_found_at_its_new_node(cluster: Cluster) -> None:
    ledger = RedisLedger(cluster.nodes[0].url, timeout_s=1.0)
    user = 5 << 56
    commit_one(ledger, user, 11, keys=[b"k" * 16], digests=[b"d" * 16])
    slot = cluster.nodes[0].client.cluster("keyslot", "{005}")
    source = next(node for node in cluster.masters() if node.client.cluster("getkeysinslot", slot, 1))
    target = next(node for node in cluster.masters() if node is not source)
    ids: Any = {node: node.client.cluster("myid") for node in (source, target)}
    names = {node: one.decode() if isinstance(one, bytes) else one for node, one in ids.items()}
    target.client.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", names[source])
    source.client.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", names[target])
    with pytest.raises(LedgerUnavailable):  # the row is still here, but the script's new keys would not be
        ledger.commit(plan([user], [1], [12]))
    keys = source.client.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100)
    source.client.execute_command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
    for node in (target, source):
        node.client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", names[target])
    assert ledger.read(u64(user)).versions.tolist() == [1]
    assert commit_one(ledger, user, 13, keys=[b"k" * 16], digests=[b"d" * 16]).stored == [b"r11"]
    assert commit_one(ledger, user, 14).versions.tolist() == [2]
    ledger.close()
