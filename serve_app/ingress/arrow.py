"""`decide-batch` as an Arrow stream: the same rows as its JSON form, column by column (`ARROW_NOTES` says which)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError

from serve_app.batch import lengths_to_offsets
from serve_app.ingress.arrow_stream import read_stream
from serve_app.ingress.asked import CHANNEL_CODES, AskedRows, Texts, hash_texts
from serve_app.ingress.problems import ProblemError, problem_of
from serve_app.ingress.schemas_notify import MAX_CANDIDATES, MAX_ROWS, MAX_SENDS, MAX_TEXT, DecideRow

__all__ = ["ARROW_NOTES", "ARROW_STREAM", "rows_from_arrow", "to_stream"]

ARROW_STREAM = "application/vnd.apache.arrow.stream"
ARROW_NOTES = (
    f"As Content-Type {ARROW_STREAM} the rows may come as an Arrow IPC stream, not compressed, with the columns user "
    "(string, needed), campaign, channel, item (list<string>, side by side; null campaign: every campaign that is live), "
    "max_sends (int), idempotency_key (string), expires_at (timestamp with a zone). The header x-hindcast-dry-run: true "
    "makes it a dry run, x-hindcast-now (RFC 3339) with it sets the time. The answer is a stream too, one row per row: "
    "status (200, or that of the row's problem, which detail words), decision_id, action, reason, until, the first send as "
    "campaign, item, channel, delivery, and the other sends, where max_sends allowed some, as the list more."
)
_LISTS = ("campaign", "channel", "item")
_STRINGS, _MOMENT = pa.list_(pa.string()), pa.timestamp("us", "UTC")
_PLAIN: dict[str, pa.DataType] = {
    "user": pa.string(),
    **dict.fromkeys(_LISTS, _STRINGS),
    "max_sends": pa.int64(),
    "idempotency_key": pa.string(),
    "expires_at": _MOMENT,
}
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_YEAR_1, _YEAR_10000 = -62_135_596_800, 253_402_300_800  # seconds since 1970
Bools = npt.NDArray[np.bool_]
I64 = npt.NDArray[np.int64]


def rows_from_arrow(raw: bytes) -> AskedRows:
    """Rows of an Arrow IPC stream; a row that is wrong becomes its problem. Problems of the whole stream raise."""
    table = read_stream(raw, _PLAIN, "user", most_rows=MAX_ROWS, most_values=MAX_ROWS * MAX_CANDIDATES)
    table, untold = _without_untold(table)
    rows = _rows_of(table)
    return replace(rows, problems=rows.problems | dict.fromkeys(untold, _UNTOLD)) if untold else rows


def _rows_of(table: pa.Table) -> AskedRows:
    columns = {name: _plain_column(table, name, dtype) for name, dtype in _PLAIN.items()}
    if any(column is None for column in columns.values()):
        return AskedRows.of_models([_row(row) for row in table.to_pylist()])  # some type the columns below do not take
    wrong = _wrong(columns)
    if not wrong.any():
        return _rows(columns, {})
    places = np.flatnonzero(wrong).tolist()
    models = {at: _row(row) for at, row in zip(places, table.take(pa.array(places)).to_pylist(), strict=True)}
    if not all(isinstance(one, Exception) for one in models.values()):
        return AskedRows.of_models([_row(row) for row in table.to_pylist()])
    return _rows(columns, {at: why for at, why in models.items() if isinstance(why, Exception)})


_UNTOLD = ProblemError(
    422, "invalid-field", "lies before year 1 or after year 9999 in UTC", field="expires_at", hint="leave it out for never"
)


def _without_untold(table: pa.Table) -> tuple[pa.Table, list[int]]:
    """The table without times that no calendar tells, and the rows they stood in."""
    if "expires_at" not in table.column_names or not pa.types.is_timestamp(table["expires_at"].type):
        return table, []
    moments = table["expires_at"].combine_chunks()
    unit = _PER_SECOND[moments.type.unit]
    ticks = moments.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
    untold = (ticks // unit < _YEAR_1) | (ticks // unit >= _YEAR_10000)
    if not untold.any():
        return table, []
    known = pc.if_else(pa.array(untold), pa.scalar(None, moments.type), moments)
    at = table.column_names.index("expires_at")
    return table.set_column(at, "expires_at", known), np.flatnonzero(untold).tolist()


def _plain_column(table: pa.Table, name: str, dtype: pa.DataType) -> pa.Array | None:
    """The column in the type wanted; None where it cannot be had without loss."""
    if name not in table.column_names:
        return pa.nulls(len(table), dtype)
    column = table[name]
    if column.type == dtype:
        return column.combine_chunks()
    if not (_alike(column.type, dtype) or pa.types.is_null(column.type)):
        return None
    try:
        return column.cast(dtype).combine_chunks()
    except pa.ArrowException:
        return None


def _alike(own: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether a cast to `wanted` takes values for what they are (a number is not text)."""
    if pa.types.is_list(wanted):
        return bool(pa.types.is_list(own) or pa.types.is_large_list(own)) and _alike(own.value_type, wanted.value_type)
    if pa.types.is_string(wanted):
        own = own.value_type if pa.types.is_dictionary(own) else own
        return bool(pa.types.is_string(own) or pa.types.is_large_string(own))
    if pa.types.is_timestamp(wanted):
        return bool(pa.types.is_timestamp(own)) and own.tz is not None
    return bool(pa.types.is_integer(own))


