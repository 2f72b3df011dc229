"""The webhook worker: hands queued messages to one HTTP endpoint, each with its decision id as the idempotency key.

One attempt per claim; how long a failed row rests is kept in the ledger, so a worker that dies forgets nothing. 2xx is
delivered. 408, 425, 429, 5xx, a redirect and no answer at all are tried again; any other status is final.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import httpx

from serve_app.errors import NotReady
from serve_app.serving.meters import count, timed
from serve_app.serving.outbox import OutboxDesk
from serve_app.serving.outbox_messages import Message, Outcome
from serve_app.serving.outbox_rows import Receipt

__all__ = ["WebhookSettings", "WebhookWorker"]

_LOG = logging.getLogger("hindcast.serving")
_LEASE_MARGIN_S = 30.0
_AGAIN = frozenset({408, 425, 429})
_RETRY_AFTER_MOST_S = 3600
_BODY_MOST = 64 * 1024


@dataclass(frozen=True, slots=True)
class WebhookSettings:
    """headers: sent with every message (the secret). concurrency: messages under way at once."""

    url: str
    timeout_s: float = 5.0
    concurrency: int = 32
    poll_ms: float = 500
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(slots=True)
class _Answer:
    """What an attempt led to: an outcome, or a wait of at least so long."""

    outcome: Outcome | None
    after_us: int = 0


class WebhookWorker:
    """Claims, sends, tells. `transport` takes the network's place in a test."""

    def __init__(
        self, desk: OutboxDesk, settings: WebhookSettings, *, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._desk, self._settings = desk, settings
        self._client = httpx.AsyncClient(
            timeout=settings.timeout_s,
            limits=httpx.Limits(max_connections=settings.concurrency),
            transport=transport,
            trust_env=False,
        )

    async def run(self) -> None:
        """Deliver until cancelled."""
        poll_s = wait_s = self._settings.poll_ms / 1000
        while True:
            try:
                handed = await self.deliver()
            except asyncio.CancelledError:
                await self._client.aclose()
                raise
            except Exception as error:  # noqa: BLE001 - a ledger that is away comes back; rows wait in it
                wait_s = min(2 * wait_s, 30.0)
                count("hindcast_outbox", outcome="round_failed")
                _LOG.warning("a delivery round failed, the next in %.1f s: %s: %s", wait_s, type(error).__name__, error)
            else:
                wait_s = 0.0 if handed else poll_s
            await asyncio.sleep(wait_s)
            wait_s = max(wait_s, poll_s)

    async def deliver(self) -> int:
        """One round: claim what can be under way at once, hand it over, tell the outcomes. Returns how many messages."""
        lease_us = round((self._settings.timeout_s + _LEASE_MARGIN_S) * 1e6)
        messages = await self._desk.claim(self._settings.concurrency, lease_us)
        answers = await asyncio.gather(*(self._attempt(one) for one in messages))
        await self._told(messages, answers)
        return len(messages)

    async def close(self) -> None:
        """Let connections go."""
        await self._client.aclose()

    async def _told(self, messages: Sequence[Message], answers: Sequence[_Answer]) -> None:
        again: dict[Receipt, int] = defaultdict(int)
        for message, answer in zip(messages, answers, strict=True):
            if answer.outcome is None:
                again[message.send.receipt] = max(answer.after_us, again[message.send.receipt])
        try:
            await self._desk.settle([one.outcome for one in answers if one.outcome is not None])
        except NotReady as error:
            # The rows' leases end by themselves; the messages are handed over again, under the same decision ids.
            _LOG.warning("outcomes of handed-over messages were not booked: %s", error)
        for receipt, after_us in again.items():
            await self._desk.retry([receipt], after_us)

    async def _attempt(self, message: Message) -> _Answer:
        send, own = message.send, self._settings
        headers = {"Idempotency-Key": send.decision_id, **dict(own.headers)}
        try:
            with timed("hindcast_delivery_ms"):
                async with (
                    asyncio.timeout(own.timeout_s),
                    self._client.stream("POST", own.url, json=message.document(), headers=headers) as response,
                ):
                    status, retry_after = response.status_code, response.headers.get("retry-after", "")
                    await _drain(response)
        except (httpx.HTTPError, TimeoutError) as error:
            # A protocol error of our own side may quote the headers, the secret among them.
            said = "" if isinstance(error, httpx.LocalProtocolError) else f": {error}"
            _LOG.warning("no answer to %s: %s%s", send.decision_id, type(error).__name__, said)
            return _Answer(None)
        if 200 <= status < 300:
            return _Answer(Outcome.of(send, "delivered"))
        if status in _AGAIN or status >= 500 or 300 <= status < 400:
            wait_s = min(int(retry_after), _RETRY_AFTER_MOST_S) if retry_after.isdigit() else 0
            return _Answer(None, wait_s * 1_000_000)
        return _Answer(Outcome.of(send, "failed", f"status {status}"))


async def _drain(response: httpx.Response) -> None:
    """Read a small body to its end, so that the connection can be used again; a large one costs the connection instead."""
    size = 0
    async for chunk in response.aiter_raw():
        size += len(chunk)
        if size > _BODY_MOST:
            return
