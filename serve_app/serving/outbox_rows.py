"""Outbox rows as a worker sees them: the sends of one grant, their receipts, and how long a failed one rests."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import orjson

from serve_app.errors import DamagedArtifact, InvalidInput
from serve_app.ids import hash_id, parse_decision_id
from serve_app.ledger.protocol import OutboxItem
from serve_app.noise import hash_key, salt_of, uniform
from serve_app.vocabulary import Channel

__all__ = ["QueuedSend", "Receipt", "backoff_us", "failed_id", "queued_sends", "settled_id"]

_JITTER = salt_of("outbox back-off")
_HOUR = 3_600_000_000


@dataclass(frozen=True, slots=True)
class Receipt:
    """Which outbox row a send belongs to, which slots the row holds, and how often it was claimed; as text it is what a
    pulling sender gives back."""

    row: int
    slots: tuple[int, ...]
    attempts: int

    def __str__(self) -> str:
        return f"{self.row:x}.{self.attempts:x}.{'-'.join(f'{slot:x}' for slot in self.slots)}"

    @classmethod
    def parse(cls, text: str) -> Receipt:
        """The reverse of str(). InvalidInput where it is not one."""
        try:
            row, attempts, slots = text.split(".")
            receipt = cls(int(row, 16), tuple(int(one, 16) for one in slots.split("-")), int(attempts, 16))
            if str(receipt) != text or not 0 <= receipt.row < 1 << 63 or min(receipt.attempts, *receipt.slots) < 0:
                raise ValueError(text)
        except ValueError:
            raise InvalidInput(
                f"{text[:60]!r} is not a receipt", field="receipt", hint="send it as the claim gave it"
            ) from None
        return receipt


@dataclass(frozen=True, slots=True)
class QueuedSend:
    """One granted message of an outbox row. campaign and item are hashes; expires_at 0: never."""

    receipt: Receipt
    decision_id: str
    user: int
    request_id: int
    slot: int
    campaign: int
    item: int | None
    channel: Channel
    message_class: str
    expires_at: int


def settled_id(decision_id: str) -> int:
    """The event id under which the ledger remembers that a send was settled."""
    return hash_id(f"outbox:{decision_id}")


def failed_id(decision_id: str) -> int:
    """The event id under which the ledger remembers that a settled send was not delivered."""
    return hash_id(f"outbox:{decision_id}:failed")


def queued_sends(item: OutboxItem, max_age_h: float) -> list[QueuedSend]:
    """The sends of one row. A message grows stale `max_age_h` after its grant at the latest. DamagedArtifact where the
    payload is not one of ours."""
    try:
        said = orjson.loads(item.payload)
        stale = said["at"] + round(max_age_h * _HOUR)
        slots = tuple(parse_decision_id(send["decision_id"])[2] for send in said["sends"])
        receipt = Receipt(item.id, slots, item.attempts)
        return [_send(item, receipt, slot, send, stale) for slot, send in zip(slots, said["sends"], strict=True)]
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, InvalidInput) as error:
        raise DamagedArtifact(f"outbox row {item.id} cannot be read: {error!r}", field="outbox") from error


def _send(item: OutboxItem, receipt: Receipt, slot: int, send: dict[str, str | int | None], stale: int) -> QueuedSend:
    ends = int(send["expires_at"] or 0)
    about = send["item"]
    return QueuedSend(
        receipt=receipt,
        decision_id=str(send["decision_id"]),
        user=item.user,
        request_id=item.request_id,
        slot=slot,
        campaign=int(str(send["campaign"]), 16),
        item=None if about is None else int(str(about), 16),
        channel=Channel[str(send["channel"])],
        message_class=str(send["message_class"]),
        expires_at=min(ends, stale) if ends else stale,
    )


def backoff_us(row: int, attempts: int, first_s: float, most_s: float) -> int:
    """How long a row rests after its `attempts`-th failure: doubled each time up to `most_s`, and of that a share between
    one half and all, drawn by hash so that rows that failed together do not come back together."""
    full_s = min(first_s * 2.0 ** min(attempts - 1, 40), most_s)
    share = 0.5 + 0.5 * float(uniform(hash_key(_JITTER, np.uint64(row), np.uint64(attempts)))[0])
    return round(full_s * share * 1e6)
