"""Decision rows as models, as JSON and as Arrow are the same columns, with the same problems in the same rows."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from serve_app.batch import Ragged
from serve_app.ingress.arrow import rows_from_arrow
from serve_app.ingress.asked import AskedRows
from serve_app.ingress.asked_json import batch_from_json
from serve_app.ingress.decision_chunks import cuts
from serve_app.ingress.problems import ProblemError, problem_of
from serve_app.ingress.schemas_notify import MAX_SENDS, DecideRow
from serve_app.policy.document import PolicyDocument

ID = st.one_of(st.text("ab한é\u0301", min_size=1, max_size=3), st.sampled_from(["", "x" * 200, "x" * 201]))
CANDIDATE = st.fixed_dictionaries(
    {"campaign": ID, "channel": st.sampled_from([None, "push", "sms", "email", "pigeon"]), "item": st.none() | ID}
)
MOMENT = st.datetimes(datetime(2001, 1, 1), datetime(2099, 1, 1), timezones=st.just(UTC))
ROW = st.fixed_dictionaries(
    {
        "user": ID,
        "candidates": st.none() | st.lists(CANDIDATE, max_size=3),
        "max_sends": st.integers(0, 17),
        "idempotency_key": st.none() | ID,
        "expires_at": st.none() | MOMENT.map(lambda one: one.isoformat()),
    }
)


def model(row: Any) -> DecideRow | Exception:
    try:
        return DecideRow.model_validate_json(json.dumps(row))
    except ValidationError as error:
        return problem_of(error)


def arrow(rows: list[dict[str, Any]]) -> bytes:
    def lists(name: str) -> pa.Array:
        own = [None if row["candidates"] is None else [one[name] for one in row["candidates"]] for row in rows]
        return pa.array(own, pa.list_(pa.string()))

    moments = [row["expires_at"] and datetime.fromisoformat(row["expires_at"]) for row in rows]
    columns = {
        "user": pa.array([row["user"] for row in rows]),
        **{name: lists(name) for name in ("campaign", "channel", "item")},
        "max_sends": pa.array([row["max_sends"] for row in rows], pa.int32()),
        "idempotency_key": pa.array([row["idempotency_key"] for row in rows], pa.string()),
        "expires_at": pa.array(moments, pa.timestamp("us", "UTC")),
    }
    return stream(pa.table(columns))


def stream(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    body: bytes = sink.getvalue().to_pybytes()
    return body


def said(rows: AskedRows) -> list[Any]:
    """What each row asks, in one form; its problem's field where it is wrong."""
    keys = rows.idempotency(["caller"] * len(rows)) or ([b""] * len(rows), [b""] * len(rows))
    return [
        problem_of(rows.problems[row]).problem.field
        if row in rows.problems
        else (int(rows.user[row]), rows.document(row), keys[0][row], keys[1][row])
        for row in range(len(rows))
    ]


@given(rows=st.lists(ROW, min_size=1, max_size=6))
@settings(max_examples=150, deadline=None)
def test_every_form_says_the_same(rows: list[dict[str, Any]]) -> None:
    wanted = said(AskedRows.of_models([model(row) for row in rows]))
    assert said(batch_from_json(json.dumps({"rows": rows}).encode())[0]) == wanted
    assert said(rows_from_arrow(arrow(rows))) == wanted


@given(rows=st.lists(ROW, min_size=1, max_size=6), data=st.data())
@settings(max_examples=50, deadline=None)
def test_a_part_says_what_its_rows_said(rows: list[dict[str, Any]], data: st.DataObject) -> None:
    whole = AskedRows.of_models([model(row) for row in rows])
    start = data.draw(st.integers(0, len(rows)))
    stop = data.draw(st.integers(start, len(rows)))
    assert said(whole.part(start, stop)) == said(whole)[start:stop]


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"user": 7}, "user"),
        ({}, "user"),
        ([], "body"),
        (None, "body"),
        ({"user": "u", "usr": 1}, "usr"),
        ({"user": "u", "max_sends": 0}, "max_sends"),
        ({"user": "u", "max_sends": 1.5}, "max_sends"),
        ({"user": "u", "candidates": {}}, "candidates"),
        ({"user": "u", "candidates": [7]}, "candidates.0"),
        ({"user": "u", "candidates": [{"campaign": "c"}, {"campagne": "c"}]}, "candidates.1.campaign"),
        ({"user": "u", "candidates": [{"campaign": "c"}] * 201}, "candidates"),
        ({"user": "u", "idempotency_key": ""}, "idempotency_key"),
        ({"user": "u", "expires_at": "tomorrow"}, "expires_at"),
        ({"user": "u", "expires_at": "2026-01-01T00:00:00"}, "expires_at"),
        ({"user": "u", "expires_at": "9999-12-31T23:59:59-10:00"}, "expires_at"),
        ({"user": "u", "expires_at": "0001-01-01T00:00:00+10:00"}, "expires_at"),
    ],
)
def test_a_wrong_row_is_named_and_the_others_are_not_affected(wrong: Any, field: str) -> None:
    rows, _ = batch_from_json(json.dumps({"rows": [{"user": "a"}, wrong, {"user": "b"}]}).encode())
    assert list(rows.problems) == [1]
    assert problem_of(rows.problems[1]).problem.field == field
    assert [rows.users[0], rows.users[2]] == ["a", "b"]


