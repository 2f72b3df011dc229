"""Compaction, the Parquet log and its reader: nothing lost, nothing doubled."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.errors import DamagedArtifact, InvalidInput, NotReady
from serve_app.ids import bucket_of
from serve_app.log import compaction
from serve_app.log import snapshot as snapshot_module
from serve_app.log import writer as writer_module
from serve_app.log.compaction import compact
from serve_app.log.journal import Journal, journal_files
from serve_app.log.lag import log_lag
from serve_app.log.once import groups_of
from serve_app.log.reader import bucket_groups, log_days, read_files, read_log
from serve_app.log.rows import fill
from serve_app.log.schema import SORT_KEYS, TABLES
from serve_app.log.snapshot import Snapshot, load_snapshot
from serve_app.log.writer import DAY_US, LogWriter

EVENT = st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 3 * DAY_US), st.integers(0, 30))
BATCHES = st.lists(st.lists(EVENT, min_size=1, max_size=8), min_size=1, max_size=6)


def events(rows: list[tuple[int, int, int]]) -> pa.RecordBatch:
    """(user, ts, event_id); ingested at ts + 5."""
    user, ts, event_id = zip(*rows, strict=True) if rows else ((), (), ())
    columns = {
        "user": np.array(user, np.uint64),
        "ts": np.array(ts, np.int64),
        "event_id": np.array(event_id, np.uint64),
        "ingested_at": np.array(ts, np.int64) + 5,
    }
    return fill("events", len(rows), columns)


def _requests(users: list[int], *, day: int = 0) -> pa.Table:
    n = len(users)
    columns = {
        "user": np.array(users, np.uint64),
        "ts": np.arange(n, dtype=np.int64) + day * DAY_US,
        "request_id": np.arange(n, dtype=np.uint64),
        "release": pa.array([f"r{one % 2}" for one in range(n)]).dictionary_encode(),
    }
    return pa.Table.from_batches([fill("requests", n, columns)])


def _distinct(batches: list[list[tuple[int, int, int]]]) -> list[list[tuple[int, int, int]]]:
    """The same events with one time per (user, event id), as a client that sends again would."""
    first: dict[tuple[int, int], tuple[int, int, int]] = {}
    return [[first.setdefault((one[0], one[2]), one) for one in batch] for batch in batches]


def _journal(data: Path, batches: list[list[tuple[int, int, int]]], writer: str = "w") -> None:
    with Journal(data, writer) as journal:
        for batch in batches:
            journal.append({"events": events(batch)})


def _read(data: Path, *, journal: bool = True) -> list[tuple[int, int, int]]:
    rows = read_log(data, "events", columns=["user", "ts", "event_id"], journal=journal)
    return list(zip(*(rows[name].to_pylist() for name in ("user", "ts", "event_id")), strict=True))


def _sorted(rows: set[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    return sorted(rows)


@given(batches=BATCHES, groups=st.sampled_from([1, 4, 64]))
@settings(max_examples=25, deadline=None)
def test_compaction_keeps_every_event_once_and_repeats_without_effect(batches: list, groups: int) -> None:
    batches = _distinct(batches)
    expected = _sorted({one for batch in batches for one in batch})
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        _journal(data, batches)
        first = compact(data, groups=groups, now_us=1)
        assert _read(data) == expected
        assert first.rows["events"] + first.duplicates["events"] == sum(map(len, batches))
        assert compact(data, groups=groups, now_us=2).rows == {}
        assert _read(data) == _read(data, journal=False) == expected


@given(batches=BATCHES, order=st.randoms(use_true_random=False))
@settings(max_examples=20, deadline=None)
def test_the_order_of_frames_and_compactions_does_not_matter(batches: list, order) -> None:  # type: ignore[no-untyped-def]
    batches = _distinct(batches)
    shuffled = list(batches)
    order.shuffle(shuffled)
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        _journal(Path(one), batches)
        compact(one, now_us=1)
        for batch in shuffled:  # one file, one compaction each
            _journal(Path(two), [batch])
            compact(two, groups=4, now_us=1)
        assert _read(Path(one)) == _read(Path(two))


@given(users=st.lists(st.integers(0, 2**64 - 1), max_size=60), groups=st.sampled_from([1, 2, 16, 4096]))
@settings(max_examples=25, deadline=None)
def test_every_row_is_in_the_one_file_of_its_bucket(users: list[int], groups: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        with LogWriter(folder, groups=groups) as log:
            log.write("requests", _requests(users))
        found: Counter[int] = Counter()
        for group in bucket_groups(folder, ["requests"]):
            rows = read_files(group.files["requests"], "requests")
            buckets = bucket_of(rows["user"].to_numpy())
            assert ((buckets >= group.low) & (buckets <= group.high)).all()
            found.update(rows["user"].to_pylist())
        assert found == Counter(users)


def test_groups_of_different_writers_are_joined_where_they_overlap(tmp_path: Path) -> None:
    users = [one << 52 for one in range(0, 4096, 256)]
    for groups in (1, 8):
        with LogWriter(tmp_path, groups=groups) as log:
            log.write("requests", _requests(users))
    (group,) = bucket_groups(tmp_path, ["requests"])
    assert (group.low, group.high) == (0, 4095)
    assert len(read_files(group.files["requests"], "requests")) == 2 * len(users)


def test_rows_stand_in_replay_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    users = rng.integers(0, 2**63, 200).tolist()
    with LogWriter(tmp_path) as log:
        log.write("requests", _requests(users, day=1))
        log.write("requests", _requests(users[::-1], day=0))
    rows = read_log(tmp_path, "requests")
    keys = list(zip(*(rows[name].to_pylist() for name in SORT_KEYS["requests"]), strict=True))
    assert keys == sorted(keys)
    assert len(keys) == 400


def test_a_reader_takes_days_buckets_and_columns(tmp_path: Path) -> None:
    users = [one << 52 for one in range(0, 4096, 64)]
    with LogWriter(tmp_path) as log:
        for day in range(3):
            log.write("requests", _requests(users, day=day))
    assert log_days(tmp_path, "requests") == ["1970-01-01", "1970-01-02", "1970-01-03"]
    rows = read_log(tmp_path, "requests", columns=["release", "user"], days=["1970-01-02"], buckets=(64, 191))
    assert rows.column_names == ["release", "user"]
    assert rows["user"].to_pylist() == [64 << 52, 128 << 52]
    with pytest.raises(InvalidInput, match="colour"):
        read_log(tmp_path, "requests", columns=["colour"])
    with pytest.raises(InvalidInput, match="nothing"):
        read_log(tmp_path, "nothing")


def test_days_and_buckets_apply_to_journal_frames_too(tmp_path: Path) -> None:
    _journal(tmp_path, [[(0, 0, 1), (5 << 52, DAY_US, 2), (9 << 52, DAY_US, 3)]])
    rows = read_log(tmp_path, "events", columns=["event_id"], days=["1970-01-02"], buckets=(0, 5))
    assert rows["event_id"].to_pylist() == [2]


def test_an_empty_log_reads_as_no_rows_of_the_right_schema(tmp_path: Path) -> None:
    for table in TABLES:
        rows = read_log(tmp_path, table)
        assert len(rows) == 0
        assert rows.schema.names == TABLES[table].names
        assert rows.schema.types == TABLES[table].types


def test_a_living_writers_frames_are_compacted_and_its_file_stays(tmp_path: Path) -> None:
    with Journal(tmp_path, "w") as journal:
        for one in range(3):
            journal.append({"events": events([(one, one, one)])})
            assert compact(tmp_path, now_us=1).rows == {"events": 1}
            assert len(_read(tmp_path)) == one + 1
        assert len(journal_files(tmp_path)) == 1
    compact(tmp_path, now_us=1)  # consumed to its end
    compact(tmp_path, now_us=1)  # deleted by the commit after
    assert journal_files(tmp_path) == {}
    assert len(_read(tmp_path)) == 3


def test_small_files_are_merged(tmp_path: Path) -> None:
    for one in range(5):
        _journal(tmp_path, [[(one, one, one)]])
        compact(tmp_path, now_us=one, grace_us=0)
    assert len([one for one in load_snapshot(tmp_path).files if one.table == "events"]) == 1
    assert len(list((tmp_path / "log" / "events").glob("*/*/*.parquet"))) == 2  # the live one, and its predecessor


def test_files_that_a_reader_listed_outlive_the_commits_of_an_hour(tmp_path: Path) -> None:
    _journal(tmp_path, [[(1, 1, 1)]])
    compact(tmp_path, now_us=1)
    (group,) = bucket_groups(tmp_path, ["events"])
    for one in (2, 3, 4):
        _journal(tmp_path, [[(1, one, one)]])
        compact(tmp_path, now_us=1)
    assert read_files(group.files["events"], "events", columns=["event_id"])["event_id"].to_pylist() == [1]
    _journal(tmp_path, [[(1, 5, 5)]])
    compact(tmp_path, now_us=1, grace_us=0)
    with pytest.raises(DamagedArtifact, match="No such file"):
        read_files(group.files["events"], "events")
    assert len(load_snapshot(tmp_path).trash) == 2, "events and watermark of the newest commit"


def test_trash_is_due_after_its_grace_and_where_the_clock_was_set_back() -> None:
    trash = Snapshot(trash={"now": 100, "an hour ago": 90, "at once": 0, "in the future": 101})
    assert trash.due(100, 10) == ["an hour ago", "at once", "in the future"]


def test_trash_of_an_earlier_version_goes_with_the_next_commit_and_it_reads_ours(tmp_path: Path) -> None:
    for one in (1, 2):
        _journal(tmp_path, [[(1, one, one)]])
        compact(tmp_path, now_us=1)
    manifest = tmp_path / "log" / "snapshot.json"
    said = json.loads(manifest.read_text())
    paths = list(said["trash"])  # what that version makes of it: paths alone
    assert len(paths) == 2
    assert all((tmp_path / "log" / one).is_file() for one in paths)
    manifest.write_text(json.dumps(said | {"trash": paths, "erased": 3}))
    loaded = load_snapshot(tmp_path)
    assert (loaded.trash, loaded.erased) == (dict.fromkeys(paths, 0), 0)
    with LogWriter(tmp_path):
        pass
    assert not any((tmp_path / "log" / one).exists() for one in paths)
    assert load_snapshot(tmp_path).trash == {}


def test_a_pass_holds_so_many_bytes_that_are_new(tmp_path: Path) -> None:
    """However large the files of living writers have grown."""
    with ExitStack() as stack:
        journals = [stack.enter_context(Journal(tmp_path, f"w{one}")) for one in range(4)]
        for number, journal in enumerate(journals):
            journal.append({"events": events([(number, 1, one) for one in range(2_000)])})
        compact(tmp_path, now_us=1)
        before = journal_files(tmp_path)
        for number, journal in enumerate(journals[:3]):
            journal.append({"events": events([(number, 2, 5_000)])})
        new = sum(journal_files(tmp_path).values()) - sum(before.values())
        said: list[tuple[int, int]] = []
        result = compact(tmp_path, now_us=1, pass_bytes=new, progress=lambda *at: said.append(at))
        assert new < min(before.values())
        assert (result.commits, result.rows, said) == (1, {"events": 3}, [(new, new)])
        assert len(_read(tmp_path)) == 4 * 2_000 + 3
        for number, journal in enumerate(journals[:3]):
            journal.append({"events": events([(number, 3, 6_000)])})
        assert compact(tmp_path, now_us=1, pass_bytes=1).commits == 3, "a pass for a file with nothing new"


def test_what_waits_in_a_file_counts_from_the_newest_compaction(tmp_path: Path) -> None:
    """Also where that found nothing new."""
    with Journal(tmp_path, "w") as journal:
        journal.append({"events": events([(1, 1, 1)])})
        compact(tmp_path, now_us=1)
        os.utime(tmp_path / "log" / "snapshot.json", (1, 1))
        assert compact(tmp_path, now_us=1).rows == {}
        journal.append({"events": events([(1, 2, 2)])})
        assert 0 <= log_lag(tmp_path, now_us=time.time_ns() // 1000).seconds < 600


def test_a_row_is_written_anew_a_few_times_however_many_compactions_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "_SMALL_ROWS", 10)
    written: list[int] = []
    real = LogWriter._write_part

    def write_part(self: LogWriter, table: str, *rest: object) -> None:
        real(self, table, *rest)  # type: ignore[arg-type]
        written.extend([self._written[-1].rows] if table == "events" else [])

    monkeypatch.setattr(LogWriter, "_write_part", write_part)
    passes, rows = 70, 10
    for one in range(passes):
        _journal(tmp_path, [[(one, number, number) for number in range(rows)]])
        compact(tmp_path, now_us=one, groups=1)
    files = [one.rows for one in load_snapshot(tmp_path).files if one.table == "events"]
    assert sorted(files) == [10] * 6 + [640]  # 70 passes: 64 of them gathered by eights, twice; six on their own
    assert sum(written) == 62 * 10 + 7 * 80 + 640  # a row at most once for each size
    assert len(_read(tmp_path)) == passes * rows


@given(batches=BATCHES, below=st.integers(1, 40))
@settings(max_examples=25, deadline=None)
def test_no_row_is_lost_or_doubled_where_files_are_of_all_sizes(batches: list, below: int) -> None:
    batches = _distinct(batches)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(compaction, "_SMALL_ROWS", 2)
        patch.setattr(compaction, "_FAN_OUT", 2)
        for batch in batches:
            _journal(Path(folder), [batch])
            compact(folder, groups=1, now_us=1, merge_below_rows=below)
        assert _read(Path(folder)) == _sorted({one for batch in batches for one in batch})


def test_files_too_large_for_memory_are_left_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However few their rows: candidates are wide."""
    monkeypatch.setattr(compaction, "_SMALL_ROWS", 1)
    monkeypatch.setattr(compaction, "_FAN_OUT", 2)
    rows = 100
    width = pa.Table.from_batches([events([(1, 1, 1)] * rows)]).nbytes / rows
    written: set[str] = set()
    for one in range(40):
        made = pa.Table.from_batches([events([(number << 54, 0, 1000 * one + number) for number in range(rows)])])
        with LogWriter(tmp_path, groups=4) as writer:
            compaction.merge_rows(writer, "events", made, merge_bytes=int(100 * width))
        files = {file.path: file.rows for file in load_snapshot(tmp_path).files if file.table == "events"}
        assert written <= set(files), "a file that was large enough was written again"
        written |= {path for path, count in files.items() if count >= 100}
    assert written
    assert max(files.values()) < 2 * 100
    assert len(_read(tmp_path)) == 40 * rows


