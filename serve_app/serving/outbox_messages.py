"""Messages that leave the outbox, and what became of them, as senders and the log get them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import orjson
import pyarrow as pa

from serve_app.clock import text_of
from serve_app.ids import hash_id, parse_decision_id
from serve_app.log.rows import fill
from serve_app.serving.outbox_rows import QueuedSend, Receipt
from serve_app.vocabulary import EventType

__all__ = ["Message", "Outcome", "dead_document", "event_rows"]


@dataclass(frozen=True, slots=True)
class Message:
    """A message to hand over now. user_id: None where the server was never told the id behind the hash."""

    send: QueuedSend
    user_id: str | None
    campaign: str
    title: str
    text: str
    item: str | None

    def document(self) -> dict[str, Any]:
        """As a sender gets it."""
        send = self.send
        return {
            "decision_id": send.decision_id,
            "receipt": str(send.receipt),
            "user": self.user_id,
            "user_hash": f"{send.user:016x}",
            "campaign": self.campaign,
            "title": self.title,
            "text": self.text,
            "item": self.item,
            "channel": send.channel.name,
            "message_class": send.message_class,
            "expires_at": text_of(send.expires_at),
            "attempt": send.receipt.attempts,
        }


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a send. detail: why it failed. campaign (hash) and channel go into the event where known."""

    receipt: Receipt
    decision_id: str
    kind: Literal["delivered", "failed", "withdrawn"]
    detail: str = ""
    campaign: int | None = None
    channel: int | None = None

    @classmethod
    def of(cls, send: QueuedSend, kind: Literal["delivered", "failed", "withdrawn"], detail: str = "") -> Outcome:
        """The outcome of a claimed send."""
        return cls(send.receipt, send.decision_id, kind, detail, send.campaign, int(send.channel))


def dead_document(send: QueuedSend) -> dict[str, Any]:
    """A dead message, without its words."""
    return {
        "receipt": str(send.receipt),
        "decision_id": send.decision_id,
        "user_hash": f"{send.user:016x}",
        "channel": send.channel.name,
        "attempts": send.receipt.attempts,
    }


def event_rows(outcomes: Sequence[Outcome], now: int) -> pa.RecordBatch:
    """Rows of the log's table `events`; a send's outcome has one event id, however often it is written."""
    parts = [parse_decision_id(one.decision_id) for one in outcomes]
    kinds = [EventType.delivered if one.kind == "delivered" else EventType.delivery_failed for one in outcomes]
    ids = [hash_id(f"{one.decision_id}:{kind.name}") for one, kind in zip(outcomes, kinds, strict=True)]
    said = [orjson.dumps({"outcome": one.kind, "reason": one.detail}).decode() if one.detail else None for one in outcomes]
    columns = {
        "user": np.array([user for user, _, _ in parts], np.uint64),
        "ts": np.full(len(outcomes), now, np.int64),
        "event_id": np.array(ids, np.uint64),
        "type": np.array(kinds, np.int8),
        "ingested_at": np.full(len(outcomes), now, np.int64),
        "decision_request_id": np.array([request for _, request, _ in parts], np.uint64),
        "slot": np.array([slot for _, _, slot in parts], np.int32),
        "campaign": pa.array([one.campaign for one in outcomes], pa.uint64()),
        "channel": pa.array([one.channel for one in outcomes], pa.int8()),
        "attributes": pa.array(said, pa.string()),
    }
    return fill("events", len(outcomes), columns)
