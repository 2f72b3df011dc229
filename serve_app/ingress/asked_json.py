"""`decide-batch` as JSON: rows become columns without an object of ours per row.

A row of the plain form (right keys, right types, within bounds) is taken as it stands. Any other goes through the model
`DecideRow`, which says what is wrong with it; the others are not affected.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from types import NoneType
from typing import Any

import numpy as np
import orjson
from pydantic import AwareDatetime, TypeAdapter, ValidationError

from serve_app.batch import lengths_to_offsets
from serve_app.clock import micros_of
from serve_app.ingress.asked import CHANNEL_CODES, AskedRows, Texts, hash_texts
from serve_app.ingress.problems import problem_of
from serve_app.ingress.schemas import Rehearsal
from serve_app.ingress.schemas_notify import MAX_CANDIDATES, MAX_ROWS, MAX_SENDS, MAX_TEXT, DecideBatchRequest, DecideRow

__all__ = ["batch_from_json"]

_ROW_KEYS = frozenset(DecideRow.model_fields)
_CANDIDATE_KEYS = frozenset(("campaign", "item", "channel"))
_CHANNELS = frozenset(CHANNEL_CODES)
_MOMENT: TypeAdapter[Any] = TypeAdapter(AwareDatetime)


def batch_from_json(raw: bytes) -> tuple[AskedRows, Rehearsal]:
    """The rows of a body, and the fields of the whole call. Raises pydantic's ValidationError for what is wrong with the
    whole: not JSON, unknown or missing fields, too few rows or too many."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        body = None
    if not isinstance(body, dict) or not isinstance(body.get("rows"), list) or not 1 <= len(body["rows"]) <= MAX_ROWS:
        # The model words what is wrong; it also reads the little that orjson does not.
        whole = DecideBatchRequest.model_validate_json(raw)
        return AskedRows.of_models(whole.rows), whole
    rows = body.pop("rows")
    asked = Rehearsal.model_validate_json(orjson.dumps(body))
    return _columns(rows), asked


def _columns(rows: list[Any]) -> AskedRows:
    problems: dict[int, Exception] = {}
    if not _plain(rows):
        models = {at: _model(row) for at, row in enumerate(rows) if not _plain([row])}
        if not all(isinstance(one, Exception) for one in models.values()):
            return AskedRows.of_models([models.get(at) or _model(row) for at, row in enumerate(rows)])
        problems = {at: why for at, why in models.items() if isinstance(why, Exception)}
        rows = [{"user": "?"} if at in problems else row for at, row in enumerate(rows)]
    users = [row["user"] for row in rows]
    candidates = [row.get("candidates") for row in rows]
    flat = list(chain.from_iterable(one for one in candidates if one))
    keys = [row.get("idempotency_key") for row in rows]
    return AskedRows(
        users=users,
        user=hash_texts(users),
        named=np.array([one is not None for one in candidates], np.bool_),
        offsets=lengths_to_offsets([len(one) if one else 0 for one in candidates]),
        campaign=Texts.of([one["campaign"] for one in flat]),
        channel=np.array([CHANNEL_CODES[one.get("channel")] for one in flat], np.int8),
        item=Texts.of([one.get("item") for one in flat]),
        max_sends=np.array([row.get("max_sends", 1) for row in rows], np.int32),
        expires_at=_moments([row.get("expires_at") for row in rows]),
        keys=keys if any(keys) else None,
        problems=problems,
    )


def _model(row: Any) -> DecideRow | Exception:
    try:
        return DecideRow.model_validate_json(orjson.dumps(row))
    except ValidationError as error:
        return problem_of(error)


def _plain(rows: list[Any]) -> bool:
    """Whether every row has the plain form: all keys known, all values of the types and within the bounds of DecideRow."""
    if set(map(type, rows)) != {dict} or not _ROW_KEYS.issuperset(chain.from_iterable(rows)):
        return False
    candidates = [row.get("candidates") for row in rows]
    sends = [row.get("max_sends", 1) for row in rows]
    return (
        _texts([row.get("user") for row in rows])
        and set(map(type, candidates)) <= {list, NoneType}
        and max((len(one) for one in candidates if one), default=0) <= MAX_CANDIDATES
        and _plain_candidates(list(chain.from_iterable(one for one in candidates if one)))
        and set(map(type, sends)) == {int}
        and min(sends) >= 1
        and max(sends) <= MAX_SENDS
        and _texts([row["idempotency_key"] for row in rows if row.get("idempotency_key") is not None])
        and _plain_moments({row.get("expires_at") if _hashable(row.get("expires_at")) else 0 for row in rows})
    )


def _plain_candidates(flat: list[Any]) -> bool:
    if not flat:
        return True
    if set(map(type, flat)) != {dict} or not _CANDIDATE_KEYS.issuperset(chain.from_iterable(flat)):
        return False
    channels = [one.get("channel") for one in flat]
    return (
        _texts([one.get("campaign") for one in flat])
        and set(map(type, channels)) <= {str, NoneType}
        and _CHANNELS.issuperset(channels)
        and _texts([one["item"] for one in flat if one.get("item") is not None])
    )


def _texts(values: list[Any]) -> bool:
    """Whether all are text of 1 to MAX_TEXT characters."""
    if not values:
        return True
    return set(map(type, values)) == {str} and min(map(len, values)) >= 1 and max(map(len, values)) <= MAX_TEXT


def _hashable(value: Any) -> bool:
    return isinstance(value, str | NoneType)


def _plain_moments(values: set[Any]) -> bool:
    try:
        return all(value is None or (isinstance(value, str) and _moment(value)) for value in values)
    except ValidationError:
        return False


def _moment(text: str) -> int:
    return micros_of(_MOMENT.validate_json(orjson.dumps(text)))


def _moments(texts: Sequence[str | None]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """i64[n], each distinct text read once."""
    distinct = set(texts)
    if distinct == {None}:
        return np.zeros(len(texts), np.int64)
    known = {text: 0 if text is None else _moment(text) for text in distinct}
    return np.array([known[text] for text in texts], np.int64)
