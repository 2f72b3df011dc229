"""A log that version 1 wrote reads as one of today's: places by name, new columns filled, in files and in frames."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from serve_app.errors import DamagedArtifact
from serve_app.ids import bucket_of
from serve_app.log import frames
from serve_app.log.compaction import compact
from serve_app.log.filling import fill
from serve_app.log.journal import Journal
from serve_app.log.migrations import schema_as_of
from serve_app.log.places import region_indices, zone_indices
from serve_app.log.plan import plain
from serve_app.log.reader import read_log
from serve_app.log.schema import SCHEMA_VERSION, TABLES
from serve_app.log.snapshot import load_snapshot
from serve_app.policy.zones import zone_index
from serve_app.regions import region_index

SEOUL, KOREA = zone_index("Asia/Seoul"), region_index("KR")


def old_requests(users: list[int]) -> pa.Table:
    """As version 1 would have written them: every second user's place is unknown."""
    n = len(users)
    known = np.arange(n) % 2 == 0
    today = fill(
        "requests",
        n,
        {"user": np.array(users, np.uint64), "request_id": np.arange(1, n + 1, dtype=np.uint64), "ts": np.arange(n)},
    )
    then = schema_as_of("requests", 1)
    columns = {name: today[name] for name in then.names}
    columns |= {"zone": pa.array(np.where(known, SEOUL, -1).astype(np.int16))}
    columns |= {"region": pa.array(np.where(known, KOREA, -1).astype(np.int16))}
    columns |= {"schema_version": pa.array(np.ones(n, np.int16))}
    return pa.table(columns, schema=then)


def old_log(data: Path, users: list[int]) -> None:
    folder = data / "log/requests/day=1970-01-01/buckets=0000-4095"
    folder.mkdir(parents=True)
    rows = old_requests(users).replace_schema_metadata({"schema_version": "1"})
    pq.write_table(rows, folder / "part-1.parquet")
    listed = {"table": "requests", "path": "requests/day=1970-01-01/buckets=0000-4095/part-1.parquet"}
    listed |= {"day": "1970-01-01", "low": 0, "high": 4095, "rows": len(users)}
    body = {"schema_version": 1, "sequence": 1, "files": [listed], "consumed": {}, "retired": [], "trash": []}
    (data / "log/snapshot.json").write_text(json.dumps(body))


def old_frame(rows: pa.Table, key: int) -> bytes:
    wire = pa.schema([pa.field(one.name, plain(one.type), one.nullable) for one in rows.schema])
    batch = rows.cast(wire).combine_chunks().to_batches()[0]
    message = batch.serialize().to_pybytes()
    payload = struct.pack("<HH", 1, 1) + struct.pack("<HHI", list(TABLES).index("requests"), 0, len(message)) + message
    check = frames._head_check(len(payload), key)
    return frames._HEAD.pack(frames._MAGIC, len(payload), check, xxhash.xxh3_64_intdigest(payload, key)) + payload


def test_files_of_version_1_read_with_places_by_name(tmp_path: Path) -> None:
    old_log(tmp_path, [3, 4, 5])
    rows = read_log(tmp_path, "requests")
    assert rows.schema.names == TABLES["requests"].names
    assert rows["zone"].to_pylist() == ["Asia/Seoul", "", "Asia/Seoul"]
    assert rows["region"].to_pylist() == ["KR", "", "KR"]
    assert set(rows["schema_version"].to_pylist()) == {SCHEMA_VERSION}
    assert zone_indices(rows["zone"]).tolist() == [SEOUL, -1, SEOUL]
    assert region_indices(rows["region"]).tolist() == [KOREA, -1, KOREA]
    assert read_log(tmp_path, "requests", columns=["region"])["region"].to_pylist() == ["KR", "", "KR"]


def test_frames_of_version_1_are_compacted_into_files_of_today(tmp_path: Path) -> None:
    with Journal(tmp_path, "w") as journal:
        journal.append({"users": fill("users", 1, {"user": np.ones(1, np.uint64)})})
    (path,) = (tmp_path / "journal/w").glob("*.frames")
    key = int(path.stem.split("-")[1], 16) + path.stat().st_size & (1 << 64) - 1
    with path.open("ab") as file:
        file.write(old_frame(old_requests([7, 8]), key))
    assert compact(tmp_path, now_us=1).rows["requests"] == 2
    assert read_log(tmp_path, "requests", journal=False)["zone"].to_pylist() == ["Asia/Seoul", ""]


def test_an_old_log_that_grows_is_written_anew(tmp_path: Path) -> None:
    old_log(tmp_path, [3, 4])
    with Journal(tmp_path, "w") as journal:
        columns = {"user": np.array([9], np.uint64), "request_id": np.array([99], np.uint64), "region": pa.array(["US"])}
        journal.append({"requests": fill("requests", 1, columns)})
    compact(tmp_path, groups=1, now_us=1)
    (file,) = [one for one in load_snapshot(tmp_path).files if one.table == "requests"]
    written = pq.read_schema(tmp_path / "log" / file.path)
    assert written.metadata[b"schema_version"] == str(SCHEMA_VERSION).encode()
    assert read_log(tmp_path, "requests")["region"].to_pylist() == ["KR", "", "US"]


def test_snapshots_of_version_1_were_taken_when_they_say(tmp_path: Path) -> None:
    then = schema_as_of("ledger_snapshot", 1)
    today = fill("ledger_snapshot", 1, {"user": np.array([5], np.uint64), "ts": [4], "as_of": [4], "version": [2]})
    folder = tmp_path / "log/ledger_snapshot/day=1970-01-01/buckets=0000-4095"
    folder.mkdir(parents=True)
    rows = pa.table({name: today[name] for name in then.names}, schema=then.with_metadata({"schema_version": "1"}))
    pq.write_table(rows, folder / "part-1.parquet")
    listed = {"table": "ledger_snapshot", "path": "ledger_snapshot/day=1970-01-01/buckets=0000-4095/part-1.parquet"}
    listed |= {"day": "1970-01-01", "low": 0, "high": 4095, "rows": 1}
    body = {"schema_version": 1, "sequence": 1, "files": [listed], "consumed": {}, "retired": [], "trash": []}
    (tmp_path / "log/snapshot.json").write_text(json.dumps(body))
    (row,) = read_log(tmp_path, "ledger_snapshot", columns=["taken_at", "known_since", "version"]).to_pylist()
    assert row == {"taken_at": 4, "known_since": np.iinfo(np.int64).min, "version": 2}


def test_a_version_from_the_future_is_refused(tmp_path: Path) -> None:
    old_log(tmp_path, [3])
    body = json.loads((tmp_path / "log/snapshot.json").read_text())
    (tmp_path / "log/snapshot.json").write_text(json.dumps({**body, "schema_version": 3}))
    with pytest.raises(DamagedArtifact, match="schema version 3, this code reads 1 to 2"):
        read_log(tmp_path, "requests")


def test_buckets_of_old_rows_hold(tmp_path: Path) -> None:
    old_log(tmp_path, [1 << 60, 3])
    rows = read_log(tmp_path, "requests", buckets=(256, 256))
    assert bucket_of(rows["user"].to_numpy()).tolist() == [256]
