"""A user who asked to be forgotten is shown to nobody at once, and is off the disk after two upkeeps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.errors import DamagedArtifact
from serve_app.ids import hash_id
from serve_app.ledger.memory import MemoryLedger
from serve_app.log import forgetting, writer
from serve_app.log.check import check_log
from serve_app.log.compaction import compact
from serve_app.log.erasure import Erased, erase_user, erased_users, load_erased
from serve_app.log.filling import fill
from serve_app.log.journal import Journal, journal_files
from serve_app.log.reader import bucket_groups, read_files, read_log
from serve_app.log.snapshot import load_snapshot
from serve_app.log.upkeep import upkeep
from serve_app.log.writer import LogWriter

ANN, BOB = hash_id("ann"), hash_id("bob")
T = 1_700_000_000_000_000


def facts(names: list[str], ts: list[int]) -> dict[str, pa.RecordBatch]:
    users = np.array([hash_id(name) for name in names], np.uint64)
    n = len(names)
    ids = np.arange(1, n + 1, dtype=np.uint64) + np.uint64(ts[0])
    return {
        "events": fill("events", n, {"user": users, "ts": ts, "event_id": ids, "ingested_at": ts}),
        "requests": fill("requests", n, {"user": users, "ts": ts, "request_id": ids}),
        "users": fill("users", n, {"user": users, "ts": ts, "user_id": pa.array([f"name-of-{name}" for name in names])}),
    }


def people(data: Path, table: str = "events") -> list[int]:
    return sorted(set(read_log(data, table, columns=["user"])["user"].to_pylist()))


def on_disk(data: Path, needle: bytes) -> list[str]:
    """Files that hold these bytes."""
    return [str(path.relative_to(data)) for path in data.rglob("*") if path.is_file() and needle in path.read_bytes()]


def in_parquet(data: Path, user: int) -> list[str]:
    found = []
    for path in data.rglob("*.parquet"):
        rows = pq.read_table(path, partitioning=None)
        if "user" in rows.column_names and user in rows["user"].to_pylist():
            found.append(path.name)
    return found


def test_from_the_moment_of_erasure_no_reader_shows_the_user(tmp_path: Path) -> None:
    with Journal(tmp_path, "w") as journal:
        journal.append(facts(["ann", "bob"], [T, T + 1]))
    compact(tmp_path, now_us=1)
    with Journal(tmp_path, "w") as journal:
        journal.append(facts(["ann", "bob"], [T + 10, T + 11]))
        for table in ("events", "requests", "users"):
            assert people(tmp_path, table) == sorted([ANN, BOB])
        erase_user(tmp_path, ANN, T + 10)
        for table in ("events", "requests", "users"):
            assert people(tmp_path, table) == [BOB]
        (group,) = {one.files["events"] for one in bucket_groups(tmp_path, ["events"]) if one.low <= ANN >> 52 <= one.high}
        assert len(read_files(group, "events", columns=["quantity"])) == len(read_files(group, "events"))
        assert ANN not in read_files(group, "events", columns=["user"])["user"].to_pylist()


def test_what_the_user_does_afterwards_is_kept(tmp_path: Path) -> None:
    erase_user(tmp_path, ANN, T)
    with Journal(tmp_path, "w") as journal:
        journal.append(facts(["ann", "ann"], [T, T + 1]))
    assert len(read_log(tmp_path, "events")) == 1
    compact(tmp_path, now_us=1)
    assert read_log(tmp_path, "events", columns=["ts"])["ts"].to_pylist() == [T + 1]
    assert erased_users(tmp_path) == {ANN: T}


def test_two_upkeeps_take_the_user_off_the_disk(tmp_path: Path) -> None:
    ledger, name = MemoryLedger(), b"name-of-ann"
    catalogue(tmp_path)
    with Journal(tmp_path, "w") as journal:
        journal.append(facts(["ann", "bob"], [T, T + 1]))
    upkeep(tmp_path, ledger, now_us=T + 2)
    journal = Journal(tmp_path, "living")
    journal.append(facts(["ann", "bob"], [T + 3, T + 4]))
    erase_user(tmp_path, ANN, T + 5)
    assert on_disk(tmp_path, name)
    first = upkeep(tmp_path, ledger, now_us=T + 6)
    assert first.forgotten >= 3
    second = upkeep(tmp_path, ledger, now_us=T + 7)
    assert second.overwritten > 0
    assert on_disk(tmp_path, name) == []
    assert in_parquet(tmp_path, ANN) == []
    assert in_parquet(tmp_path, BOB)
    journal.append(facts(["bob"], [T + 8]))
    assert upkeep(tmp_path, ledger, now_us=T + 9).forgotten == 0
    assert people(tmp_path) == [BOB]
    assert read_log(tmp_path, "events", columns=["ts"])["ts"].to_pylist() == [T + 1, T + 4, T + 8]
    journal.close()
    upkeep(tmp_path, ledger, now_us=T + 10)
    assert check_log(tmp_path).problems == []
    users = pq.read_table(tmp_path / "catalogue/users.parquet")["user_id"].to_pylist()
    assert users == ["bob"]
    assert pq.read_table(tmp_path / "catalogue/reviews.parquet")["user_id"].to_pylist() == ["", "bob", ""]


def catalogue(data: Path) -> None:
    from serve_app.catalogue import table_of

    folder = data / "catalogue"
    folder.mkdir()
    users = {"user_id": ["ann", "bob"], "zone": ["", ""], "region": ["", ""], "created_at": [0, 0]}
    pq.write_table(table_of("users", users), folder / "users.parquet")
    reviews = {"review_id": ["1", "2", "3"], "item_id": ["i"] * 3, "user_id": ["ann", "bob", ""], "at": [0] * 3}
    reviews |= {"stars": [5.0] * 3, "text": ["good"] * 3, "helpful_votes": [None] * 3, "verified": [True] * 3}
    pq.write_table(table_of("reviews", reviews), folder / "reviews.parquet")


def test_a_killed_upkeep_is_ended_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Death(BaseException):
        pass

    with Journal(tmp_path, "w") as journal:
        journal.append(facts(["ann", "bob"], [T, T + 1]))
    upkeep(tmp_path, None, now_us=T + 2)
    erase_user(tmp_path, ANN, T + 5)

    def die(*_: object) -> None:
        raise Death

    monkeypatch.setattr("serve_app.log.writer.commit", die)
    with pytest.raises(Death):
        upkeep(tmp_path, None, now_us=T + 6)
    monkeypatch.undo()
    assert people(tmp_path) == [BOB]
    upkeep(tmp_path, None, now_us=T + 7)
    upkeep(tmp_path, None, now_us=T + 8)
    assert in_parquet(tmp_path, ANN) == []
    assert load_snapshot(tmp_path).overwritten == 1


def test_a_line_cut_short_was_never_promised_and_hides_no_later_one(tmp_path: Path) -> None:
    erase_user(tmp_path, ANN, 5)
    path = tmp_path / "log/erased.jsonl"
    with path.open("ab") as file:
        file.write(b'{"user": "00')
    assert erased_users(tmp_path) == {ANN: 5}
    erase_user(tmp_path, BOB, 6)
    assert erased_users(tmp_path) == {ANN: 5, BOB: 6}
    path.write_bytes(b'{"user": "zz", "at": 1}\n' + path.read_bytes())
    with pytest.raises(DamagedArtifact, match="line 1"):
        load_erased(tmp_path)


@given(
    st.dictionaries(st.integers(0, 6), st.integers(0, 9), max_size=5),
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 12)), max_size=30),
)
@settings(max_examples=60, deadline=None)
def test_exactly_the_rows_up_to_the_instant_are_covered(at: dict[int, int], rows: list[tuple[int, int]]) -> None:
    users, ts = np.array([u for u, _ in rows], np.uint64), np.array([t for _, t in rows], np.int64)
    assert Erased(at, 0).covers(users, ts).tolist() == [user in at and t <= at[user] for user, t in rows]


def test_journal_files_of_dead_writers_go_with_the_compaction(tmp_path: Path) -> None:
    with Journal(tmp_path, "w") as journal:
        journal.append(facts(["ann"], [T]))
    erase_user(tmp_path, ANN, T)
    upkeep(tmp_path, None, now_us=T + 1)
    upkeep(tmp_path, None, now_us=T + 2)
    assert journal_files(tmp_path) == {}
    assert on_disk(tmp_path, b"name-of-ann") == []


def test_files_that_left_the_log_with_an_erased_users_rows_have_no_grace_and_others_do(tmp_path: Path) -> None:
    cat = next(one for one in map(str, range(1_000)) if hash_id(one) >> 62 == ANN >> 62)  # in the files of the same range
    for names, at in (([cat], T), (["ann"], T + 10), ([cat], T + 20)):
        with Journal(tmp_path, "w") as journal:
            journal.append(facts(names, [at]))
        compact(tmp_path, now_us=1)
    trash = set(load_snapshot(tmp_path).trash)
    held = {one for one in trash if Path(one).name in in_parquet(tmp_path, ANN)}
    assert set() < held < trash
    erase_user(tmp_path, ANN, T + 30)
    upkeep(tmp_path, None, now_us=T + 31)
    upkeep(tmp_path, None, now_us=T + 32)
    assert in_parquet(tmp_path, ANN) == []
    assert all((tmp_path / "log" / one).is_file() for one in trash - held)
    assert people(tmp_path) == [hash_id(cat)]


def test_a_file_that_left_the_log_and_cannot_be_read_stops_no_erasure(tmp_path: Path) -> None:
    for at in (T, T + 10):
        with Journal(tmp_path, "w") as journal:
            journal.append(facts(["ann"], [at]))
        compact(tmp_path, now_us=1)
    for one in load_snapshot(tmp_path).trash:
        (tmp_path / "log" / one).unlink()
    erase_user(tmp_path, ANN, T + 30)
    assert upkeep(tmp_path, None, now_us=T + 31).forgotten == 5
    upkeep(tmp_path, None, now_us=T + 32)
    assert in_parquet(tmp_path, ANN) == []


def test_only_row_groups_of_users_erased_since_the_last_time_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "_ROW_GROUP", 8)
    names = [f"user-{one}" for one in range(256)]
    with LogWriter(tmp_path, groups=1) as log:
        for table, rows in facts(names, [T] * 256).items():
            log.write(table, rows)
    looked: list[int] = []
    real = forgetting.read_files

    def read_files(paths: list[str], table: str, **named: object) -> pa.Table:
        rows: pa.Table = real(paths, table, **named)  # type: ignore[arg-type]
        looked.extend([len(rows)] if "columns" in named else [])
        return rows

    monkeypatch.setattr(forgetting, "read_files", read_files)
    for name in names[:40]:
        erase_user(tmp_path, hash_id(name), T)
    assert forgetting.forget(tmp_path, groups=1) == 3 * 40
    looked.clear()
    erase_user(tmp_path, hash_id(names[-1]), T)
    assert forgetting.forget(tmp_path, groups=1) == 3
    in_bucket = sum(hash_id(one) >> 52 == hash_id(names[-1]) >> 52 for one in names[40:])
    assert looked == [in_bucket] * 3
    assert people(tmp_path) == sorted(map(hash_id, names[40:-1]))


def test_rows_of_before_an_erasure_are_written_by_nobody(tmp_path: Path) -> None:
    """The ledger's records are read before the log's lock is taken, and no later `forget` would look for these users."""
    erase_user(tmp_path, ANN, T)
    upkeep(tmp_path, None, now_us=T)
    with LogWriter(tmp_path) as log:
        assert log.write("events", facts(["ann", "ann", "bob"], [T, T + 1, T])["events"]) == 2
    paths = [path for one in bucket_groups(tmp_path, ["events"]) for path in one.files["events"]]
    rows = read_files(paths, "events", columns=["ts"], with_erased=True)
    assert sorted(rows["ts"].to_pylist()) == [T, T + 1]


def test_who_is_erased_while_upkeep_is_at_work_is_off_the_disk_after_two_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path, "living")
    journal.append(facts(["bob"], [T]))

    def compacted(*given: object, **named: object) -> object:
        result = compact(*given, **named)  # type: ignore[arg-type]
        journal.append(facts(["ann"], [T + 1]))
        erase_user(tmp_path, ANN, T + 2)
        return result

    with monkeypatch.context() as patch:
        patch.setattr("serve_app.log.upkeep.compact", compacted)
        upkeep(tmp_path, None, now_us=T + 3)
    for at in (T + 4, T + 5):
        assert on_disk(tmp_path, b"name-of-ann")
        upkeep(tmp_path, None, now_us=at)
    assert on_disk(tmp_path, b"name-of-ann") == on_disk(tmp_path, ANN.to_bytes(8, "little")) == []
    assert people(tmp_path) == [BOB]
    journal.close()


def test_a_user_erased_twice_is_new_by_either_line(tmp_path: Path) -> None:
    for user, at in ((ANN, 5), (BOB, 6), (ANN, 9)):
        erase_user(tmp_path, user, at)
    erased = load_erased(tmp_path)
    for after, upto, users in ((0, 1, [ANN]), (1, 2, [BOB]), (2, 3, [ANN]), (0, 3, sorted([ANN, BOB])), (3, 3, [])):
        named = erased.named_in(after, upto)
        assert (named.users.tolist(), named.at.tolist()) == (users, [{ANN: 9, BOB: 6}[one] for one in users])