def test_what_the_model_reads_generously_is_read_in_batches_too() -> None:
    body = {"rows": [{"user": "a", "max_sends": "3"}, {"user": "b", "max_sends": True}, {"user": "c", "max_sends": 0}]}
    rows, _ = batch_from_json(json.dumps(body).encode())
    assert rows.max_sends[:2].tolist() == [3, 1]
    assert list(rows.problems) == [2]


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b'{"rows": []}', b'{"rows": {}}', b'{"rows": [{"user": "u"}], "dry": 1}', b"{}"]
)
def test_what_is_wrong_with_the_whole_raises(body: bytes) -> None:
    with pytest.raises(ValidationError):
        batch_from_json(body)


def test_arrow_columns_of_other_types_are_taken_where_nothing_is_lost() -> None:
    table = pa.table(
        {
            "user": pa.array(["a", "b", "c"], pa.large_string()),
            "campaign": pa.array([["x"], None, ["y", "x"]], pa.large_list(pa.string())),
            "channel": pa.array([None, None, None]),
            "max_sends": pa.array([1, 2, None], pa.uint8()),
            "expires_at": pa.array([None, 5, None], pa.timestamp("s", "Asia/Seoul")),
        }
    )
    rows = rows_from_arrow(stream(table))
    assert not rows.problems
    assert [rows.document(row)["candidates"] and len(rows.document(row)["candidates"]) for row in range(3)] == [1, None, 2]
    assert rows.max_sends.tolist() == [1, 2, 1]
    assert rows.expires_at.tolist() == [0, 5_000_000, 0]


def test_arrow_columns_of_wrong_types_are_problems_of_every_row() -> None:
    rows = rows_from_arrow(stream(pa.table({"user": pa.array([1, 2])})))
    assert [problem_of(rows.problems[row]).problem.field for row in range(2)] == ["user", "user"]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_arrow_times_that_no_calendar_tells_are_problems_of_their_rows(unit: str) -> None:
    ticks = [2**62, 5, None, -(2**62)]
    columns = {"user": pa.array(["a", "b", "c", "d"]), "expires_at": pa.array(ticks, pa.timestamp(unit, "UTC"))}
    rows = rows_from_arrow(stream(pa.table(columns)))
    if unit == "ns":  # 146 years in 2 ** 62 nanoseconds
        assert not rows.problems or rows.problems.keys() == {1}
        return
    assert {at: problem_of(why).problem.field for at, why in rows.problems.items()} == {0: "expires_at", 3: "expires_at"}
    assert [bool(at) for at in rows.expires_at[1:3].tolist()] == [True, False]


def test_a_row_may_ask_for_as_many_sends_as_a_policy_may_allow() -> None:
    (most,) = [one.le for one in PolicyDocument.model_fields["max_sends_per_decision"].metadata if hasattr(one, "le")]
    assert most == MAX_SENDS
    for wanted, problems in ((most, []), (most + 1, [0])):
        rows, _ = batch_from_json(json.dumps({"rows": [{"user": "a", "max_sends": wanted}]}).encode())
        assert list(rows.problems) == problems


def test_what_expired_in_1970_is_not_taken_for_what_never_expires() -> None:
    text = "1970-01-01T00:00:00Z"
    plain, _ = batch_from_json(json.dumps({"rows": [{"user": "a", "expires_at": text}, {"user": "b"}]}).encode())
    moments = pa.array([0, None], pa.timestamp("us", "UTC"))
    columns = rows_from_arrow(stream(pa.table({"user": pa.array(["a", "b"]), "expires_at": moments})))
    model = AskedRows.of_models([DecideRow(user="a", expires_at=datetime.fromisoformat(text)), DecideRow(user="b")])
    for rows in (plain, columns, model):
        assert rows.expires_at.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("table", "status"),
    [
        (pa.table({"usr": ["a"]}), 422),
        (pa.table({"user": ["a"], "extra": [1]}), 422),
        (pa.table({"user": pa.array([], pa.string())}), 422),
        (pa.table({"user": ["a"] * 10_001}), 422),
    ],
)
def test_a_stream_that_is_wrong_as_a_whole_is_refused(table: pa.Table, status: int) -> None:
    with pytest.raises(ProblemError) as caught:
        rows_from_arrow(stream(table))
    assert caught.value.problem.status == status


def test_bytes_that_are_no_stream_or_hide_bad_text_are_malformed() -> None:
    bad = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(np.array([0, 2], np.int32).tobytes()), pa.py_buffer(b"\xff\xfe")]
    )
    for raw in (b"", b"nonsense", stream(pa.table({"user": bad})), stream(pa.table({"user": ["a"]}))[:40]):
        with pytest.raises(ProblemError) as caught:
            rows_from_arrow(raw)
        assert caught.value.problem.status == 400


@given(
    rows=st.lists(st.none() | st.integers(0, 4), min_size=1, max_size=30),
    most_rows=st.integers(1, 9),
    most_candidates=st.integers(1, 20),
)
def test_chunks_hold_all_rows_in_order_and_no_more_than_they_may(
    rows: list[int | None], most_rows: int, most_candidates: int
) -> None:
    asked = AskedRows.of_models(
        [
            DecideRow(user=f"u{at}", candidates=None if count is None else [{"campaign": "c", "channel": "push"}] * count)
            for at, count in enumerate(rows)
        ]
    )
    campaigns = SimpleNamespace(channels=Ragged.of([[0, 1], [0, 1, 2]], np.int8))
    parts = cuts(asked, SimpleNamespace(campaigns=campaigns), most_rows=most_rows, most_candidates=most_candidates)
    assert [one for part in parts for one in range(*part)] == list(range(len(rows)))
    for start, stop in parts:
        assert 1 <= stop - start <= most_rows
        assert stop - start == 1 or sum(5 if one is None else one for one in rows[start:stop]) <= most_candidates
