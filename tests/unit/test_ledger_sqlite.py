"""The SQLite ledger beyond the contract: ownership, damage, failed transactions, write-behind, erasure on disk."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
import time
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from serve_app.errors import DamagedArtifact, LedgerUnavailable, NotReady, OutcomeUnknown
from serve_app.ledger.protocol import LedgerSettings, UserChanges
from serve_app.ledger.sqlite import SqliteLedger
from serve_app.ledger.sqlite_checkpoint import Checkpoint
from serve_app.ledger.sqlite_file import BUSY_MS, to_key, to_user
from serve_app.ledger.sqlite_index import DecisionIndex
from serve_app.ledger.table import UserTable
from serve_app.ledger.times import LAST_COMMITS
from tests.unit.ledger_support import DAY, NOW, commit_one, plan, real_record, u64


def open_at(folder: Path, **options) -> SqliteLedger:
    return SqliteLedger(folder / "ledger.sqlite", durability="process", **options)


def test_a_second_owner_is_refused_and_told_who_owns_the_file(tmp_path: Path) -> None:
    ledger = open_at(tmp_path)
    script = f"from serve_app.ledger.sqlite import SqliteLedger; SqliteLedger({str(tmp_path / 'ledger.sqlite')!r})"
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "is owned by process" in other.stderr
    with pytest.raises(NotReady, match="is owned by process"):
        open_at(tmp_path)
    ledger.close()
    open_at(tmp_path).close()


def test_a_reader_looks_without_owning(tmp_path: Path) -> None:
    ledger = open_at(tmp_path)
    commit_one(ledger, 1, 11, records=[real_record(1, 11)])
    reader = open_at(tmp_path, read_only=True)
    assert reader.read(u64(1)).histories.entries["request_id"].tolist() == [11]
    assert reader.find_decision(1, 11) == real_record(1, 11)
    assert reader.check() == []
    with pytest.raises(LedgerUnavailable, match="readonly"):
        commit_one(reader, 1, 12)
    reader.close()
    commit_one(ledger, 1, 13)
    ledger.close()


def test_reading_a_ledger_that_is_not_there_names_the_path(tmp_path: Path) -> None:
    with pytest.raises(NotReady, match="there is no ledger at"):
        open_at(tmp_path, read_only=True)


def write(path: Path, text: bytes) -> None:
    path.write_bytes(text)


def alter(statement: str):
    def damage(path: Path) -> None:
        with sqlite3.connect(path) as connection:
            connection.execute(statement)
        connection.close()

    return damage


DAMAGE = {
    "not a database": (lambda path: write(path, b"x" * 5_000), "is damaged"),
    "torn page": (
        lambda path: write(path, path.read_bytes()[:4096] + b"\xff" * 8192 + path.read_bytes()[12_288:]),
        "is damaged",
    ),
    "another program's database": (alter("PRAGMA application_id = 7"), "is not a Hindcast ledger"),
    "a later schema": (alter("PRAGMA user_version = 9"), "schema 9, this version reads 1"),
    "a changed user": (alter("UPDATE users SET state = zeroblob(length(state))"), "fails its checksum"),
    "a missing table": (alter("DROP TABLE meta"), "is damaged"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_refused_with_the_fix(tmp_path: Path, kind: str) -> None:
    ledger = open_at(tmp_path)
    ledger.commit(plan(list(range(1, 400)), [0] * 399, list(range(1, 400)), grants=2))
    ledger.close()
    damage, text = DAMAGE[kind]
    damage(tmp_path / "ledger.sqlite")
    with pytest.raises(DamagedArtifact, match=text) as caught:
        open_at(tmp_path)
    assert caught.value.hint
    with pytest.raises(DamagedArtifact):  # the lock was let go: the same error, not "owned"
        open_at(tmp_path)


def test_a_changed_journal_block_is_found(tmp_path: Path) -> None:
    ledger = open_at(tmp_path)
    commit_one(ledger, 1, 11)
    ledger.close()
    alter("UPDATE blocks SET body = zeroblob(length(body))")(tmp_path / "ledger.sqlite")
    ledger = open_at(tmp_path)
    with pytest.raises(DamagedArtifact, match="journal block 1 fails its checksum"):
        ledger.find_decision(1, 11)
    assert any("block 1 fails" in finding for finding in ledger.check())
    ledger.close()


class Failing:
    """A connection whose COMMIT, or journal insert, fails as often as told."""

    def __init__(self, connection: sqlite3.Connection, statement: str, times: int) -> None:
        self._connection, self._statement, self.left = connection, statement, times

    def execute(self, text: str, *arguments: object) -> sqlite3.Cursor:
        if text.startswith(self._statement) and self.left:
            self.left -= 1
            raise sqlite3.OperationalError("disk I/O error")
        return self._connection.execute(text, *arguments)

    def __getattr__(self, name: str) -> object:
        return getattr(self._connection, name)


@pytest.mark.parametrize(("statement", "error"), [("COMMIT", OutcomeUnknown), ("INSERT INTO blocks", LedgerUnavailable)])
def test_a_failed_transaction_leaves_memory_as_the_file_is(
    tmp_path: Path, statement: str, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = open_at(tmp_path)
    commit_one(ledger, 1, 11)
    group = ledger._group
    monkeypatch.setattr(group, "_connection", Failing(group._connection, statement, 1))
    with pytest.raises(error):
        commit_one(ledger, 1, 12)
    view = ledger.read(u64(1))
    assert (view.versions.tolist(), view.histories.entries["request_id"].tolist()) == ([1], [11])
    assert commit_one(ledger, 1, 13).status.tolist() == [0]
    ledger.close()
    ledger = open_at(tmp_path)
    assert ledger.read(u64(1)).histories.entries["request_id"].tolist() == [11, 13]
    ledger.close()


def test_callers_that_wait_together_share_a_transaction(tmp_path: Path) -> None:
    ledger = open_at(tmp_path)
    began = threading.Barrier(9)
    transactions = []
    transact = ledger._group._transact

    def counted(jobs):
        transactions.append(len(jobs))
        transact(jobs)

    ledger._group._transact = counted

    def work(user: int) -> None:
        began.wait()
        for turn in range(20):
            commit_one(ledger, user, turn)

    workers = [threading.Thread(target=work, args=(user,)) for user in range(8)]
    for worker in workers:
        worker.start()
    began.wait()
    for worker in workers:
        worker.join()
    ledger.close()
    assert sum(transactions) == 160
    assert max(transactions) > 1


def test_tables_follow_the_journal_and_a_start_needs_no_replay(tmp_path: Path) -> None:
    ledger = open_at(tmp_path, checkpoint_rows=50)
    for turn in range(30):
        requests = [turn * 100 + k for k in range(40)]
        records = [real_record(k + 1, request) for k, request in enumerate(requests)]
        ledger.commit(plan(list(range(1, 41)), [turn] * 40, requests, records=records))
    ledger.record_events(u64(3), u64(8), np.array([NOW]))
    ledger.close()
    with sqlite3.connect(tmp_path / "ledger.sqlite") as connection:
        behind = connection.execute("SELECT count(*) FROM blocks, meta WHERE name = 'checkpoint' AND seq > value")
        assert behind.fetchone()[0] == 0
        assert connection.execute("SELECT count(*) FROM users").fetchone()[0] == 40
        assert connection.execute("SELECT count(*) FROM decisions").fetchone()[0] == 1200
    connection.close()
    ledger = open_at(tmp_path)
    assert (ledger.find_decision(3, 2902), ledger.find_decision(3, 5)) == (real_record(3, 2902), None)
    assert (np.diff(ledger.read(u64(*range(1, 41))).histories.offsets) == 30).all()
    assert ledger.recents(u64(3)).items.tolist() == [8]
    assert ledger.check() == []
    ledger.close()


def test_what_changed_is_in_the_tables_in_time_though_few_rows_change_and_it_never_rests() -> None:
    connection, now = sqlite3.connect(":memory:", isolation_level=None), [100.0]
    connection.executescript(resources.files("serve_app.ledger").joinpath("sqlite_schema.sql").read_text("utf-8"))
    table, index = UserTable(LedgerSettings()), DecisionIndex()
    checkpoint = Checkpoint(table, index, every_rows=1_000, every_s=60.0, clock=lambda: now[0])

    def in_tables_after_a_change_at(at: float) -> list[int]:
        now[0] = at
        user, places = u64(int(at)), np.zeros(1, np.int64)
        checkpoint.touch(table.rows_for(user))
        index.add(user, user, places, seq=int(at), keys=[b"k%d" % int(at)], digests=[b"d"])
        while checkpoint.step(connection, int(at), (0, 0), idle=False):
            pass
        return [to_user(key) for (key,) in connection.execute("SELECT key FROM users ORDER BY key")]

    assert in_tables_after_a_change_at(100.0) == []
    assert in_tables_after_a_change_at(159.0) == []
    assert in_tables_after_a_change_at(160.0) == [100, 159, 160]
    assert connection.execute("SELECT count(*) FROM decisions").fetchone() == (3,)
    assert (index._keys, index._fresh.count, index._flushing.count) == ({}, 0, 0)
    assert in_tables_after_a_change_at(161.0) == [100, 159, 160]
    assert in_tables_after_a_change_at(221.0) == [100, 159, 160, 161, 221]


def test_no_statement_of_a_round_or_a_start_looks_at_every_block(tmp_path: Path) -> None:
    said: list[str] = []

    def served_once() -> None:
        ledger = open_at(tmp_path, checkpoint_rows=1, settings=LedgerSettings(key_horizon_us=DAY, event_horizon_us=DAY))
        ledger._write(lambda: ledger._group.connection.set_trace_callback(said.append))
        for turn in range(LAST_COMMITS + 4):
            at = NOW + turn * 3 * DAY
            commit_one(ledger, 1, 11 + turn, at=at)
            ledger.record_events(u64(3), u64(8), np.array([at]))
            assert ledger.dedupe_events(u64(turn), at).all()
            ledger.ack_records([one.id for one in ledger.pending_records(10)])
        ledger.close()

    served_once()
    with sqlite3.connect(tmp_path / "ledger.sqlite") as connection:
        kinds = connection.execute("SELECT kind, count(*) FROM blocks GROUP BY kind").fetchall()
        assert kinds == [(1, LAST_COMMITS), (3, 1)], "what nothing needs any more is gone"
        of_blocks = [text for text in said if "blocks" in text and not text.startswith("INSERT")]
        assert any("kind = 2" in text for text in of_blocks)
        for text in of_blocks:
            plans = [step[3] for step in connection.execute(f"EXPLAIN QUERY PLAN {text}")]
            assert not [step for step in plans if step == "SCAN blocks"], (text, plans)
    connection.close()


def test_acknowledged_blocks_go_after_the_key_horizon(tmp_path: Path) -> None:
    settings = LedgerSettings(key_horizon_us=DAY)
    ledger = open_at(tmp_path, settings=settings)
    commit_one(ledger, 1, 11)
    commit_one(ledger, 2, 12)
    ledger.ack_records([one.id for one in ledger.pending_records(10) if one.user == 1])

    def kept_after_a_restart(ledger: SqliteLedger) -> list[bytes | None]:
        ledger.close()
        ledger = open_at(tmp_path, settings=settings)
        found = [ledger.find_decision(user, request) for user, request in ((1, 11), (2, 12), (3, 13))]
        ledger.close()
        return found

    commit_one(ledger, 3, 13, at=NOW + 3 * DAY)
    assert kept_after_a_restart(ledger) == [b"r11", b"r12", b"r13"], "one commit dated ahead is no proof"
    ledger = open_at(tmp_path, settings=settings)
    for user in range(4, 4 + LAST_COMMITS):
        commit_one(ledger, user, 13, at=NOW + 3 * DAY)
    assert kept_after_a_restart(ledger) == [None, b"r12", b"r13"]


def test_a_damaged_block_that_is_old_is_dropped_unread_and_the_ledger_goes_on(tmp_path: Path) -> None:
    settings = LedgerSettings(key_horizon_us=DAY)
    ledger = open_at(tmp_path, settings=settings)
    commit_one(ledger, 1, 11)
    ledger.ack_records([one.id for one in ledger.pending_records(10)])
    ledger.close()
    with sqlite3.connect(tmp_path / "ledger.sqlite") as connection:
        connection.execute("UPDATE blocks SET body = x'00' WHERE kind = 1")
    connection.close()
    ledger = open_at(tmp_path, settings=settings, checkpoint_rows=1)
    for user in range(2, 4 + LAST_COMMITS):
        commit_one(ledger, user, 13, at=NOW + 3 * DAY)
    ledger.close()
    with sqlite3.connect(tmp_path / "ledger.sqlite") as connection:
        assert connection.execute("SELECT count(*) FROM blocks WHERE body = x'00'").fetchone() == (0,)
        assert connection.execute("SELECT count(*) FROM decisions WHERE request_id = ?", (to_key(11),)).fetchone() == (0,)
    connection.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_ledger_whose_thread_has_ended_says_so_at_once(tmp_path: Path) -> None:
    ledger = open_at(tmp_path)

    def no_more() -> None:
        raise SystemExit

    ledger._group._take = lambda *, wait: no_more()  # type: ignore[assignment, return-value]
    ledger._group._thread.join(10)
    assert not ledger.alive
    with pytest.raises(LedgerUnavailable):
        ledger.read(u64(1))
    with pytest.raises(LedgerUnavailable, match="thread has ended"):
        ledger.commit(plan([1], [0], [11]))


def test_event_ids_of_a_round_become_one_block_and_none_is_forgotten(tmp_path: Path) -> None:
    ledger = open_at(tmp_path, checkpoint_rows=10**9, checkpoint_s=10**9)
    for turn in range(1_203):
        assert ledger.dedupe_events(u64(turn), NOW + turn).all()
    ledger.record_events(u64(3), u64(8), np.array([NOW]))
    ledger.close()
    with sqlite3.connect(tmp_path / "ledger.sqlite") as connection:
        assert connection.execute("SELECT count(*), max(at) FROM blocks WHERE kind = 3").fetchone() == (3, NOW + 1_202)
    connection.close()
    ledger = open_at(tmp_path)
    assert not ledger.dedupe_events(u64(*range(1_203)), NOW, mark=False).any()
    assert ledger.dedupe_events(u64(5_000), NOW).all()
    ledger.close()


def test_commits_do_not_wait_for_whoever_reads_the_file_while_a_user_is_erased(tmp_path: Path) -> None:
    ledger = open_at(tmp_path)
    ledger.commit(plan([77], [0], [11], records=[b"\xfasecret-of-user-77" * 20]))
    wal = tmp_path / "ledger.sqlite-wal"
    with sqlite3.connect(tmp_path / "ledger.sqlite", isolation_level=None) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM users").fetchone()
        ledger.delete_user(77)
        began = time.monotonic()
        commit_one(ledger, 78, 12)
        assert time.monotonic() - began < BUSY_MS / 2000
        assert ledger._truncate_at is not None
        reader.execute("COMMIT")
    reader.close()
    ledger._truncate_at = time.monotonic()
    commit_one(ledger, 78, 13)
    ledger.recents(u64(78))
    while ledger._truncate_at is not None:
        time.sleep(0.01)
    assert wal.stat().st_size == 0
    ledger.close()


def test_an_erased_user_leaves_no_trace_in_the_files(tmp_path: Path) -> None:
    ledger = open_at(tmp_path)
    ledger.put_user(77, UserChanges(zone="Secret/Place", reachable=1))
    secret = b"\xfasecret-of-user-77" * 20
    first = plan([77, 78], [1, 0], [11, 12], deferred_until=np.array([NOW, 0]), outbox=[secret, b""])
    first.records = [secret, real_record(78, 12)]
    ledger.commit(first)
    ledger.close()
    ledger = open_at(tmp_path)
    assert ledger.find_decision(77, 11) == secret
    assert ledger.delete_user(77)
    ledger.close()
    for file in tmp_path.iterdir():
        assert b"secret-of-user-77" not in file.read_bytes()
    ledger = open_at(tmp_path)
    assert (ledger.find_decision(77, 11), ledger.find_decision(78, 12)) == (None, real_record(78, 12))
    assert ledger.check() == []
    ledger.close()


def deferred_records(folder: Path) -> int:
    with sqlite3.connect(folder / "ledger.sqlite") as connection:
        return int(connection.execute("SELECT count(*) FROM deferred").fetchone()[0])


def test_a_deferral_that_is_settled_replaced_dropped_or_erased_leaves_no_record_behind(tmp_path: Path) -> None:
    ledger = open_at(tmp_path)
    for user in (1, 2, 3, 4):
        commit_one(ledger, user, 11, grants=0, deferred_until=np.array([NOW]), records=[real_record(user, 11)])
    assert deferred_records(tmp_path) == 4
    commit_one(ledger, 1, 12, grants=0, settles=u64(11))
    commit_one(ledger, 2, 11, grants=0, deferred_until=np.array([NOW + 1]), records=[real_record(2, 11)])
    assert ledger.drop_deferral(3, 11)
    assert ledger.delete_user(4)
    assert deferred_records(tmp_path) == 1
    assert [(one.user, one.until, one.record) for one in ledger.due_deferrals(NOW + 1, 9)] == [
        (2, NOW + 1, real_record(2, 11))
    ]
    ledger.close()


def test_deferrals_of_earlier_files_hold_their_records_themselves(tmp_path: Path) -> None:
    open_at(tmp_path).close()
    with sqlite3.connect(tmp_path / "ledger.sqlite") as connection:
        connection.execute("DROP TABLE deferred")
        key = 1 - (1 << 63)
        connection.execute("INSERT INTO deferrals VALUES (?, ?, ?, ?)", (key, 11 - (1 << 63), NOW, real_record(1, 11)))
    ledger = open_at(tmp_path)
    commit_one(ledger, 2, 12, grants=0, deferred_until=np.array([NOW]))
    assert [(one.user, one.record) for one in ledger.due_deferrals(NOW, 9)] == [(1, real_record(1, 11)), (2, b"r12")]
    assert ledger.drop_deferral(1, 11)
    assert [one.user for one in ledger.due_deferrals(NOW, 9)] == [2]
    ledger.close()
