"""Batches that mean harm: small bodies that would take much memory, and bytes of every kind where a stream is expected."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from serve_app.ingress.arrow import rows_from_arrow
from serve_app.ingress.asked import AskedRows
from serve_app.ingress.asked_json import batch_from_json
from serve_app.ingress.problems import ProblemError, problem_of


def stream(*batches: pa.RecordBatch, compression: str | None = None) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batches[0].schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        for batch in batches:
            writer.write_batch(batch)
    raw: bytes = sink.getvalue().to_pybytes()
    return raw


def of(**columns: pa.Array) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(list(columns.values()), list(columns))


def repeated(text: str, rows: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int8()), pa.array([text]))


def nested(values: pa.Array) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)


USER = pa.array(["u"])
ARROW_BOMBS: dict[str, tuple[Callable[[], bytes], int, str]] = {
    "zstd": (lambda: stream(of(user=pa.array(["a" * (64 << 20)])), compression="zstd"), 415, "body"),
    "lz4": (lambda: stream(of(user=pa.array(["a" * (64 << 20)])), compression="lz4"), 415, "body"),
    "a compressed dictionary": (lambda: stream(of(user=repeated("a" * (1 << 20), 9)), compression="zstd"), 415, "body"),
    "a long text often": (lambda: stream(of(user=repeated("a" * (1 << 20), 10_000))), 422, "user"),
    "a long text in a list": (lambda: stream(of(user=USER, item=nested(repeated("a" * 10_000, 50_000)))), 422, "item"),
    "a long list": (lambda: stream(of(user=USER, campaign=nested(pa.nulls(2_000_001, pa.string())))), 422, "campaign"),
    "views": (lambda: stream(of(user=pa.array(["a" * 100] * 9, pa.string_view()))), 422, "user"),
    "runs": (
        lambda: stream(of(user=pa.RunEndEncodedArray.from_arrays(pa.array([9_999], pa.int32()), pa.array(["a" * 100])))),
        422, "user",
    ),
    "structs": (lambda: stream(of(user=pa.array([{"a": 1}]))), 422, "user"),
    "lists of lists": (lambda: stream(of(user=USER, item=pa.array([[["a"]]]))), 422, "item"),
    "empty batches": (lambda: stream(*[of(user=USER[:0])] * 10_001), 422, "body"),
    "many dictionaries": (lambda: stream(*[of(user=repeated(f"u{n}", 1)) for n in range(100)]), 422, "body"),
    "many rows": (lambda: stream(of(user=pa.array(["a"] * 10_001))), 422, "body"),
    "rows without bytes": (lambda: stream(of(user=pa.nulls(1 << 20))), 422, "body"),
}  # fmt: skip


@pytest.mark.parametrize("name", ARROW_BOMBS)
def test_a_stream_that_would_grow_is_refused_before_it_does(name: str) -> None:
    make, status, field = ARROW_BOMBS[name]
    raw = make()
    before, pool = pa.total_allocated_bytes(), pa.default_memory_pool()
    tracemalloc.start()
    with pytest.raises(ProblemError) as caught:
        rows_from_arrow(raw)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (caught.value.problem.status, caught.value.problem.field) == (status, field)
    assert peak < 2 * len(raw) + (8 << 20)
    assert pool.bytes_allocated() - before < 2 * len(raw) + (8 << 20)


def test_dictionaries_within_bounds_are_read_as_their_texts() -> None:
    rows = rows_from_arrow(stream(of(user=pa.array(["a", "b", "a"]).dictionary_encode(), max_sends=pa.array([1, 2, 3]))))
    assert list(rows.users) == ["a", "b", "a"]
    long = rows_from_arrow(stream(of(user=pa.array(["a", "b" * 201]).dictionary_encode())))
    assert {at: problem_of(why).problem.field for at, why in long.problems.items()} == {1: "user"}


GOOD = stream(
    of(
        user=pa.array(["a", "b"]).dictionary_encode(),
        campaign=pa.array([["x"], None]),
        expires_at=pa.array([None, 5], pa.timestamp("s", "UTC")),
    )
)


def status_of(raw: bytes) -> int:
    try:
        rows = rows_from_arrow(raw)
    except ProblemError as error:
        return error.problem.status
    assert isinstance(rows, AskedRows)
    return 200


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_a_stream_with_bytes_changed_is_rows_or_a_problem(data: st.DataObject) -> None:
    raw = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    assert status_of(bytes(raw[: data.draw(st.integers(0, len(raw)))])) in (200, 400, 415, 422)


JSON_BOMBS: dict[str, bytes] = {
    "objects": b'{"rows":[' + b"{}," * 3_000_000 + b"{}]}",
    "lists": b'{"rows":[' + b"[]," * 8_000_000 + b"[]]}",
    "numbers": b'{"rows":[{"user":"u","x":[' + b"1," * 8_000_000 + b"1]}]}",
}


@pytest.mark.parametrize("name", JSON_BOMBS)
def test_json_that_would_grow_is_refused_before_it_is_read(name: str) -> None:
    tracemalloc.start()
    with pytest.raises(ProblemError, match="more than a batch can"):
        batch_from_json(JSON_BOMBS[name])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_too_many_rows_are_refused_without_a_word_for_each() -> None:
    with pytest.raises(ValidationError) as caught:
        batch_from_json(json.dumps({"rows": [{"usr": 1}] * 20_000}).encode())
    assert [one["loc"] for one in caught.value.errors()] == [("rows",)]


def test_a_batch_as_large_as_allowed_is_read() -> None:
    row = {"user": "u,{[", "candidates": [{"campaign": "c", "item": "i", "channel": "push"}] * 200}
    rows, _ = batch_from_json(json.dumps({"rows": [row] * 2_000}).encode())
    assert (len(rows), rows.problems) == (2_000, {})


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def test_what_nests_deeply_is_the_problem_of_its_row() -> None:
    rows, _ = batch_from_json(json.dumps({"rows": [{"user": "a"}, {"user": "b", "x": deep(300)}]}).encode())
    assert {at: problem_of(why).problem.status for at, why in rows.problems.items()} == {1: 422}
    assert rows.users[0] == "a"
    with pytest.raises(ProblemError, match="nests too deeply"):
        batch_from_json(json.dumps({"rows": [{"user": "a"}], "dry_run": deep(300)}).encode())
