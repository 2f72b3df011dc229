"""Rows kept as given: read back, they are what `fill` makes of the same columns."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.batch import Ragged, lengths_to_offsets
from serve_app.errors import DamagedArtifact, InvalidInput
from serve_app.log import frames
from serve_app.log import journal as journal_module
from serve_app.log.filling import Names, fill, to_arrow
from serve_app.log.frames import decode_payloads, encode_payload
from serve_app.log.given import PART_ROWS, Form, given_rows
from serve_app.log.given_reader import read_given
from serve_app.log.journal import Journal, read_journal
from serve_app.log.plan import DERIVED, Column, plan_of_table
from serve_app.log.schema import SCHEMA_VERSION, TABLES
from serve_app.log.short import Repeats, Runs, Some
from tests.unit.test_journal_frames import decode_payload

Array = npt.NDArray[Any]
TEXTS = ("", "a", "서울", "Asia/Seoul,x")


def _numbers(draw: st.DrawFn, dtype: np.dtype[Any], count: int) -> Array:
    """Any bits of the type (NaNs of every kind among them); booleans are 0 or 1."""
    if dtype.names is not None:
        out = np.zeros(count, dtype)
        for name in dtype.names:
            out[name] = _numbers(draw, dtype[name], count)
        return out
    raw = draw(st.binary(min_size=count * dtype.itemsize, max_size=count * dtype.itemsize))
    return np.frombuffer(raw, np.uint8) % 2 == 1 if dtype == np.bool_ else np.frombuffer(raw, dtype)


def _flat(draw: st.DrawFn, column: Column, rows: int) -> Any:
    """Numbers of the column's type; strided; of another type that fits; an Arrow array, whole or chunked."""
    assert column.flat is not None
    shape = draw(st.sampled_from(["plain", "strided", "list", "wider", "arrow", "chunked", "runs"]))
    if shape == "runs":
        ends = sorted(draw(st.lists(st.integers(0, rows), max_size=3)))
        counts = np.diff(np.array([0, *ends, rows], np.int64))
        return Runs(_numbers(draw, column.flat, len(counts)), Repeats.of(counts))
    if shape == "strided":
        return _numbers(draw, column.flat, 2 * rows)[::2]
    values = _numbers(draw, column.flat, rows)
    if shape == "list":
        return values.tolist()
    if shape == "wider" and column.flat.kind in "iu" and column.flat.itemsize < 8:
        return values.astype(np.int64)
    if shape == "arrow":
        return pa.array(values, column.type)
    return pa.chunked_array([pa.array(values, column.type)]) if shape == "chunked" else values


def _lists(draw: st.DrawFn, column: Column, rows: int) -> Any:
    assert column.inner is not None
    shape = draw(st.sampled_from(["ragged", "matrix", "turned", "some", "wider", "arrow"]))
    if shape in ("matrix", "turned", "some") and column.inner.names is None and pa.types.is_list(column.type):
        width = draw(st.integers(0, 3))
        if shape == "some":
            known = np.array(draw(st.lists(st.booleans(), min_size=rows, max_size=rows)), np.bool_)
            values = _numbers(draw, column.inner, int(known.sum()) * width).reshape(int(known.sum()), width)
            return Some(known, values, _numbers(draw, column.inner, 1)[0])
        values = _numbers(draw, column.inner, rows * width)
        return values.reshape(rows, width) if shape == "matrix" else values.reshape(width, rows).T
    lengths = draw(st.lists(st.integers(0, 3), min_size=rows, max_size=rows))
    lists = Ragged(_numbers(draw, column.inner, sum(lengths)), lengths_to_offsets(lengths))
    if shape == "wider" and column.inner == np.dtype(np.float32):
        with np.errstate(invalid="ignore"):  # signalling NaNs
            return Ragged(lists.values.astype(np.float64), lists.offsets)
    return to_arrow(lists, column, rows) if shape == "arrow" else lists


def _column(draw: st.DrawFn, column: Column, rows: int) -> Any:
    if column.flat is not None:
        return _flat(draw, column, rows)
    if column.inner is not None:
        return _lists(draw, column, rows)
    texts = [draw(st.sampled_from(TEXTS)) for _ in range(rows)]
    if not column.named:  # plain texts: some null where the table has nulls
        return pa.array([None if one == "" and column.spec.nullable else one for one in texts], column.type)
    form = draw(st.sampled_from(["text", "names", "arrow", "strings"]))
    if form == "text":
        return draw(st.sampled_from(TEXTS))
    if form == "names":
        return Names(np.array([TEXTS.index(one) for one in texts], np.int32), TEXTS)
    return pa.array(texts, pa.string()).dictionary_encode() if form == "arrow" else pa.array(texts, pa.string())


Given = tuple[int, dict[str, Any]]


def _columns(draw: st.DrawFn, table: str, names: list[str]) -> Given:
    """Some rows of a table, its columns in any form they may be given in."""
    plan, rows = plan_of_table(table), draw(st.integers(1, 4))
    columns = {name: _column(draw, plan[name], rows) for name in names}
    if "user" in plan:
        columns["user"] = _numbers(draw, np.dtype(np.uint64), rows)
    absent = sorted(set(plan) - set(columns))
    return rows, {**columns, draw(st.sampled_from(absent)): None} if absent else columns


