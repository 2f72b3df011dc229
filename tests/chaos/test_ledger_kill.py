"""kill -9 in the middle of writes: nothing answered is lost, nothing is granted twice or beyond the cap.

Run as a module it is the victim: it grants, in several threads, and prints a line for each answered commit.
"""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from serve_app.batch import lengths_to_offsets
from serve_app.errors import LedgerUnavailable, OutcomeUnknown
from serve_app.ledger.cap_audit import CapRule, find_overgrants
from serve_app.ledger.columns import HISTORY_DTYPE, CommitPlan, CommitStatus
from serve_app.ledger.protocol import Ledger
from serve_app.ledger.redis import RedisLedger
from serve_app.ledger.sqlite import SqliteLedger
from tests.unit.ledger_support import DAY, NOW, RedisServer, real_record, require_redis

pytestmark = pytest.mark.chaos

USERS = np.arange(1, 41, dtype=np.uint64) << np.uint64(56)
CAP = CapRule("global", 25, DAY)
THREADS = 4


def decide(ledger: Ledger, rng: random.Random, key: int) -> list[tuple[int, int]]:
    """One batch over some users: grant what the cap allows, keep a keyed record of all. Returns what was answered."""
    users = np.sort(np.asarray(rng.sample(USERS.tolist(), 8), np.uint64))
    requests = np.asarray([rng.getrandbits(63) for _ in users], np.uint64)
    view = ledger.read(users)
    grants = (np.diff(view.histories.offsets) < CAP.limit).astype(np.int64)
    entries = np.zeros(int(grants.sum()), HISTORY_DTYPE)
    entries["at"], entries["request_id"] = NOW, requests[grants > 0]
    pairs = list(zip(users.tolist(), requests.tolist(), strict=True))
    records = [real_record(user, request) for user, request in pairs]
    keys = [user.to_bytes(8, "big") + key.to_bytes(8, "big") for user, _ in pairs]
    at, offsets = np.full(len(users), NOW), lengths_to_offsets(grants)
    plan = CommitPlan(users, view.versions, at, entries, offsets, records, requests, keys=keys, digests=keys)
    result = ledger.commit(plan)
    return [pair for pair, status in zip(pairs, result.status.tolist(), strict=True) if status == CommitStatus.committed]


def grant_for_ever(ledger: Ledger, seed: int, answered: Callable[[int, int], None]) -> None:
    rng = random.Random(seed)
    while True:
        for pair in decide(ledger, rng, rng.getrandbits(63)):
            answered(*pair)


def check(ledger: Ledger, answered: set[tuple[int, int]]) -> None:
    """Every answered decision is found, versions are exactly the decisions, no cap is passed."""
    lost = [pair for pair in answered if ledger.find_decision(*pair) is None]
    assert lost == []
    records = ledger.pending_records(10**7)
    assert len({(one.user, one.version) for one in records}) == len(records)
    assert int(ledger.read(USERS).versions.sum()) == len(records)
    assert list(find_overgrants(ledger.snapshot(NOW + DAY), [CAP])) == []


def victim(path: str, seed: int) -> None:
    ledger = SqliteLedger(path, durability="process", checkpoint_rows=100)
    lock = threading.Lock()

    def answered(user: int, request: int) -> None:
        with lock:
            sys.stdout.write(f"{user} {request}\n")
            sys.stdout.flush()

    for number in range(THREADS):
        threading.Thread(target=grant_for_ever, args=(ledger, seed * THREADS + number, answered)).start()


def answers(process: subprocess.Popen[str], most: int) -> Iterator[tuple[int, int]]:
    """Lines of the victim; it is killed after `most` of them. A torn last line was not answered."""
    assert process.stdout is not None
    for count, line in enumerate(process.stdout):
        if count == most:
            process.kill()
        if line.endswith("\n"):
            user, request = line.split()
            yield int(user), int(request)


def test_killing_the_sqlite_writer_loses_nothing_that_was_answered(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    rng = random.Random(5)
    everything: set[tuple[int, int]] = set()
    for turn in range(6):
        command = [sys.executable, "-m", "tests.chaos.test_ledger_kill", str(path), str(turn)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            everything |= set(answers(process, rng.randrange(50, 1_500)))
        ledger = SqliteLedger(path, durability="process")
        check(ledger, everything)
        assert ledger.check() == []
        ledger.close()
    assert len(everything) > 300


def test_killing_redis_loses_nothing_that_was_answered_and_the_ledger_comes_back(tmp_path: Path) -> None:
    require_redis()
    server = RedisServer(tmp_path)
    ledger = RedisLedger(server.url, timeout_s=2.0)
    stop, lock = threading.Event(), threading.Lock()
    everything: set[tuple[int, int]] = set()
    failures: list[BaseException] = []
    progress = threading.Semaphore(0)

    def work(number: int) -> None:
        rng = random.Random(number)
        while not stop.is_set():
            try:
                done = decide(ledger, rng, rng.getrandbits(63))
            except (LedgerUnavailable, OutcomeUnknown):
                stop.wait(0.01)
                continue
            except Exception as error:  # noqa: BLE001 (shown by the assertion below)
                failures.append(error)
                return
            with lock:
                everything.update(done)
            progress.release()

    workers = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for worker in workers:
        worker.start()
    try:
        for _ in range(4):
            for _ in range(60):
                assert progress.acquire(timeout=60), f"no progress: {failures}"
            server.kill()
            server.start()
    finally:
        stop.set()
        for worker in workers:
            worker.join()
    assert failures == []
    check(ledger, everything)
    assert ledger.closed_buckets() == []
    ledger.close()
    server.kill()


if __name__ == "__main__":
    victim(sys.argv[1], int(sys.argv[2]))
