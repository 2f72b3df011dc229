"""`decide-batch` as JSON: rows become columns without an object of ours per row.

A row of the plain form (right keys, right types, within bounds) is taken as it stands. Any other goes through the model
`DecideRow`, which says what is wrong with it; the others are not affected.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from types import NoneType
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
from pydantic import TypeAdapter, ValidationError

from serve_app.batch import lengths_to_offsets
from serve_app.clock import micros_of
from serve_app.ingress.asked import CHANNEL_CODES, AskedRows, Texts, hash_texts
from serve_app.ingress.problems import ProblemError, problem_of
from serve_app.ingress.schemas import Moment, Rehearsal
from serve_app.ingress.schemas_notify import MAX_CANDIDATES, MAX_ROWS, MAX_SENDS, MAX_TEXT, DecideBatchRequest, DecideRow

__all__ = ["batch_from_json"]

_ROW_KEYS = frozenset(DecideRow.model_fields)
_CANDIDATE_KEYS = frozenset(("campaign", "item", "channel"))
_CHANNELS = frozenset(CHANNEL_CODES)
_ANY_ROW = {"user": "?"}
I64 = npt.NDArray[np.int64]

_MOMENT: TypeAdapter[Any] = TypeAdapter(Moment)
# More than a batch within its bounds says; each takes tens to hundreds of bytes in memory for its two or three of the body.
_MOST_OBJECTS = 1 + MAX_ROWS * (1 + MAX_CANDIDATES)
_MOST_VALUES = MAX_ROWS * (len(DecideRow.model_fields) + MAX_CANDIDATES * 3) + 100


def batch_from_json(raw: bytes) -> tuple[AskedRows, Rehearsal]:
    """The rows of a body, and the fields of the whole call. Raises pydantic's ValidationError for what is wrong with the
    whole: not JSON, unknown or missing fields, too few rows or too many."""
    if raw.count(b"{") > _MOST_OBJECTS or raw.count(b",") + raw.count(b"[") > _MOST_VALUES:
        raise ProblemError(422, "invalid-field", "says more than a batch can", field="body", hint="send several batches")
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        body = None
    if isinstance(body, dict) and isinstance(body.get("rows"), list) and len(body["rows"]) > MAX_ROWS:
        DecideBatchRequest.model_validate({"rows": [_ANY_ROW] * (MAX_ROWS + 1)})  # raises, without reading them all
    if not isinstance(body, dict) or not isinstance(body.get("rows"), list) or not body["rows"]:
        # The model words what is wrong; it also reads the little that orjson does not.
        whole = DecideBatchRequest.model_validate_json(raw)
        return AskedRows.of_models(whole.rows), whole
    rows = body.pop("rows")
    asked = Rehearsal.model_validate_json(_json(body))
    return _columns(rows), asked


def _columns(rows: list[Any]) -> AskedRows:
    plain, problems = _read(rows), {}
    if plain is None:
        models = {at: _model(row) for at, row in enumerate(rows) if _read([row]) is None}
        if not all(isinstance(one, Exception) for one in models.values()):
            return AskedRows.of_models([models.get(at) or _model(row) for at, row in enumerate(rows)])
        problems = {at: why for at, why in models.items() if isinstance(why, Exception)}
        plain = _read([_ANY_ROW if at in problems else row for at, row in enumerate(rows)])
        assert plain is not None
    return plain.asked(problems)


def _model(row: Any) -> DecideRow | Exception:
    try:
        return DecideRow.model_validate_json(_json(row))
    except (ValidationError, ProblemError) as error:
        return problem_of(error)


def _json(value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:  # it reads deeper than it writes
        raise ProblemError(422, "invalid-field", "nests too deeply", field="body", hint="see /docs for the form") from None


@dataclass(slots=True)
class _Plain:
    """Rows of the plain form, column by column; None: no row says anything of it."""

    users: list[str]
    candidates: list[list[Any] | None] | None
    campaigns: list[str]
    channels: list[str | None] | None
    items: list[str | None] | None
    sends: list[int] | None
    keys: list[str | None] | None
    expires: I64 | None

    def asked(self, problems: dict[int, Exception]) -> AskedRows:
        """The same as rows."""
        n, flat = len(self.users), len(self.campaigns)
        lists = self.candidates or [None] * n
        nothing = np.full(flat, -1, np.int32)
        return AskedRows(
            users=self.users,
            user=hash_texts(self.users),
            named=np.fromiter((one is not None for one in lists), np.bool_, n),
            offsets=lengths_to_offsets(np.fromiter((len(one) if one else 0 for one in lists), np.int64, n)),
            campaign=Texts.of(self.campaigns),
            channel=np.fromiter(map(CHANNEL_CODES.__getitem__, self.channels), np.int8, flat)
            if self.channels
            else nothing.astype(np.int8),
            item=Texts.of(self.items) if self.items else Texts(nothing, ()),
            max_sends=np.array(self.sends, np.int32) if self.sends else np.ones(n, np.int32),
            expires_at=np.zeros(n, np.int64) if self.expires is None else self.expires,
            keys=self.keys if self.keys and any(self.keys) else None,
            problems=problems,
        )


def _read(rows: list[Any]) -> _Plain | None:
    """The rows, if all have the plain form: all keys known, all values of the types and within the bounds of DecideRow."""
    if set(map(type, rows)) != {dict}:
        return None
    said = set(chain.from_iterable(rows))
    if "user" not in said or not said <= _ROW_KEYS:
        return None
    users = _column(rows, "user")
    candidates = _column(rows, "candidates") if "candidates" in said else None
    sends = [row.get("max_sends", 1) for row in rows] if "max_sends" in said else None
    keys = _column(rows, "idempotency_key") if "idempotency_key" in said else None
    if not _texts(users) or not _optional(keys) or not (sends is None or _counts(sends)):
        return None
    lists = [one for one in candidates or () if one is not None]
    if not set(map(type, lists)) <= {list} or max(map(len, lists), default=0) > MAX_CANDIDATES:
        return None
    named = _read_candidates(list(chain.from_iterable(lists)))
    expires = _moments(_column(rows, "expires_at")) if "expires_at" in said else np.zeros(len(rows), np.int64)
    if named is None or expires is None:
        return None
    return _Plain(users, candidates, *named, sends, keys, expires)


_Candidates = tuple[list[str], list[str | None] | None, list[str | None] | None]


def _read_candidates(flat: list[Any]) -> _Candidates | None:
    if not flat:
        return [], None, None
    if set(map(type, flat)) != {dict}:
        return None
    said = set(chain.from_iterable(flat))
    if not said <= _CANDIDATE_KEYS:
        return None
    campaigns = _column(flat, "campaign")
    channels = _column(flat, "channel") if "channel" in said else None
    items = _column(flat, "item") if "item" in said else None
    if not _texts(campaigns) or not _optional(items) or not (channels is None or _channels(channels)):
        return None
    return campaigns, channels, items


def _column(rows: list[dict[str, Any]], name: str) -> list[Any]:
    try:
        return list(map(itemgetter(name), rows))  # at C's pace, where every row says it
    except KeyError:
        return [row.get(name) for row in rows]


def _channels(values: list[Any]) -> bool:
    return set(map(type, values)) <= {str, NoneType} and _CHANNELS.issuperset(values)


def _counts(values: list[Any]) -> bool:
    return set(map(type, values)) == {int} and min(values) >= 1 and max(values) <= MAX_SENDS


def _optional(values: list[Any] | None) -> bool:
    return values is None or _texts([one for one in values if one is not None])


def _texts(values: list[Any]) -> bool:
    """Whether all are text of 1 to MAX_TEXT characters."""
    if not values:
        return True
    return set(map(type, values)) == {str} and min(map(len, values)) >= 1 and max(map(len, values)) <= MAX_TEXT


def _moments(values: list[Any]) -> I64 | None:
    """i64[n], each distinct text read once; None where one is no time."""
    if not set(map(type, values)) <= {str, NoneType}:
        return None
    try:
        known = {text: 0 if text is None else micros_of(_MOMENT.validate_json(orjson.dumps(text))) for text in set(values)}
    except ValidationError:
        return None
    return np.array([known[text] for text in values], np.int64)
