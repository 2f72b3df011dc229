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
from serve_app.log.check import check_log
from serve_app.log.compaction import compact
from serve_app.log.erasure import Erased, erase_user, erased_users, load_erased
from serve_app.log.filling import fill
from serve_app.log.journal import Journal, journal_files
from serve_app.log.reader import bucket_groups, read_files, read_log
from serve_app.log.snapshot import load_snapshot
from serve_app.log.upkeep import upkeep

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