def test_one_day_and_range_after_the_other_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    real = compaction.read_files

    def read_files(files: list[str], *rest: object, **named: object) -> pa.Table:
        found: pa.Table = real(files, *rest, **named)  # type: ignore[arg-type]
        read.append(len(found))
        return found

    monkeypatch.setattr(compaction, "read_files", read_files)
    rows = [(number << 52, day * DAY_US, 10 * day + number) for day in range(2) for number in range(0, 4096, 256)]
    for shift in range(2):
        made = pa.Table.from_batches([events([(user, ts, event_id + 5000 * shift) for user, ts, event_id in rows])])
        with LogWriter(tmp_path, groups=4) as writer:
            compaction.merge_rows(writer, "events", made)
    assert read == [len(rows) // 8] * 8
    assert len(load_snapshot(tmp_path).files) == 8
    assert len(_read(tmp_path)) == 2 * len(rows)


KEYS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30)


@given(sides=st.lists(KEYS, min_size=1, max_size=3))
def test_rows_have_the_same_number_where_user_and_request_are_the_same(sides: list[list[tuple[int, int]]]) -> None:
    numbers = groups_of(*((np.array(one)[:, 0], np.array(one)[:, 1]) for one in sides))
    found = {}
    for keys, of_side in zip(sides, numbers, strict=True):
        for key, number in zip(keys, of_side.tolist(), strict=True):
            assert found.setdefault(key, number) == number
    assert len(set(found.values())) == len(found)


