"""Queued messages for senders of one's own: claim, tell what became of them, look at the dead ones."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, Field
from starlette.responses import Response

from serve_app.errors import InvalidInput
from serve_app.ids import parse_decision_id
from serve_app.ingress.auth import Scope
from serve_app.ingress.calls import Call, Incoming, json_answer
from serve_app.ingress.schemas import Channel, Strict
from serve_app.serving.outbox import OutboxDesk
from serve_app.serving.outbox_messages import Outcome
from serve_app.serving.outbox_rows import Receipt

__all__ = ["OutboxRoutes"]

_BODY = 512 * 1024


class OutboxClaim(Strict):
    """Take messages to send."""

    limit: int = Field(100, ge=1, le=1_000, description="outbox rows at most; a row holds the messages of one decision")
    lease_s: float = Field(60, ge=1, le=3_600, description="nobody else gets them for so long; tell their outcome within it")


class QueuedMessage(BaseModel):
    """A message to send now. Use decision_id as the idempotency key: it may come again."""

    decision_id: str
    receipt: str = Field(description="give it back with the outcome")
    user: str | None = Field(description="the user's id; null where the server was never told it")
    user_hash: str
    campaign: str
    title: str
    text: str
    item: str | None
    channel: Channel
    message_class: Literal["transactional", "informational", "advertising"]
    expires_at: datetime = Field(description="not to be sent from then on")
    attempt: int


class OutboxClaimed(BaseModel):
    """Messages to send within the lease."""

    messages: list[QueuedMessage]


class OutboxOutcome(Strict):
    """What became of one message."""

    receipt: str = Field(min_length=5, max_length=200)
    decision_id: str = Field(min_length=37, max_length=37)
    outcome: Literal["delivered", "failed", "retry"] = Field(
        description="failed: surely not delivered and not to be tried again, its use is refunded as the policy says; "
        "retry: it rests and comes again, at most as often as the server's settings say"
    )
    reason: str = Field("", max_length=200)


class OutboxAck(Strict):
    """Outcomes of claimed messages."""

    outcomes: list[OutboxOutcome] = Field(min_length=1, max_length=1_000)


class OutboxAcked(BaseModel):
    """How many outcomes were new; telling one again does no harm."""

    settled: int
    retried: int


class OutboxRevive(Strict):
    """Dead rows to try again."""

    receipts: list[str] = Field(min_length=1, max_length=1_000)


class OutboxRevived(BaseModel):
    """How many rows can be claimed again."""

    revived: int


class DeadMessage(BaseModel):
    """A message nobody could hand over. Its use stays counted until its outcome is told."""

    receipt: str
    attempts: int
    decision_id: str | None = None
    user_hash: str | None = None
    channel: Channel | None = None


class DeadMessages(BaseModel):
    """The oldest dead messages."""

    messages: list[DeadMessage]


class OutboxRoutes:
    """Handlers of the outbox."""

    def __init__(self, desk: OutboxDesk) -> None:
        self._desk = desk

    def calls(self) -> list[Call]:
        """The calls of this module."""
        return [
            Call("POST", "/v1/outbox/claim", "Queued messages to send now, under a lease", self._claim,
                 Scope.outbox, OutboxClaim, OutboxClaimed, _BODY, "outbox"),
            Call("POST", "/v1/outbox/ack", "What became of claimed messages", self._ack,
                 Scope.outbox, OutboxAck, OutboxAcked, _BODY, "outbox"),
            Call("GET", "/v1/outbox/dead", "Messages that nobody could hand over", self._dead,
                 Scope.outbox, None, DeadMessages, 0, "outbox"),
            Call("POST", "/v1/outbox/revive", "Try dead messages again", self._revive,
                 Scope.outbox, OutboxRevive, OutboxRevived, _BODY, "outbox"),
        ]  # fmt: skip

    async def _claim(self, incoming: Incoming) -> Response:
        body: OutboxClaim = incoming.body
        messages = await self._desk.claim(body.limit, round(body.lease_s * 1e6))
        return json_answer({"messages": [one.document() for one in messages]})

    async def _ack(self, incoming: Incoming) -> Response:
        body: OutboxAck = incoming.body
        final: list[Outcome] = []
        again: dict[Receipt, None] = {}
        for place, said in enumerate(body.outcomes):
            receipt = _receipt(said.receipt, said.decision_id, f"outcomes.{place}")
            if said.outcome == "retry":
                again[receipt] = None
            else:
                final.append(Outcome(receipt, said.decision_id, said.outcome, said.reason))
        settled = await self._desk.settle(final)
        await self._desk.retry(list(again))
        return json_answer({"settled": settled, "retried": len(again)})

    async def _dead(self, incoming: Incoming) -> Response:
        del incoming
        return json_answer({"messages": await self._desk.dead(100)})

    async def _revive(self, incoming: Incoming) -> Response:
        body: OutboxRevive = incoming.body
        return json_answer({"revived": await self._desk.revive([Receipt.parse(one) for one in body.receipts])})


def _receipt(text: str, decision_id: str, where: str) -> Receipt:
    try:
        receipt = Receipt.parse(text)
        if parse_decision_id(decision_id)[2] not in receipt.slots:
            raise InvalidInput("belongs to another message", field="receipt", hint="send both as the claim gave them")
    except InvalidInput as error:
        raise InvalidInput(error.message, field=f"{where}.{error.field}", hint=error.hint) from None
    return receipt
