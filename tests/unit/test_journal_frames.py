"""Journal frames: read whole or not at all."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import threading
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.errors import DamagedArtifact, InvalidInput, ResourceShortage
from serve_app.log import frames
from serve_app.log.frames import Rows, decode_payloads, encode_payload, framed, scan_frames
from serve_app.log.journal import Journal, journal_files, read_journal
from serve_app.log.rows import fill
from serve_app.log.schema import SCHEMA_VERSION

KEY = 0x0123456789ABCDEF


def decode_payload(payload: memoryview, tables: Collection[str] | None = None) -> dict[str, pa.RecordBatch]:
    """Rows of one frame by table."""
    return {name: rows for name, ((_, rows),) in decode_payloads([payload], tables).items()}


def encode_frame(rows: Mapping[str, Rows], *, key: int, offset: int) -> bytes:
    return framed(encode_payload(rows), key=key, offset=offset)


def events(ids: list[int], *, attributes: str | None = None) -> pa.RecordBatch:
    n = len(ids)
    columns = {"user": np.array(ids, np.uint64) << np.uint64(50), "event_id": np.array(ids, np.uint64)}
    return fill("events", n, {**columns, "attributes": pa.array([attributes] * n, pa.string())})


def requests(ids: list[int]) -> pa.RecordBatch:
    columns = {"user": np.array(ids, np.uint64), "request_id": np.array(ids, np.uint64)}
    names = pa.array([f"release-{one % 3}" for one in ids]).dictionary_encode()
    return fill("requests", len(ids), {**columns, "release": names})


def _file_of(groups: list[list[int]]) -> tuple[bytes, list[int]]:
    """Bytes of a journal file with one frame per group, and the frames' ends."""
    out, ends = b"", []
    for ids in groups:
        out += encode_frame({"events": events(ids)}, key=KEY, offset=len(out))
        ends.append(len(out))
    return out, ends


def _ids_in(content: bytes) -> list[list[int]]:
    view = memoryview(content)
    scan = scan_frames(view, key=KEY)
    return [decode_payload(view[low:high])["events"]["event_id"].to_pylist() for low, high in scan.payloads]


GROUPS = st.lists(st.lists(st.integers(0, 2**13), min_size=1, max_size=5), min_size=1, max_size=6)


@given(groups=GROUPS)
@settings(max_examples=50, deadline=None)
def test_what_was_written_is_read_back(groups: list[list[int]]) -> None:
    assert _ids_in(_file_of(groups)[0]) == groups


def test_a_large_frame_is_packed_and_read_back() -> None:
    ids = list(range(5_000))
    packed, end = _file_of([ids])
    raw = len(events(ids).serialize())
    assert end[0] < raw / 2
    assert _ids_in(packed) == [ids]


def test_a_packed_frame_that_does_not_unpack_is_called_damaged() -> None:
    payload = struct.pack("<HHI", 0xFFFF, 0, 100) + b"no such thing"
    with pytest.raises(DamagedArtifact, match="cannot be unpacked"):
        decode_payload(memoryview(payload))


@given(groups=GROUPS, data=st.data())
@settings(max_examples=150, deadline=None)
def test_a_torn_file_gives_exactly_its_whole_frames(groups: list[list[int]], data: st.DataObject) -> None:
    content, ends = _file_of(groups)
    cut = data.draw(st.integers(0, len(content)))
    whole = sum(end <= cut for end in ends)
    assert _ids_in(content[:cut]) == groups[:whole]


