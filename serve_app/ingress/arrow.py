"""`decide-batch` as an Arrow stream: the same rows as its JSON form, column by column.

In: `user` (string, needed), `campaign`, `channel`, `item` (list<string>, side by side; null: every live campaign),
`max_sends` (int), `idempotency_key` (string), `expires_at` (timestamp with zone). Out: one row per row, with the first send.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from pydantic import ValidationError

from serve_app.ingress.problems import ProblemError, problem_of
from serve_app.ingress.schemas_notify import DecideRow

__all__ = ["ARROW_STREAM", "decisions_to_arrow", "rows_from_arrow"]

ARROW_STREAM = "application/vnd.apache.arrow.stream"
MAX_ROWS = 10_000
_COLUMNS = ("user", "campaign", "channel", "item", "max_sends", "idempotency_key", "expires_at")
_LISTS = ("campaign", "channel", "item")


def rows_from_arrow(raw: bytes) -> list[DecideRow | Exception]:
    """Rows of an Arrow IPC stream; a row that is wrong becomes its error. Errors of the whole stream raise."""
    try:
        with pa.ipc.open_stream(raw) as reader:
            table = reader.read_all()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ProblemError(
            400, "malformed-arrow", f"the body is not an Arrow IPC stream: {error}", field="body", hint="see /docs"
        ) from None
    unknown = sorted(set(table.column_names) - set(_COLUMNS))
    if unknown:
        raise ProblemError(422, "invalid-field", "no such column", field=unknown[0], hint=f"known: {', '.join(_COLUMNS)}")
    if "user" not in table.column_names:
        raise ProblemError(422, "invalid-field", "the stream has no such column", field="user", hint="add it")
    if not 1 <= len(table) <= MAX_ROWS:
        raise ProblemError(422, "invalid-field", f"{len(table)} rows; 1 to {MAX_ROWS} are allowed", field="body")
    return [_row(row) for row in table.to_pylist()]


def _row(said: dict[str, Any]) -> DecideRow | Exception:
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


def decisions_to_arrow(answers: Sequence[dict[str, Any] | Exception]) -> bytes:
    """One row per asked row, in order. `status` is 200, or the status of the row's problem with `detail`."""
    rows = []
    for answer in answers:
        if isinstance(answer, Exception):
            said = problem_of(answer).problem
            rows.append({"status": said.status, "detail": said.detail})
            continue
        send = answer["sends"][0] if answer["sends"] else {}
        rows.append(
            {
                "status": 200,
                "decision_id": answer["decision_id"],
                "action": answer["action"],
                "reason": answer["reason"],
                "campaign": send.get("campaign"),
                "item": send.get("item"),
                "channel": send.get("channel"),
                "delivery": send.get("status"),
                "until": answer["until"],
            }
        )
    schema = pa.schema(
        [("status", pa.int16())]
        + [
            (name, pa.string())
            for name in ("decision_id", "action", "reason", "campaign", "item", "channel", "delivery", "until", "detail")
        ]
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    body: bytes = sink.getvalue().to_pybytes()
    return body
