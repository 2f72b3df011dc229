"""The ledger's snapshot in the log: exact entries, all or nothing, bounded memory, replaced within its day."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from serve_app.ledger.columns import HISTORY_DTYPE, Histories
from serve_app.ledger.memory import MemoryLedger
from serve_app.ledger.protocol import LedgerSettings
from serve_app.log import ledger_state
from serve_app.log.ledger_state import has_snapshot, write_snapshot
from serve_app.log.reader import read_log
from serve_app.log.upkeep import upkeep
from serve_app.log.writer import DAY_US
from tests.unit.decision_support import at, compiled
from tests.unit.truth_support import asked, decide_on, user_of

NOON = at("2026-03-10T12:00:00")
MIDNIGHT = (NOON // DAY_US + 1) * DAY_US


def ledger_of_two_days() -> MemoryLedger:
    ledger = MemoryLedger(LedgerSettings(history_horizon_us=40 * DAY_US))
    policy = compiled(holdouts=[{"id": "g", "scope": "global", "percent": 40, "salt": "g"}])
    users = [user_of(n) for n in range(25)]
    for step in range(4):
        decide_on(ledger, policy, asked(users, [policy], now=NOON + step * DAY_US // 2, first_request=1000 * (step + 1)))
    return ledger


def entries_of(rows: list[dict], side: str) -> list[tuple]:
    names = list(HISTORY_DTYPE.names or ())
    return [(row["user"], *(entry[name] for name in names)) for row in rows for entry in row[side]]


def test_a_snapshot_holds_exactly_the_entries_up_to_its_instant(tmp_path: Path) -> None:
    ledger = ledger_of_two_days()
    assert write_snapshot(tmp_path, ledger.snapshot(MIDNIGHT, 7), MIDNIGHT, MIDNIGHT + 5) == 25
    rows = read_log(tmp_path, "ledger_snapshot").to_pylist()
    assert len(rows) == 25
    assert {(row["as_of"], row["taken_at"]) for row in rows} == {(MIDNIGHT, MIDNIGHT + 5)}
    factual, ghosts = [], []
    for view in ledger.snapshot(MIDNIGHT):
        histories: Histories = view.histories
        owner = np.repeat(view.users, np.diff(histories.offsets))
        for user, entry in zip(owner.tolist(), histories.entries, strict=True):
            assert entry["at"] <= MIDNIGHT
            (ghosts if entry["holdout"] else factual).append((user, *entry.item()))
    assert len(factual) > 10
    assert len(ghosts) > 5
    assert sorted(entries_of(rows, "sends")) == sorted(factual)
    assert sorted(entries_of(rows, "shadow_sends")) == sorted(ghosts)
    known = ledger.read(np.array([row["user"] for row in rows], np.uint64))
    assert [row["version"] for row in rows] == known.versions.tolist()
    assert [row["known_since"] for row in rows] == known.known_since.tolist()


def test_a_snapshot_of_the_same_day_takes_the_other_s_place(tmp_path: Path) -> None:
    ledger = ledger_of_two_days()
    for late in (5, 9):
        write_snapshot(tmp_path, ledger.snapshot(MIDNIGHT), MIDNIGHT, MIDNIGHT + late)
    rows = read_log(tmp_path, "ledger_snapshot", columns=["user", "taken_at"]).to_pylist()
    assert len(rows) == 25
    assert {row["taken_at"] for row in rows} == {MIDNIGHT + 9}


def test_a_snapshot_that_dies_half_way_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_state, "_USERS_A_FILE", 5)
    ledger = ledger_of_two_days()

    def broken():
        for number, view in enumerate(ledger.snapshot(MIDNIGHT, 5)):
            if number == 3:
                raise RuntimeError("the ledger went away")
            yield view

    with pytest.raises(RuntimeError):
        write_snapshot(tmp_path, broken(), MIDNIGHT, MIDNIGHT)
    assert not has_snapshot(tmp_path, MIDNIGHT)
    assert len(read_log(tmp_path, "ledger_snapshot")) == 0
    write_snapshot(tmp_path, ledger.snapshot(MIDNIGHT, 5), MIDNIGHT, MIDNIGHT)
    assert len(read_log(tmp_path, "ledger_snapshot")) == 25


def test_upkeep_takes_one_snapshot_a_day(tmp_path: Path) -> None:
    ledger = ledger_of_two_days()
    assert upkeep(tmp_path, ledger, now_us=MIDNIGHT + 7).snapshot_users == 25
    assert upkeep(tmp_path, ledger, now_us=MIDNIGHT + DAY_US - 1).snapshot_users == -1
    assert upkeep(tmp_path, ledger, now_us=MIDNIGHT + DAY_US).snapshot_users == 25
    marks = read_log(tmp_path, "watermark").to_pylist()
    assert {(row["rows"], row["source"]) for row in marks if row["table"] == "ledger_snapshot"} == {(25, "ledger")}
