"""Answering at the deadline, though the work is not done: a caller never waits for a process that hangs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from serve_app.errors import NotReady, OutcomeUnknown
from serve_app.ingress.admission import Admitted

__all__ = ["by_deadline"]

T = TypeVar("T")


async def by_deadline(work: Awaitable[T], one: Admitted) -> T:
    """What `work` gives, if it does so by the request's deadline.

    The work goes on after it, because a commit once issued is never cancelled: raises OutcomeUnknown (NotReady in a dry
    run, which commits nothing); the same key gets what was decided.
    """
    task = asyncio.ensure_future(work)
    try:
        async with asyncio.timeout_at(one.leave_by_s):
            return await asyncio.shield(task)
    except TimeoutError:
        if task.done():
            raise
        task.add_done_callback(_heard)
    if one.dry:
        raise NotReady("the rehearsal was not done in time", field="decision", hint="retry, or ask for less at a time")
    raise OutcomeUnknown("the decision was not made in time", field="decision", hint="retry with the same idempotency key")


def _heard(task: asyncio.Future[T]) -> None:
    """Nobody waits for the task's error any more."""
    if not task.cancelled():
        task.exception()
