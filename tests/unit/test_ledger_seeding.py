"""A ledger takes over what the log last saw of each user, and nothing it knows better."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from serve_app.ledger.memory import MemoryLedger
from serve_app.ledger.protocol import UserChanges
from serve_app.ledger.seeding import last_states, seed_ledger
from serve_app.log.rows import fill
from serve_app.log.writer import LogWriter
from serve_app.vocabulary import Surface

NOTIFY, RELATED = int(Surface.notification), int(Surface.related)


def write_log(data: Path) -> None:
    users = np.array([5, 5, 9, 9], np.uint64)
    rows = fill(
        "requests",
        4,
        {
            "user": users,
            "request_id": np.arange(1, 5, dtype=np.uint64),
            "decided_at": np.array([100, 200, 100, 300]),
            "ts": np.array([100, 200, 100, 300]),
            "surface": np.array([NOTIFY, NOTIFY, NOTIFY, RELATED], np.int8),
            "reachable": np.array([1, 3, 1, 0], np.uint16),
            "opted_out": np.array([0, 2, 4, 0], np.uint16),
            "consent_ad_at": np.array([10, 20, 30, 0]),
        },
    )
    with LogWriter(data) as writer:
        writer.write("requests", rows)


def test_the_newest_notification_request_of_each_user_counts(tmp_path: Path) -> None:
    write_log(tmp_path)
    users, state = last_states(tmp_path)
    assert users.tolist() == [5, 9]
    assert state.reachable.tolist() == [3, 1], "a request for another surface carries no state"
    assert state.consent_ad_at.tolist() == [20, 30]


def test_what_the_ledger_knows_is_left_alone_and_a_second_run_writes_nothing(tmp_path: Path) -> None:
    write_log(tmp_path)
    ledger = MemoryLedger()
    ledger.put_user(9, UserChanges(opted_out=7))
    assert seed_ledger(ledger, tmp_path) == 1
    assert seed_ledger(ledger, tmp_path) == 0
    view = ledger.read(np.array([5, 9], np.uint64))
    assert view.state.reachable.tolist() == [3, 0]
    assert view.state.opted_out.tolist() == [2, 7]


def test_an_empty_log_seeds_nobody(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    assert seed_ledger(MemoryLedger(), tmp_path) == 0