def test_an_event_sent_again_after_a_compaction_is_dropped_and_counted(tmp_path: Path) -> None:
    _journal(tmp_path, [[(1, 10, 7)]])
    compact(tmp_path, now_us=1)
    _journal(tmp_path, [[(1, 10, 7), (1, 11, 8)]])
    assert compact(tmp_path, now_us=2).duplicates == {"events": 1}
    assert _read(tmp_path) == [(1, 10, 7), (1, 11, 8)]
    assert sum(read_log(tmp_path, "watermark", columns=["duplicates"])["duplicates"].to_pylist()) == 1


def test_a_decision_that_is_written_again_is_kept_once(tmp_path: Path) -> None:
    # The ledger's records are copied into the log too, and may have been journalled before.
    columns = {"user": np.array([1, 1, 2], np.uint64), "request_id": np.array([5, 5, 5], np.uint64)}
    rows = fill("decisions", 3, {**columns, "slot": np.array([0, 1, 0], np.int32)})
    for _ in range(2):
        with Journal(tmp_path, "w") as journal:
            journal.append({"decisions": rows})
            journal.append({"decisions": rows})
        compact(tmp_path, now_us=1)
    found = read_log(tmp_path, "decisions", columns=["user", "slot"]).to_pylist()
    assert found == [{"user": 1, "slot": 0}, {"user": 1, "slot": 1}, {"user": 2, "slot": 0}]


