"""Decision records reach the log exactly once, whatever the journal holds and wherever the copying dies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve_app.decide import DecidedBatch
from serve_app.ledger.memory import MemoryLedger
from serve_app.ledger.protocol import Ledger, LedgerSettings
from serve_app.ledger.sqlite import SqliteLedger
from serve_app.log import snapshot as snapshot_module
from serve_app.log.compaction import compact
from serve_app.log.copying import copy_records
from serve_app.log.filling import fill
from serve_app.log.journal import Journal
from serve_app.log.of_records import rows_of_records
from serve_app.log.reader import read_log
from serve_app.log.writer import DAY_US, LogWriter
from serve_app.policy.compile import CompiledPolicy
from serve_app.vocabulary import Action
from tests.unit.decision_support import at, compiled
from tests.unit.ledger_support import Backend, memory_backend, redis_backend, sqlite_backend
from tests.unit.truth_support import asked, decide_on, journal_rows, user_of

NOON = at("2026-03-10T12:00:00")
TABLES = ("requests", "candidates", "decisions")
USERS = [user_of(n) for n in range(12)]


@pytest.fixture(scope="module")
def policy() -> CompiledPolicy:
    return compiled(
        holdouts=[{"id": "g", "scope": "global", "percent": 30, "salt": "g"}],
        experiments=[{"id": "e", "salt": "e", "arms": [{"id": "a", "percent": 25}, {"id": "b", "percent": 75}]}],
    )


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    with redis_backend(tmp_path_factory.mktemp("redis")) as backend:
        yield backend


@pytest.fixture(params=["memory", "sqlite", "redis"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    if request.param == "redis":
        backend: Backend = request.getfixturevalue("redis_server")
        backend.empty()
    else:
        backend = memory_backend() if request.param == "memory" else sqlite_backend(tmp_path / "ledger")
    opened = backend.open()
    yield opened
    opened.close()


def decided_on(ledger: Ledger, policy: CompiledPolicy, users: Sequence[int] = USERS, **more: Any) -> DecidedBatch:
    batch = asked(users, [policy], now=more.pop("now", NOON), **more)
    return decide_on(ledger, policy, batch, keys_of(batch.requests["request_id"]))


def keys_of(request_ids: np.ndarray) -> list[bytes]:
    """Every third request has an idempotency key."""
    return [b"k%015d" % one if one % 3 == 0 else b"" for one in request_ids.tolist()]


def journalled(data: Path, decided: DecidedBatch, policy: CompiledPolicy, **more: Any) -> None:
    keys = keys_of(decided.batch.requests["request_id"])
    with Journal(data, "w") as journal:
        journal.append(journal_rows(decided, policy, keys, **more))


def written(data: Path) -> list[tuple[int, int, int, int]]:
    """(user, request, slot, commit version) of every decision the ledger committed, journal included."""
    rows = read_log(data, "decisions", columns=["user", "request_id", "slot", "commit_version"]).to_pylist()
    return [(r["user"], r["request_id"], r["slot"], r["commit_version"]) for r in rows if r["commit_version"] >= 0]


def expected(decided: DecidedBatch) -> list[tuple[int, int, int, int]]:
    request = decided.batch.requests
    rows = zip(
        request["user"].tolist(), request["request_id"].tolist(), decided.versions.tolist(), decided.status, strict=True
    )
    return sorted((user, rid, 0, version) for user, rid, version, status in rows if status == 1)


def test_what_the_journal_holds_is_acknowledged_and_not_written_again(
    ledger: Ledger, policy: CompiledPolicy, tmp_path: Path
) -> None:
    decided = decided_on(ledger, policy)
    journalled(tmp_path, decided, policy)
    compact(tmp_path, now_us=1)
    result = copy_records(tmp_path, ledger, now_us=NOON + DAY_US, batch=5)
    assert (result.copied, result.known) == (0, len(expected(decided)))
    assert ledger.pending_records(10) == []
    assert written(tmp_path) == expected(decided)


def test_what_the_journal_lacks_is_written_from_the_record(ledger: Ledger, policy: CompiledPolicy, tmp_path: Path) -> None:
    decided = decided_on(ledger, policy)
    result = copy_records(tmp_path, ledger, now_us=NOON + DAY_US, batch=5)
    assert (result.copied, result.known) == (len(expected(decided)), 0)
    assert ledger.pending_records(10) == []
    assert written(tmp_path) == expected(decided)
    again = copy_records(tmp_path, ledger, now_us=NOON + DAY_US)
    assert (again.copied, again.known) == (0, 0)


def test_rows_of_a_record_are_those_the_journal_would_have_held(policy: CompiledPolicy) -> None:
    ledger = MemoryLedger()
    decided = decided_on(ledger, policy)
    journal = journal_rows(decided, policy, keys_of(decided.batch.requests["request_id"]))
    records = ledger.pending_records(100)
    copied = rows_of_records(records).tables
    held = {one.request_id for one in records}
    assert 0 < len(held) <= len(USERS)
    for name in TABLES:
        want = [row for row in journal[name].to_pylist() if row["request_id"] in held]
        got = sorted(copied[name].to_pylist(), key=lambda row: [w["request_id"] for w in want].index(row["request_id"]))
        assert repr(got) == repr(want)  # repr, because NaN != NaN


def test_an_unknown_outcome_that_was_a_grant_is_a_grant_in_the_log(
    ledger: Ledger, policy: CompiledPolicy, tmp_path: Path
) -> None:
    decided = decided_on(ledger, policy)
    journalled(tmp_path, decided, policy, committed=False)
    compact(tmp_path, now_us=1)
    assert written(tmp_path) == []
    assert copy_records(tmp_path, ledger, now_us=NOON + DAY_US).copied == len(expected(decided))
    assert written(tmp_path) == expected(decided)
    for table in TABLES[::2]:
        rows = read_log(tmp_path, table, columns=["user", "request_id"]).to_pylist()
        assert len(rows) == len({tuple(row.values()) for row in rows}) == len(USERS)
    assert len(read_log(tmp_path, "candidates")) == 3 * len(USERS)


def test_a_copy_on_an_earlier_day_that_was_never_committed_gives_way(policy: CompiledPolicy, tmp_path: Path) -> None:
    early, late = MemoryLedger(), MemoryLedger()
    first = decided_on(early, policy)
    journalled(tmp_path, first, policy, committed=False)
    compact(tmp_path, now_us=1)
    second = decided_on(late, policy, now=NOON + 30 * DAY_US)
    copy_records(tmp_path, late, now_us=NOON + 40 * DAY_US)
    assert written(tmp_path) == expected(second)
    rows = read_log(tmp_path, "requests", columns=["request_id", "ts"]).to_pylist()
    granted = {request for _, request, _, _ in expected(second)}
    assert {row["ts"] for row in rows if row["request_id"] in granted} == {NOON + 30 * DAY_US}


def test_what_an_old_day_of_the_log_holds_is_not_written_again(policy: CompiledPolicy, tmp_path: Path) -> None:
    ledger, others = MemoryLedger(), MemoryLedger()
    decided = decided_on(ledger, policy)
    journalled(tmp_path, decided, policy)
    for day in range(1, 8):
        later = decided_on(others, policy, now=NOON + day * DAY_US, first_request=10_000 * day)
        journalled(tmp_path, later, policy)
    compact(tmp_path, now_us=1)
    before = written(tmp_path)
    copy_records(tmp_path, ledger, now_us=NOON + 9 * DAY_US)
    assert ledger.pending_records(1) == []
    assert written(tmp_path) == before


def test_what_is_in_the_journal_or_on_its_way_there_waits(policy: CompiledPolicy, tmp_path: Path) -> None:
    ledger = MemoryLedger()
    decided = decided_on(ledger, policy)
    with Journal(tmp_path, "living") as journal:
        journal.append({"events": fill("events", 1, {"user": np.ones(1, np.uint64)})})
        assert copy_records(tmp_path, ledger, now_us=NOON + 60_000_000).waiting == len(expected(decided)), (
            "its frame may come"
        )
        journalled(tmp_path, decided, policy)
        assert copy_records(tmp_path, ledger, now_us=NOON + DAY_US).waiting == len(expected(decided)), "its frame is there"
        assert len(ledger.pending_records(100)) == len(expected(decided))
        compact(tmp_path, now_us=1)
        assert copy_records(tmp_path, ledger, now_us=NOON + 1).known == len(expected(decided))
    assert written(tmp_path) == expected(decided)


def test_a_frame_that_comes_after_the_copy_is_not_written_again(policy: CompiledPolicy, tmp_path: Path) -> None:
    ledger = MemoryLedger()
    decided = decided_on(ledger, policy)
    copy_records(tmp_path, ledger, now_us=NOON + DAY_US)
    journalled(tmp_path, decided, policy)
    compact(tmp_path, now_us=3)
    assert written(tmp_path) == expected(decided)


def test_of_two_frames_the_committed_one_counts(policy: CompiledPolicy, tmp_path: Path) -> None:
    ledger = MemoryLedger()
    decided = decided_on(ledger, policy)
    journalled(tmp_path, decided, policy, committed=False)
    journalled(tmp_path, decided, policy)
    journalled(tmp_path, decided, policy, committed=False)
    compact(tmp_path, now_us=1)
    assert written(tmp_path) == expected(decided)
    assert len(read_log(tmp_path, "requests")) == len(USERS)
    assert len(read_log(tmp_path, "candidates")) == 3 * len(USERS)


class _Death(BaseException):
    """Stands for the death of the process."""


@pytest.mark.parametrize("point", ["first part", "last part", "commit", "after commit", "acknowledging", "between chunks"])
def test_copying_that_dies_anywhere_repeats_without_loss_or_double(
    point: str, policy: CompiledPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = MemoryLedger()
    decided = decided_on(ledger, policy)
    parts, chunks = 0, 0
    real = {"part": LogWriter._write_part, "commit": snapshot_module.commit, "ack": ledger.ack_records}

    def part(self: LogWriter, *arguments: Any) -> None:
        nonlocal parts
        parts += 1
        real["part"](self, *arguments)
        if point == "first part" or (point == "last part" and parts == 9):
            raise _Death

    def commit(*arguments: Any) -> None:
        if point == "commit":
            raise _Death
        real["commit"](*arguments)
        if point == "after commit":
            raise _Death

    def ack(ids: Sequence[int]) -> None:
        nonlocal chunks
        chunks += 1
        if point == "acknowledging":
            raise _Death
        real["ack"](ids)
        if point == "between chunks":
            raise _Death

    monkeypatch.setattr(LogWriter, "_write_part", part)
    monkeypatch.setattr("serve_app.log.writer.commit", commit)
    monkeypatch.setattr(ledger, "ack_records", ack)
    with pytest.raises(_Death):
        copy_records(tmp_path, ledger, now_us=NOON + DAY_US, batch=4)
    monkeypatch.undo()
    copy_records(tmp_path, ledger, now_us=NOON + DAY_US, batch=4)
    assert ledger.pending_records(10) == []
    assert written(tmp_path) == expected(decided)
    assert len(read_log(tmp_path, "candidates")) == 3 * len(expected(decided))


def test_a_damaged_record_stays_and_holds_nobody_up(policy: CompiledPolicy, tmp_path: Path) -> None:
    ledger = MemoryLedger()
    decided = decided_on(ledger, policy)
    bad = ledger.pending_records(1)[0]
    ledger._records[bad.user, bad.request_id] = type(bad)(bad.id, bad.user, bad.request_id, bad.version, b"HRx")
    result = copy_records(tmp_path, ledger, now_us=NOON + DAY_US, batch=2)
    assert (result.copied, result.unreadable) == (len(expected(decided)) - 1, 1)
    assert [one.id for one in ledger.pending_records(10)] == [bad.id]


def test_the_ledger_s_file_stays_as_large_as_its_horizon(policy: CompiledPolicy, tmp_path: Path) -> None:
    settings = LedgerSettings(key_horizon_us=DAY_US, history_horizon_us=DAY_US, history_max_entries=4)
    path = tmp_path / "ledger.sqlite"
    ledger = SqliteLedger(path, settings, durability="process", checkpoint_rows=1)
    users = [user_of(n) for n in range(300)]
    sizes = []
    for day in range(14):
        for hour in (0, 6):
            first = 1000 * (1 + 2 * day + (hour > 0))
            now = NOON + day * DAY_US + hour * 3_600_000_000
            decided_on(ledger, policy, users, now=now, first_request=first)
        copy_records(tmp_path / "data", ledger, now_us=now + DAY_US)
        sizes.append(path.stat().st_size)
    ledger.close()
    assert max(sizes[7:]) <= max(sizes[3:7]), sizes
    assert len(written(tmp_path / "data")) > 14 * 500


def test_records_of_sends_say_send(policy: CompiledPolicy) -> None:
    ledger = MemoryLedger()
    decided = decided_on(ledger, policy)
    rows = rows_of_records(ledger.pending_records(100)).tables["decisions"].to_pylist()
    sent = {
        r
        for r, a in zip(decided.batch.requests["request_id"], decided.batch.requests["action"], strict=True)
        if a == Action.send
    }
    assert {row["request_id"] for row in rows if row["granted"]} == {int(one) for one in sent}
    assert np.isfinite([row["p_action"] for row in rows]).all()
