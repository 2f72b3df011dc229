"""Answering at the deadline, though the work is not done: a caller never waits for a process that hangs.

A micro-batch is worked on until the first of its requests must leave. A stage gets its own budget, or what is left of that
time if it is less, so that late stages one after the other do not add up to a late answer; `spare_s` of it are kept for the
fall-backs. Requests of one batch arrived within a few milliseconds, so none loses much by another's deadline.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeVar

from serve_app.errors import NotReady, OutcomeUnknown

if TYPE_CHECKING:
    from serve_app.ingress.admission import Admitted

__all__ = ["by_deadline", "leaving_by", "left_s", "undecided_in_time", "within"]

T = TypeVar("T")

_leave_by: ContextVar[float] = ContextVar("hindcast_leave_by", default=math.inf)


@contextmanager
def leaving_by(at_s: float) -> Iterator[None]:
    """Work whose answers leave at `at_s` by the event loop's clock."""
    token = _leave_by.set(at_s)
    try:
        yield
    finally:
        _leave_by.reset(token)


def left_s() -> float:
    """What is left for the work under way; infinite where nothing waits for it."""
    return _leave_by.get() - asyncio.get_running_loop().time()


def within(budget_s: float, *, spare_s: float = 0.0) -> asyncio.Timeout:
    """A stage's time: its budget, or what is left but for `spare_s`. TimeoutError after it, as asyncio.timeout."""
    return asyncio.timeout(min(budget_s, max(left_s() - spare_s, 0.0)))


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
        raise undecided_in_time(one) from None
    finally:
        if not task.done():
            task.add_done_callback(_heard)


def undecided_in_time(one: Admitted) -> NotReady | OutcomeUnknown:
    """What is said of a decision that was begun and is not done at its deadline."""
    if one.dry:
        return NotReady("the rehearsal was not done in time", field="decision", hint="retry, or ask for less at a time")
    return OutcomeUnknown("the decision was not made in time", field="decision", hint="retry with the same idempotency key")


def _heard(task: asyncio.Future[T]) -> None:
    """Nobody waits for the task's error any more."""
    if not task.cancelled():
        task.exception()