class _Crash(BaseException):
    """Stands for the death of the process: nothing may catch it."""


@pytest.mark.parametrize("point", ["first part", "second part", "before commit", "after commit"])
def test_a_crash_at_any_point_loses_and_doubles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    rows = [(one << 55, one * DAY_US // 4, one) for one in range(12)]
    _journal(tmp_path, [rows[:6]])
    compact(tmp_path, now_us=1)
    _journal(tmp_path, [rows[6:], rows[:2]])
    parts = 0
    real_part, real_commit = LogWriter._write_part, snapshot_module.commit

    def write_part(self: LogWriter, *arguments: object) -> None:
        nonlocal parts
        parts += 1
        if parts == {"first part": 1, "second part": 2}.get(point):
            raise _Crash
        real_part(self, *arguments)  # type: ignore[arg-type]

    def commit(*arguments: object) -> None:
        if point == "after commit":
            real_commit(*arguments)  # type: ignore[arg-type]
        raise _Crash

    with monkeypatch.context() as patch:
        patch.setattr(LogWriter, "_write_part", write_part)
        patch.setattr(writer_module, "commit", commit)
        # A process that dies does not tidy up behind itself.
        patch.setattr(LogWriter, "__exit__", _exit_without_tidying)
        with pytest.raises(_Crash):
            compact(tmp_path, now_us=2)
    seen = _read(tmp_path)
    assert set(seen) == set(rows)
    compact(tmp_path, now_us=3)
    assert _read(tmp_path) == sorted(rows)
    compact(tmp_path, now_us=4)
    listed = {one.path for one in load_snapshot(tmp_path).files} | set(load_snapshot(tmp_path).trash)
    on_disk = {path.relative_to(tmp_path / "log").as_posix() for path in (tmp_path / "log").glob("*/*/*/*")}
    assert on_disk == listed


def _exit_without_tidying(self: LogWriter, kind: object, error: object, trace: object) -> None:
    with self._stack:
        if kind is None:
            self._commit()


def test_torn_frames_are_counted_in_the_watermark(tmp_path: Path) -> None:
    _journal(tmp_path, [[(1, 1, 1)], [(2, 2, 2)]])
    (name,) = journal_files(tmp_path)
    path = tmp_path / "journal" / name
    path.write_bytes(path.read_bytes()[:-3])
    result = compact(tmp_path, now_us=1)
    assert (result.rows, result.torn) == ({"events": 1}, 1)
    assert sum(read_log(tmp_path, "watermark")["damaged_frames"].to_pylist()) == 1
    assert compact(tmp_path, now_us=2).torn == 0


def test_nothing_of_a_failed_write_is_seen(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="nothing"), LogWriter(tmp_path) as log:  # noqa: PT012
        log.write("requests", _requests([1, 2]))
        log.write("nothing", _requests([1, 2]))
    assert len(read_log(tmp_path, "requests")) == 0
    assert not list((tmp_path / "log").glob("*/*/*/*"))


def test_two_writers_at_once_are_refused(tmp_path: Path) -> None:
    with LogWriter(tmp_path), pytest.raises(NotReady, match="another process"), LogWriter(tmp_path):
        pass


def test_rows_that_do_not_fit_their_table_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="request_id"), LogWriter(tmp_path) as log:
        log.write("requests", _requests([1]).drop_columns(["request_id"]))


def test_a_damaged_file_and_another_schema_version_are_clear_errors(tmp_path: Path) -> None:
    with LogWriter(tmp_path, groups=1) as log:
        log.write("requests", _requests([1]))
    (path,) = (tmp_path / "log" / "requests").glob("*/*/*.parquet")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DamagedArtifact, match=path.name):
        read_log(tmp_path, "requests")
    path.write_bytes(whole)
    manifest = tmp_path / "log" / "snapshot.json"
    manifest.write_text(manifest.read_text().replace('"schema_version": 2', '"schema_version": 9'))
    with pytest.raises(DamagedArtifact, match="schema version 9"):
        read_log(tmp_path, "requests")