@st.composite
def tables(draw: st.DrawFn) -> tuple[str, list[Given]]:
    """A table, and frames of it: most have the same columns."""
    table = draw(st.sampled_from([name for name in TABLES if name != "ledger_snapshot"]))
    sets = st.sets(st.sampled_from(sorted(set(TABLES[table].names) - set(DERIVED) - {"user"})), max_size=12)
    names = [sorted(draw(sets)) for _ in range(2)]
    return table, [_columns(draw, table, draw(st.sampled_from(names))) for _ in range(draw(st.integers(1, 4)))]


def _bits(batch: pa.RecordBatch) -> list[Any]:
    """Every value, floats by their bits, so that NaNs compare."""
    out: list[Any] = []
    for array in batch.columns:
        values = array.dictionary_decode() if pa.types.is_dictionary(array.type) else array
        out.append((array.null_count, values.to_pylist() if array.null_count else _raw(values)))
    return out


def _raw(values: pa.Array) -> Any:
    if pa.types.is_floating(values.type):
        return np.asarray(values).tobytes()
    if pa.types.is_list(values.type):
        return [len(one) for one in values.to_pylist()], _raw(values.flatten())
    if pa.types.is_struct(values.type):
        return [_raw(part) for part in values.flatten()]
    return values.to_pylist()


@given(tables(), st.data())
@settings(max_examples=300, deadline=None)
def test_rows_read_back_are_what_fill_makes_of_the_same_columns(
    example: tuple[str, list[Given]], data: st.DataObject
) -> None:
    table, frames_given = example
    direct = [fill(table, rows, columns) for rows, columns in frames_given]
    kept = [given_rows(table, rows, columns) for rows, columns in frames_given]
    mixed = [data.draw(st.sampled_from(pair)) for pair in zip(direct, kept, strict=True)]  # both forms in one file
    for written in (kept, mixed):
        payloads = [memoryview(encode_payload({table: one})) for one in written]
        places, read = zip(*decode_payloads(payloads)[table], strict=True)
        assert places == tuple(range(len(written)))
        for one, expected in zip(read, direct, strict=True):
            one.validate(full=True)
            assert one.schema.equals(TABLES[table])
            assert _bits(one) == _bits(expected)


@given(tables())
@settings(max_examples=100, deadline=None)
def test_texts_of_a_frame_stand_in_order_of_their_first_row_in_either_form(example: tuple[str, list[Given]]) -> None:
    table, [(rows, columns), *_] = example
    read = [
        decode_payload(memoryview(encode_payload({table: make(table, rows, columns)})))[table] for make in (fill, given_rows)
    ]
    for one, other in zip(*(batch.columns for batch in read), strict=True):
        if pa.types.is_dictionary(one.type):
            assert one.dictionary.to_pylist() == other.dictionary.to_pylist()


def test_a_file_read_in_several_runs_gives_the_rows_of_each_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Journal(tmp_path, "w") as journal:
        for one in range(20):
            users = {"user": np.full(one % 3, one, np.uint64)}
            events = {"events": fill("events", 1, {"user": np.full(1, one, np.uint64)})} if one % 4 else {}
            journal.append({"requests": given_rows("requests", one % 3, users), **events})
    for run_bytes in (1, 500, 1 << 20):
        monkeypatch.setattr(journal_module, "_RUN_BYTES", run_bytes)
        read = read_journal(tmp_path, {})
        written = [one for one in range(20) if one % 3 or one % 4]
        assert read.frames == len(written)
        for table, most in (("requests", 3), ("events", 4)):
            own = [one for one in written if one % most]
            assert [written[number] for number in read.numbers[table]] == own
            users_read = [batch["user"].to_pylist() for batch in read.rows[table]]
            assert users_read == [[one] * (one % 3 if table == "requests" else 1) for one in own]


def _request(**columns: Any) -> dict[str, Any]:
    return {"user": np.array([1, 2], np.uint64), **columns}


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        ({"colour": np.zeros(2)}, "colour"),
        ({"width": np.zeros(3, np.int32)}, "width"),
        ({"recents": Ragged.empty(1, np.uint64)}, "recents"),
        ({"zone": Names(np.zeros(3, np.int32), ("a",))}, "zone"),
        ({"zone": Names(np.array([0, 1], np.int32), ("a",))}, "zone"),
        ({"recents_age_s": np.zeros((1, 2), np.float32)}, "recents_age_s"),
        ({"recents_age_s": Some(np.ones(3, np.bool_), np.zeros((3, 2), np.float32), np.float32(0))}, "recents_age_s"),
        ({"width": Runs.constant(np.int32(1), 3)}, "width"),
        ({"salt": pa.array([1], pa.uint64())}, "salt"),
    ],
)
def test_a_column_of_the_wrong_name_or_length_is_refused_when_given(columns: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidInput, match=named):
        given_rows("requests", 2, _request(**columns))


