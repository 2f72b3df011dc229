"""From decided batches to what callers read: as JSON, or as Arrow columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from serve_app.batch import Batch
from serve_app.clock import text_of
from serve_app.decide import DecideStatus
from serve_app.errors import LedgerUnavailable, NotReady, OutcomeUnknown
from serve_app.ids import decision_id_text, decision_id_texts, hex_texts
from serve_app.ingress.answers import degraded_names, finite
from serve_app.ingress.problems import ProblemError
from serve_app.serving.deciding import Decided
from serve_app.serving.library import Edition
from serve_app.stages.decision.deferrals import child_of
from serve_app.vocabulary import Action, Channel, Delivery, Reason

__all__ = ["ANSWER_SCHEMA", "answer_rows", "answer_table", "campaign_texts", "item_texts", "more_sends", "problems_of"]

I64 = npt.NDArray[np.int64]
Answer = dict[str, Any] | Exception

_STATUS_PROBLEMS: dict[DecideStatus, Exception] = {
    DecideStatus.ledger_unavailable: LedgerUnavailable("the ledger cannot be reached; nothing was decided", hint="retry"),
    DecideStatus.outcome_unknown: OutcomeUnknown(
        "a decision was committed or not, which could not be learned", hint="retry with the same idempotency key"
    ),
    DecideStatus.contended: LedgerUnavailable("this user's decisions changed too fast; nothing was decided", hint="retry"),
    DecideStatus.key_reused: ProblemError(
        409, "key-reused", "the idempotency key was used with another body", field="idempotency_key", hint="use a new key"
    ),
}
_ACTIONS = {int(one): one.name for one in Action}
_REASONS = {int(one): one.name for one in Reason}
_CHANNELS = {int(one): one.name for one in Channel}
_SEND, _DEFER, _CHOSEN = int(Action.send), int(Action.defer), np.int8(Reason.chosen)
_QUEUED, _GRANTED = "queued", "granted"
_FEW = 64  # rows whose names are sooner looked up one by one than taken from a column


def problems_of(made: Decided) -> dict[int, Exception]:
    """Rows that were not decided, or whose decision could not be kept, and why. Duplicates are neither."""
    status = made.decided.status
    out: dict[int, Exception] = {}
    if made.logged and status.max(initial=0) <= DecideStatus.committed:
        return out
    for row in np.flatnonzero(status > DecideStatus.committed).tolist():
        if (problem := _STATUS_PROBLEMS.get(DecideStatus(status[row]))) is not None:
            out[row] = problem
    unlogged = NotReady("the decision could not be logged in time, and is not in force", field="log", hint="retry")
    for row in np.flatnonzero(~made.answerable()).tolist():
        out.setdefault(row, unlogged)
    return out


@dataclass(slots=True)
class _Sends:
    """The sends of a batch in order of request and slot, as positions among its candidates, with the request of each."""

    at: I64
    owner: I64

    @classmethod
    def of(cls, batch: Batch) -> _Sends:
        at = np.flatnonzero(batch.candidates["action"] == _SEND)
        if not len(at):
            return cls(at, at)
        owner = np.searchsorted(batch.offsets, at, side="right") - 1
        if len(at) == 1:
            return cls(at, owner)
        order = np.lexsort((batch.candidates["slot"][at], owner))
        return cls(at[order], owner[order])


def answer_rows(made: Decided, users: Sequence[str], edition: Edition) -> list[Answer]:
    """Every row's answer, or its problem; duplicates are None, they are answered from their record."""
    batch = made.decided.batch
    request = batch.requests
    action, reason = request["action"], request["reason"]
    reason = np.where(action == _SEND, _CHOSEN, reason)
    sends = _send_rows(batch, edition)
    none = np.where(np.isfinite(request["p_none"]), request["p_none"], -1.0).tolist()
    columns = zip(
        users,
        hex_texts(request["request_id"]),
        decision_id_texts(request["user"], request["request_id"]),
        map(_ACTIONS.__getitem__, action.tolist()),
        map(_REASONS.__getitem__, reason.tolist()),
        (text_of(at) if at else None for at in request["until"].tolist()),
        sends,
        map(degraded_names, request["degraded"].tolist()),
        none,
        request["explored"].tolist(),
        strict=True,
    )
    answers: list[Any] = [
        {
            "user": user,
            "request_id": request_id,
            "decision_id": decision_id,
            "action": does,
            "reason": why,
            "until": until,
            "sends": own,
            "replayed": False,
            "degraded": degraded,
            "propensity_none": p_none if p_none >= 0 else None,
            "explored": explored,
        }
        for user, request_id, decision_id, does, why, until, own, degraded, p_none, explored in columns
    ]
    for row in np.flatnonzero(action == _DEFER).tolist():
        user, request_id = int(request["user"][row]), int(request["request_id"][row])
        answers[row]["decided_again_as"] = decision_id_text(user, child_of(user, request_id), 0)
    if made.decided.status.max(initial=0) > DecideStatus.committed:
        for row in np.flatnonzero(made.decided.status == DecideStatus.unledgered).tolist():
            answers[row]["unledgered"] = True
        for row in np.flatnonzero(made.decided.status == DecideStatus.duplicate).tolist():
            answers[row] = None
    for row, problem in problems_of(made).items():
        answers[row] = problem
    return answers


