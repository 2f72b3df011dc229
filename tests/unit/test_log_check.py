"""`check_log` finds what is damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from serve_app.log.check import check_log
from serve_app.log.fingerprint import code_version, fingerprint, fingerprint_parts
from serve_app.log.journal import Journal, journal_files
from serve_app.log.rows import fill
from serve_app.log.writer import LogWriter


def _events() -> pa.RecordBatch:
    return fill("events", 3, {"user": np.array([1, 2, 3], np.uint64), "event_id": np.array([4, 5, 6], np.uint64)})


def _log(data: Path) -> Path:
    with LogWriter(data, groups=1) as log:
        log.write("events", _events())
    (path,) = (data / "log" / "events").glob("*/*/*.parquet")
    return path


def test_a_sound_log_has_no_problems(tmp_path: Path) -> None:
    _log(tmp_path)
    found = check_log(tmp_path)
    assert (found.files, found.rows, found.problems) == (1, 3, [])


def test_a_missing_file_a_cut_file_and_a_short_file_are_named(tmp_path: Path) -> None:
    path = _log(tmp_path)
    whole = path.read_bytes()
    for content in (None, whole[:-8]):
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        (problem,) = check_log(tmp_path).problems
        assert path.name in problem
    path.write_bytes(whole)
    table = pq.read_table(path, partitioning=None)
    pq.write_table(table.slice(1), path)
    assert "2 rows, 3 listed" in check_log(tmp_path).problems[0]


def test_rows_of_another_bucket_are_found(tmp_path: Path) -> None:
    path = _log(tmp_path)
    table = pq.read_table(path, partitioning=None)
    position = table.schema.get_field_index("user_bucket")
    wrong = table.set_column(position, table.schema.field(position), pa.array([7, 7, 7], pa.uint16()))
    pq.write_table(wrong, path)
    assert "not the bucket of user" in check_log(tmp_path).problems[0]


def test_a_torn_journal_is_a_problem(tmp_path: Path) -> None:
    with Journal(tmp_path, "w") as journal:
        journal.append({"events": _events()})
    (name,) = journal_files(tmp_path)
    path = tmp_path / "journal" / name
    path.write_bytes(path.read_bytes()[:-1])
    assert check_log(tmp_path).problems == ["1 journal files end in a torn frame"]


def test_the_fingerprint_names_what_decides_bits() -> None:
    parts = fingerprint_parts()
    assert {"numpy", "numba", "scann", "xgboost-cpu", "cpu"} <= set(parts)
    assert "absent" not in {parts[one] for one in ("numpy", "numba", "scann", "xgboost-cpu")}
    assert len(fingerprint()) == 16
    assert int(fingerprint(), 16) >= 0
    assert code_version()
