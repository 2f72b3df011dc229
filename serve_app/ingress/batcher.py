"""Adaptive micro-batching: nobody waits for company, and company forms by itself when all lanes are busy.

Words: a *lane* is one micro-batch under way. While a lane is free, what has arrived leaves at once (requests that arrived
in the same turn of the event loop leave together). While all lanes are busy, arrivals queue; the lane that comes free takes
up to `max_requests` of them. So with one caller every batch holds one request and waits for nothing; with 128 callers and
8 lanes batches hold about 16. The wait in the queue runs against the request's own deadline.

A batch holds requests of one `key` only (the pinned release): the queue keeps arrival order, and a batch ends where the key
changes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from serve_app.ingress.deadlines import leaving_by
from serve_app.ingress.problems import ProblemError
from serve_app.serving import scope, spans

__all__ = ["BatcherStats", "MicroBatcher", "overloaded"]

T = TypeVar("T")
R = TypeVar("R")

Runner = Callable[[Sequence[T]], Awaitable[Sequence[R | Exception]]]


@dataclass(slots=True)
class BatcherStats:
    """Counts since the start, and the present state."""

    batches: int = 0
    requests: int = 0
    refused: int = 0
    abandoned: int = 0
    expired: int = 0
    late: int = 0
    in_flight: int = 0
    queued: int = 0


@dataclass(slots=True, eq=False)
class _Waiting(Generic[T, R]):
    item: T
    key: Hashable
    leave_by_s: float
    answer: asyncio.Future[R]
    scopes: tuple[scope.CallScope, ...]
    trace: Any
    started: bool = False


def overloaded(detail: str) -> ProblemError:
    """The refusal that asks the caller to come back."""
    return ProblemError(503, "overloaded", detail, hint="retry after the time in Retry-After", retry_after_s=1)


class MicroBatcher(Generic[T, R]):
    """Groups concurrent submissions into batches. Use it from one event loop."""

    def __init__(self, run: Runner[T, R], *, max_requests: int, lanes: int, max_queued: int) -> None:
        """run: takes the items of one batch and returns, in order, a result or an exception for each."""
        self._run = run
        self._max_requests = max_requests
        self._lanes = lanes
        self._max_queued = max_queued
        self._queue: deque[_Waiting[T, R]] = deque()
        self._wake_scheduled = False
        self._tasks: set[asyncio.Task[None]] = set()
        self.stats = BatcherStats()

    async def submit(self, item: T, *, key: Hashable, leave_by_s: float) -> R:
        """Run `item` in some batch. leave_by_s: the event loop's time at which the caller must leave.

        Raises ProblemError 503 when the queue is full or the time passed while queued; TimeoutError when it passed while a
        batch was at it (which goes on: what is begun is never cancelled); whatever the batch gave the item.
        """
        if len(self._queue) >= self._max_queued:
            self.stats.refused += 1
            raise overloaded(f"{self._max_queued} requests are already waiting")
        loop = asyncio.get_running_loop()
        waiting = _Waiting(item, key, leave_by_s, loop.create_future(), scope.current(), spans.here())
        self._queue.append(waiting)
        if not self._wake_scheduled:
            self._wake_scheduled = True
            loop.call_soon(self._wake)
        try:
            async with asyncio.timeout_at(leave_by_s):
                return await waiting.answer
        except TimeoutError:
            if waiting.started or not waiting.answer.cancelled():
                self.stats.late += waiting.answer.cancelled()
                raise
            self.stats.expired += 1
            raise overloaded("the request's time passed while it waited its turn") from None
        except asyncio.CancelledError:  # the client went away
            self.stats.abandoned += not waiting.started
            raise
        finally:
            if not waiting.started and waiting in self._queue:
                self._queue.remove(waiting)
                self.stats.queued = len(self._queue)

    def _wake(self) -> None:
        self._wake_scheduled = False
        while self._queue and self.stats.in_flight < self._lanes:
            batch = self._next_batch()
            if batch:
                self.stats.in_flight += 1
                task = asyncio.get_running_loop().create_task(self._serve(batch))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        self.stats.queued = len(self._queue)

    def _next_batch(self) -> list[_Waiting[T, R]]:
        now = asyncio.get_running_loop().time()
        batch: list[_Waiting[T, R]] = []
        while self._queue and len(batch) < self._max_requests:
            head = self._queue[0]
            if batch and head.key != batch[0].key:
                break
            self._queue.popleft()
            if head.answer.done() or head.leave_by_s <= now:  # the caller leaves; `submit` says so
                continue
            head.started = True
            batch.append(head)
        return batch

    async def _serve(self, batch: list[_Waiting[T, R]]) -> None:
        self.stats.batches += 1
        self.stats.requests += len(batch)
        try:
            with (
                scope.joined(one.scopes for one in batch),
                spans.batch_span([one.trace for one in batch]),
                leaving_by(min(one.leave_by_s for one in batch)),
            ):
                results = await self._run([one.item for one in batch])
            if len(results) != len(batch):
                raise RuntimeError(f"{len(results)} results for {len(batch)} requests")
            for one, result in zip(batch, results, strict=True):
                _settle(one.answer, result)
        except Exception as error:  # noqa: BLE001 - every waiting caller must hear of it
            for one in batch:
                _settle(one.answer, error)
        except asyncio.CancelledError:  # of the batch, or of a call on its way: callers hear that nobody answers them
            for one in batch:
                _settle(one.answer, TimeoutError("the work was cut short"))
            raise
        finally:
            self.stats.in_flight -= 1
            self._wake()

    async def drain(self) -> None:
        """Wait until every batch under way has ended."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))


def _settle(answer: asyncio.Future[R], result: R | Exception) -> None:
    if answer.done():
        return
    if isinstance(result, Exception):
        answer.set_exception(result)
    else:
        answer.set_result(result)