@given(groups=GROUPS, data=st.data())
@settings(max_examples=200, deadline=None)
def test_flipped_bits_lose_their_own_frame_and_no_other(groups: list[list[int]], data: st.DataObject) -> None:
    content, ends = _file_of(groups)
    damaged = bytearray(content)
    places = data.draw(st.sets(st.integers(0, len(content) * 8 - 1), min_size=1, max_size=4))
    for bit in places:
        damaged[bit // 8] ^= 1 << bit % 8
    starts = [0, *ends[:-1]]
    hit = [any(start <= bit // 8 < end for bit in places) for start, end in zip(starts, ends, strict=True)]
    assert _ids_in(bytes(damaged)) == [ids for ids, bad in zip(groups, hit, strict=True) if not bad]


def test_a_corrupt_frame_in_the_middle_is_counted() -> None:
    content, ends = _file_of([[1], [2], [3]])
    damaged = bytearray(content)
    damaged[ends[0] + 40] ^= 1
    scan = scan_frames(memoryview(bytes(damaged)), key=KEY)
    assert (len(scan.payloads), scan.damaged, scan.torn) == (2, 1, 0)


def test_a_frame_hidden_in_the_data_of_a_corrupt_frame_is_not_read() -> None:
    # A client can send any text as an attribute; shifted to its place in the file it must not pass for a frame.
    inner = encode_frame({"events": events([666])}, key=KEY, offset=0)
    content = encode_frame({"events": events([1], attributes=inner.decode("latin-1"))}, key=KEY, offset=0)
    raw = bytearray(content + inner)
    raw[30] ^= 1
    assert _ids_in(bytes(raw)) == []


def test_a_frame_holds_several_tables_and_dictionaries_survive() -> None:
    frame = encode_frame({"events": events([1, 2]), "requests": requests([5, 6, 7])}, key=KEY, offset=0)
    (span,) = scan_frames(memoryview(frame), key=KEY).payloads
    tables = decode_payload(memoryview(frame)[span[0] : span[1]])
    assert tables["requests"].to_pylist() == requests([5, 6, 7]).to_pylist()
    assert tables["events"].to_pylist() == events([1, 2]).to_pylist()


def test_frames_of_another_schema_version_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "SCHEMA_VERSION", 99)
    monkeypatch.setitem(frames._WIRE, 99, frames._WIRE[SCHEMA_VERSION])
    frame = encode_frame({"events": events([1])}, key=KEY, offset=0)
    monkeypatch.undo()
    with pytest.raises(DamagedArtifact, match="99"):
        decode_payload(memoryview(frame)[frames.HEADER_BYTES :])


def test_rows_of_another_table_are_refused() -> None:
    with pytest.raises(InvalidInput, match="requests"):
        encode_frame({"requests": events([1])}, key=KEY, offset=0)


def _read_ids(data: Path) -> list[int]:
    return sorted(one for batch in read_journal(data, {}).rows.get("events", []) for one in batch["event_id"].to_pylist())


@pytest.mark.parametrize("durability", ["process", "disk"])
def test_threads_append_side_by_side_and_files_rotate(tmp_path: Path, durability: str) -> None:
    with Journal(tmp_path, "w", durability=durability, file_bytes=20_000) as journal:  # type: ignore[arg-type]

        def work(base: int) -> None:
            for one in range(20):
                journal.append({"events": events([base * 100 + one])})

        threads = [threading.Thread(target=work, args=(base,)) for base in range(4)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
    assert _read_ids(tmp_path) == [base * 100 + one for base in range(4) for one in range(20)]
    assert len(journal_files(tmp_path)) > 1


@pytest.mark.parametrize("durability", ["process", "disk"])
def test_only_who_was_promised_the_disk_waits_for_it(
    tmp_path: Path, durability: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[int] = []
    monkeypatch.setattr("os.fsync", waited.append)
    journal = Journal(tmp_path, "w", durability=durability, file_bytes=1)  # type: ignore[arg-type]
    for n in range(3):
        journal.append({"events": events([n])})
    assert len(journal_files(tmp_path)) == 3
    assert bool(waited) is (durability == "disk")
    journal.close()
    assert waited


def test_a_living_writers_unfinished_frame_is_not_called_torn(tmp_path: Path) -> None:
    with Journal(tmp_path, "w") as journal:
        journal.append({"events": events([1])})
        (name,) = journal_files(tmp_path)
        with (tmp_path / "journal" / name).open("ab") as file:
            file.write(b"\x89HCJF half a frame")
        alive = read_journal(tmp_path, {})
        assert (alive.torn, alive.finished) == (0, [])
    dead = read_journal(tmp_path, {})
    assert (dead.torn, dead.finished) == (1, [name])
    assert _read_ids(tmp_path) == [1]


def test_a_full_disk_leaves_no_half_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path, "w")
    journal.append({"events": events([1])})
    real = os.write
    monkeypatch.setattr(os, "write", lambda handle, content: real(handle, content[: len(content) // 2]))
    with pytest.raises(ResourceShortage):
        journal.append({"events": events([2])})
    monkeypatch.undo()
    journal.append({"events": events([3])})
    journal.close()
    assert _read_ids(tmp_path) == [1, 3]
    assert read_journal(tmp_path, {}).damaged == 0


def test_what_append_returned_from_survives_kill_9(tmp_path: Path) -> None:
    code = f"""
import os, signal
from tests.unit.test_journal_frames import events
from serve_app.log.journal import Journal
from serve_app.log.schema import SCHEMA_VERSION
journal = Journal({str(tmp_path)!r}, "w")
for one in range(50):
    journal.append({{"events": events([one])}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == -9
    assert _read_ids(tmp_path) == list(range(50))
    assert len(read_journal(tmp_path, {}).finished) == 1


def test_a_writers_name_must_be_a_file_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="writer"):
        Journal(tmp_path, "../elsewhere")
