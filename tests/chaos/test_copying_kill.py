"""kill -9 while decision records are copied: nothing is lost, nothing stands twice, the ledger lets go in the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from serve_app.ledger.sqlite import SqliteLedger
from serve_app.log.reader import read_log
from serve_app.log.upkeep import upkeep
from tests.unit.decision_support import HOUR, at, compiled
from tests.unit.truth_support import asked, decide_on, user_of

NOON = at("2026-03-10T12:00:00")
USERS, TURNS, KILLS = 400, 6, 12
WORK = """
import sys, time
from serve_app.ledger.sqlite import SqliteLedger
from serve_app.log.upkeep import upkeep
ledger = SqliteLedger(sys.argv[1] + "/ledger.sqlite", durability="process")
print("begins", flush=True)
from serve_app.log.copying import copy_records
copy_records(sys.argv[1], ledger, now_us=int(sys.argv[2]), batch=97, progress=lambda n: print(n, flush=True))
print("done", flush=True)
"""


@pytest.mark.chaos
@pytest.mark.long
def test_a_killed_copy_is_ended_by_the_next(tmp_path: Path) -> None:
    policy = compiled()
    ledger = SqliteLedger(tmp_path / "ledger.sqlite", durability="process")
    expected = set()
    for turn in range(TURNS):
        batch = asked(
            [user_of(n) for n in range(USERS)], [policy], now=NOON + turn * HOUR, first_request=10_000 * (turn + 1)
        )
        decided = decide_on(ledger, policy, batch)
        request = decided.batch.requests
        expected |= set(
            zip(request["user"].tolist(), request["request_id"].tolist(), decided.versions.tolist(), strict=True)
        )
    ledger.close()
    rng = np.random.default_rng(3)
    killed = 0
    for _ in range(KILLS):
        child = subprocess.Popen(
            [sys.executable, "-c", WORK, str(tmp_path), str(NOON + 48 * HOUR)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "begins\n"
        time.sleep(rng.uniform(0.0, 0.4))  # somewhere within its work: where, is what is tried
        if child.poll() is None:
            os.kill(child.pid, signal.SIGKILL)
            killed += 1
        child.wait()
        rows = read_log(tmp_path, "decisions", columns=["user", "request_id", "commit_version"]).to_pylist()
        found = [tuple(row.values()) for row in rows]
        assert len(found) == len(set(found))
        assert set(found) <= expected
    assert killed > KILLS // 3
    ledger = SqliteLedger(tmp_path / "ledger.sqlite", durability="process")
    upkeep(tmp_path, ledger, now_us=NOON + 48 * HOUR)
    assert ledger.pending_records(1) == []
    ledger.close()
    rows = read_log(tmp_path, "decisions", columns=["user", "request_id", "commit_version"]).to_pylist()
    assert sorted(tuple(row.values()) for row in rows) == sorted(expected)
    assert len(read_log(tmp_path, "candidates")) == 3 * len(expected)