def _wrong(columns: dict[str, pa.Array]) -> Bools:
    """bool[n]: rows that DecideRow would refuse."""
    wrong = _outside(columns["user"], null=True) | _outside(columns["idempotency_key"], null=False)
    sends = columns["max_sends"].fill_null(1).to_numpy(zero_copy_only=False)
    wrong |= (sends < 1) | (sends > MAX_SENDS)
    counts = _counts(columns["campaign"])
    wrong |= counts > MAX_CANDIDATES
    for name in _LISTS:
        own = columns[name]
        if name != "campaign":
            own_counts = _counts(own)
            wrong |= (counts >= 0) & (own_counts > 0) & (own_counts != counts)
        flat = own.flatten()
        if not len(flat):
            continue
        bad = _outside(flat, null=name == "campaign")
        if name == "channel":
            bad |= ~_codes_of(flat)[1]
        if bad.any():
            owner = np.repeat(np.arange(len(own)), np.maximum(_counts(own), 0))
            wrong[owner[bad]] = True
    return wrong


def _outside(values: pa.Array, *, null: bool) -> Bools:
    """Where a text is empty or too long, or null where that is not allowed."""
    if values.null_count == len(values):
        return np.full(len(values), null)
    length = pc.fill_null(pc.utf8_length(values), 0 if null else 1).to_numpy(zero_copy_only=False)
    out: Bools = (length < 1) | (length > MAX_TEXT)
    return out


def _counts(lists: pa.ListArray) -> I64:
    """i64[n] length of each list, -1 where null."""
    if lists.null_count == len(lists):
        return np.full(len(lists), -1, np.int64)
    return pc.fill_null(pc.list_value_length(lists), -1).to_numpy(zero_copy_only=False).astype(np.int64)


def _codes_of(flat: pa.Array) -> tuple[npt.NDArray[np.int8], Bools]:
    """(Channel i8 per text, -1 for none; whether the text is a channel or none)."""
    texts = Texts.of_arrow(flat)
    codes = np.array([*(CHANNEL_CODES.get(name, -2) for name in texts.names), -1], np.int8)[texts.codes]
    return codes, codes != -2


def _rows(columns: dict[str, pa.Array], problems: dict[int, Exception]) -> AskedRows:
    if problems:
        good = np.ones(len(columns["user"]), np.bool_)
        good[list(problems)] = False
        columns = {name: pc.if_else(pa.array(good), column, _neutral(name)) for name, column in columns.items()}
    users = columns["user"].to_pylist()
    counts = _counts(columns["campaign"])
    offsets = lengths_to_offsets(np.maximum(counts, 0))
    total = int(offsets[-1])
    keys = columns["idempotency_key"]
    return AskedRows(
        users=users,
        user=hash_texts(users),
        named=counts >= 0,
        offsets=offsets,
        campaign=Texts.of_arrow(columns["campaign"].flatten()),
        channel=_codes_of(_beside(columns["channel"], counts, total))[0],
        item=Texts.of_arrow(_beside(columns["item"], counts, total)),
        max_sends=columns["max_sends"].fill_null(1).to_numpy(zero_copy_only=False).astype(np.int32),
        expires_at=_micros(columns["expires_at"]),
        keys=keys.to_pylist() if keys.null_count < len(keys) else None,
        problems=problems,
    )


def _neutral(name: str) -> pa.Scalar:
    return pa.scalar("?" if name == "user" else None, _PLAIN[name])


def _beside(lists: pa.ListArray, counts: I64, total: int) -> pa.Array:
    """One text per named candidate; null where the row's list is null or empty, and without campaigns nothing."""
    own = _counts(lists)
    if (own <= 0).all():
        return pa.nulls(total, pa.string())
    kept = (counts >= 0) & (own > 0)
    flat = lists.filter(pa.array(kept)).flatten()
    if total == len(flat):
        return flat
    places = np.full(total, -1, np.int64)
    mine = np.repeat(kept, np.maximum(counts, 0))
    places[mine] = np.arange(len(flat))
    return flat.take(pa.array(places, mask=~mine))


def _micros(moments: pa.Array) -> I64:
    if moments.null_count == len(moments):
        return np.zeros(len(moments), np.int64)
    known = moments.is_valid().to_numpy(zero_copy_only=False)
    ticks = moments.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    ticks[known & (ticks == 0)] = 1  # 0 is "never"
    return ticks


def _row(said: dict[str, Any]) -> DecideRow | Exception:
    """One row through the model, which says what is wrong with it."""
    fields = {name: value for name, value in said.items() if name not in _LISTS and value is not None}
    campaigns = said.get("campaign")
    if campaigns is not None:
        others = {name: said.get(name) or [None] * len(campaigns) for name in ("channel", "item")}
        for name, values in others.items():
            if len(values) != len(campaigns):
                return ProblemError(422, "invalid-field", "has another length than campaign", field=name)
        fields["candidates"] = [
            {"campaign": one, "channel": channel, "item": item}
            for one, channel, item in zip(campaigns, others["channel"], others["item"], strict=True)
        ]
    try:
        return DecideRow.model_validate(fields)
    except ValidationError as error:
        return problem_of(error)


def to_stream(table: pa.Table) -> bytes:
    """An Arrow IPC stream of one record batch."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    body: bytes = sink.getvalue().to_pybytes()
    return body