def _send_rows(batch: Batch, edition: Edition) -> list[list[dict[str, Any]]]:
    """The sends of each request, in order of slot."""
    out: list[list[dict[str, Any]]] = [[] for _ in range(len(batch))]
    sends, c = _Sends.of(batch), batch.candidates
    if not len(sends.at):
        return out
    user, request_id = (batch.requests[name][sends.owner] for name in ("user", "request_id"))
    slot, delivery = c["slot"][sends.at], c["delivery"][sends.at]
    columns = zip(
        sends.owner.tolist(),
        decision_id_texts(user, request_id, slot),
        slot.tolist(),
        _campaign_names(c["campaign"][sends.at], edition),
        _item_names(c["item"][sends.at], edition),
        map(_CHANNELS.__getitem__, c["channel"][sends.at].tolist()),
        (delivery == Delivery.outbox).tolist(),
        c["p_choice"][sends.at].tolist(),
        strict=True,
    )
    for row, decision_id, place, campaign, item, channel, queued, p_choice in columns:
        out[row].append(
            {
                "decision_id": decision_id,
                "slot": place,
                "campaign": campaign,
                "item": item,
                "channel": channel,
                "status": _QUEUED if queued else _GRANTED,
                "propensity": finite(p_choice),
            }
        )
    return out


def _campaign_names(campaigns: npt.NDArray[np.uint64], edition: Edition) -> list[str | None]:
    """`campaign_texts` as a list."""
    if len(campaigns) > _FEW:
        names: list[str | None] = campaign_texts(campaigns, edition).to_pylist()
        return names
    ids = edition.campaigns.ids
    return [ids[row] if row >= 0 else None for row in edition.campaigns.rows_of(campaigns).tolist()]


def _item_names(items: npt.NDArray[np.int32], edition: Edition) -> list[str | None]:
    """`item_texts` as a list."""
    if len(items) > _FEW or items.max(initial=-1) >= 0:
        names: list[str | None] = item_texts(items, edition).to_pylist()
        return names
    return [None] * len(items)


def campaign_texts(campaigns: npt.NDArray[np.uint64], edition: Edition) -> pa.Array:
    """Text per campaign hash; null for one this process does not know."""
    rows = edition.campaigns.rows_of(campaigns)
    return edition.campaigns.texts.take(pa.array(rows, mask=rows < 0))


def item_texts(items: npt.NDArray[np.int32], edition: Edition) -> pa.Array:
    """Text per item row; null for -1."""
    distinct, codes = np.unique(items, return_inverse=True)
    known = distinct >= 0
    texts = iter(edition.view.ids_of(distinct[known]))
    names = pa.array([next(texts) if one else None for one in known.tolist()], pa.string())
    return names.take(pa.array(codes))


_FIELDS = ("decision_id", "action", "reason", "campaign", "item", "channel", "delivery", "until", "detail")
_SEND_FIELDS = ("decision_id", "campaign", "item", "channel", "delivery")
_MORE = pa.list_(pa.struct([(name, pa.string()) for name in _SEND_FIELDS]))
ANSWER_SCHEMA = pa.schema([("status", pa.int16()), *((name, pa.string()) for name in _FIELDS), ("more", _MORE)])


def answer_table(made: Decided, edition: Edition) -> pa.Table:
    """One row per row: status 200 with the first send, `more` with those after it, or the status of the row's problem with
    `detail`. Duplicates have status 0; they are answered from their record."""
    batch, n = made.decided.batch, len(made.decided.status)
    request, c = batch.requests, batch.candidates
    reason = np.where(request["action"] == _SEND, _CHOSEN, request["reason"])
    sends = _Sends.of(batch)
    first = np.full(n, -1, np.int64)
    first[sends.owner[::-1]] = sends.at[::-1]
    sent = np.flatnonzero(first >= 0)
    at = first[sent]
    places = np.full(n, -1, np.int64)
    places[sent] = np.arange(len(sent))
    spread = pa.array(places, mask=places < 0)
    columns: dict[str, pa.Array] = {
        "decision_id": pa.array(decision_id_texts(request["user"], request["request_id"]), pa.string()),
        "action": _named(request["action"], _ACTIONS),
        "reason": _named(reason, _REASONS),
        "campaign": campaign_texts(c["campaign"][at], edition).take(spread),
        "item": item_texts(c["item"][at], edition).take(spread),
        "channel": _named(c["channel"][at], _CHANNELS).take(spread),
        "delivery": _named(c["delivery"][at] == Delivery.outbox, {0: _GRANTED, 1: _QUEUED}).take(spread),
        "until": pa.array([text_of(one) if one else None for one in request["until"].tolist()], pa.string()),
        "detail": pa.nulls(n, pa.string()),
    }
    columns["more"] = pa.nulls(n, _MORE)
    if len(sent) < len(sends.at):
        columns["more"] = pa.array([more_sends(own) for own in _send_rows(batch, edition)], _MORE)
    status = np.where(made.decided.status == DecideStatus.duplicate, 0, 200).astype(np.int16)
    return pa.table({"status": pa.array(status), **columns}, schema=ANSWER_SCHEMA)


def more_sends(sends: Sequence[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """The sends of one answer after its first, as the column `more` has them; None where there are none."""
    return [{**{name: one.get(name) for name in _SEND_FIELDS}, "delivery": one["status"]} for one in sends[1:]] or None


def _named(codes: npt.NDArray[Any], names: dict[int, str]) -> pa.Array:
    known = sorted(names)
    places = np.searchsorted(known, codes).astype(np.int32)
    return pa.DictionaryArray.from_arrays(pa.array(places), pa.array([names[one] for one in known])).dictionary_decode()