@pytest.mark.parametrize(
    "columns",
    [
        {"width": np.array([1, 1 << 40])},
        {"surface": np.array([1.5, 2.0])},
        {"width": "wide"},
        {"recents": Ragged.of([[-1], [2]], np.int64)},
        {"release": np.zeros(2)},
        {"salt": np.ones(2, ">u8")},
        {"width": Runs.constant(np.int64(1 << 40), 2)},
    ],
)
def test_values_that_do_not_fit_are_refused_when_given_as_fill_refuses_them(columns: dict[str, Any]) -> None:
    with pytest.raises(Exception) as direct:  # pyarrow's own, of several kinds
        fill("requests", 2, _request(**columns))
    with pytest.raises(type(direct.value)):
        given_rows("requests", 2, _request(**columns))


def test_rows_without_a_user_are_refused_where_the_table_has_one() -> None:
    with pytest.raises(InvalidInput, match="user"):
        given_rows("requests", 1, {"request_id": np.ones(1, np.uint64)})


def test_arrays_may_change_after_they_were_given() -> None:
    users, recents = np.array([1, 2], np.uint64), np.array([[1.0], [2.0]], np.float32)
    kept = given_rows("requests", 2, {"user": users, "recents_age_s": recents})
    users[:], recents[:] = 9, 9
    (rows,) = read_given("requests", [kept.content], SCHEMA_VERSION)
    assert rows["user"].to_pylist() == [1, 2]
    assert rows["recents_age_s"].to_pylist() == [[1.0], [2.0]]


def test_matrices_that_were_written_row_by_row_are_read() -> None:
    values = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    plan = plan_of_table("requests")
    bodies = {"user": np.array([1, 2], np.uint64).tobytes(), "recents_age_s": values.tobytes()}
    forms = {"user": Form.flat, "recents_age_s": Form.matrix}
    entries = [part for name, body in bodies.items() for part in (plan[name].place, forms[name], len(body))]
    content = struct.pack("<IHH" + "HHI" * 2, 2, 2, 0, *entries) + b"".join(bodies.values())
    (rows,) = read_given("requests", [content], SCHEMA_VERSION)
    assert rows["recents_age_s"].to_pylist() == values.tolist()


@pytest.mark.parametrize("rows", [PART_ROWS - 1, PART_ROWS, PART_ROWS + 1, 3 * PART_ROWS + 5, 10 * PART_ROWS])
def test_matrices_of_many_rows_are_read_back_whole_and_in_part(rows: int) -> None:
    rng = np.random.default_rng(rows)
    values, users = rng.normal(size=(rows, 3)).astype(np.float32), np.zeros(rows, np.uint64)
    known = rng.random(rows) < 0.7
    some = Some(known, values[known], np.float32(np.nan))
    for given_values, expected in ((values, values), (some, some.whole())):
        kept = given_rows("candidates", rows, {"user": users, "features": given_values})
        (read,) = read_given("candidates", [kept.content], SCHEMA_VERSION)
        assert read["features"].flatten().to_numpy().tobytes() == expected.tobytes()


def test_some_rows_of_a_matrix_are_taken_as_of_the_whole() -> None:
    known = np.array([True, False, True, True, False])
    some = Some(known, np.arange(6, dtype=np.float32).reshape(3, 2), np.float32(np.nan))
    for rows in ([], [0], [1, 4], [0, 1, 3], [0, 1, 2, 3, 4]):
        at = np.array(rows, np.int64)
        assert some.take(at).whole().tobytes() == some.whole()[at].tobytes()


def test_one_frame_holds_rows_of_both_forms() -> None:
    events = {"user": np.ones(1, np.uint64), "event_id": np.array([5], np.uint64)}
    payload = encode_payload({"events": fill("events", 1, events), "requests": given_rows("requests", 2, _request())})
    tables = decode_payload(memoryview(payload))
    assert tables["events"]["event_id"].to_pylist() == [5]
    assert tables["requests"]["user"].to_pylist() == [1, 2]
    assert list(decode_payload(memoryview(payload), ["events"])) == ["events"]


def test_code_that_knows_record_batches_alone_refuses_given_rows_by_their_version() -> None:
    versions = []
    for make in (given_rows, fill):
        payload = encode_payload({"requests": make("requests", 2, _request())})
        versions += np.frombuffer(frames._unpacked(memoryview(payload)), "<u2", 1).tolist()
    assert versions[0] not in frames.READABLE
    assert versions[1] == SCHEMA_VERSION


def test_rows_of_one_table_given_for_another_are_refused() -> None:
    with pytest.raises(InvalidInput, match="requests"):
        encode_payload({"decisions": given_rows("requests", 2, _request())})


def test_a_form_of_later_code_is_called_damaged() -> None:
    payload = bytearray(encode_payload({"requests": given_rows("requests", 2, _request())}))
    payload[4 + 2] = 7  # the form of the first table's rows
    with pytest.raises(DamagedArtifact, match="form 7"):
        decode_payload(memoryview(bytes(payload)))
