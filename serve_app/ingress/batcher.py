"""Adaptive micro-batching: nobody waits for company, and company forms by itself when all lanes are busy.

Words: a *lane* is one micro-batch under way. While a lane is free, what has arrived leaves at once (requests that arrived
in the same turn of the event loop leave together). While all lanes are busy, arrivals queue; the lane that comes free takes
up to `max_requests` of them. So with one caller every batch holds one request and waits for nothing; with 128 callers and
8 lanes batches hold about 16. The wait in the queue runs against the request's own deadline.

Overload: where micro-batches take longer than they should, fewer requests are under way at once (see `pace`); who would
wait too long at the present pace is refused on arrival, which costs little and tells the caller while there is time.

Standstill: where no micro-batch has ended for several times as long as they usually take (a stage's process died, or hangs),
requests would pile up here and take the places of surfaces that could be served. Then only so many are held, the others
refused at once; and what the pace was says nothing of what it will be.

A batch holds requests of one `key` only (the pinned release): the queue keeps arrival order, and a batch ends where the key
changes.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from contextvars import Context
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from serve_app.ingress.deadlines import leaving_by
from serve_app.ingress.pace import Pace
from serve_app.ingress.problems import ProblemError
from serve_app.ingress.quality import Quality
from serve_app.serving import scope, spans

__all__ = ["BatcherStats", "MicroBatcher", "overloaded"]

_STANDSTILL = 2.0, 4.0  # times the time a micro-batch should take, and times what it usually takes
_AGAIN_AT_MOST_S = 2  # the pace is that of the last second: who stays away for longer may miss that all is well again
_PARTS, _LEAST = 4, 4.0  # parts that the room is given out in, and requests in each: a micro-batch costs something by itself
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
    under_way: int = 0
    queued: int = 0


@dataclass(slots=True, eq=False)
class _Waiting(Generic[T, R]):
    item: T
    key: Hashable
    came_s: float
    leave_by_s: float
    answer: asyncio.Future[R]
    scopes: tuple[scope.CallScope, ...]
    trace: Any
    started: bool = False


def overloaded(detail: str, retry_after_s: int = 1) -> ProblemError:
    """The refusal that asks the caller to come back."""
    return ProblemError(503, "overloaded", detail, hint="retry after the time in Retry-After", retry_after_s=retry_after_s)


class MicroBatcher(Generic[T, R]):
    """Groups concurrent submissions into batches. Use it from one event loop."""

    def __init__(
        self,
        run: Runner[T, R],
        *,
        max_requests: int,
        lanes: int,
        max_queued: int,
        run_s: float = math.inf,
        wait_share: float = 1.0,
        places: int | None = None,
        quality: Quality | None = None,
    ) -> None:
        """run: takes the items of one batch and returns, in order, a result or an exception for each. run_s: time a batch
        should take; no more requests are under way than are answered in it (see Pace.room). wait_share: of the time a
        request has, what it may expect to spend waiting. places: requests held at most while nothing is answered. quality:
        hears how long every request stayed, and of those refused.
        """
        self._run = run
        self._max_requests = max_requests
        self._lanes = lanes
        self._max_queued = max_queued
        self._run_s, self._wait_share, self._quality = run_s, wait_share, quality
        self._places = max_queued if places is None else places
        self._pace = Pace()
        self._moved_s = -math.inf
        self._queue: deque[_Waiting[T, R]] = deque()
        self._wake_scheduled = False
        self._tasks: set[asyncio.Task[None]] = set()
        self.stats = BatcherStats()

    async def submit(self, item: T, *, key: Hashable, leave_by_s: float) -> R:
        """Run `item` in some batch. leave_by_s: the event loop's time at which the caller must leave.

        Raises ProblemError 503 when the queue is full or too long for the time there is, or when the time passed while
        queued; TimeoutError when it passed while a batch was at it (which goes on: what is begun is never cancelled);
        whatever the batch gave the item.
        """
        loop = asyncio.get_running_loop()
        now = loop.time()
        self.refuse_if_full(leave_by_s - now)
        waiting = _Waiting(item, key, now, leave_by_s, loop.create_future(), scope.current(), spans.here())
        self._queue.append(waiting)
        if not self._wake_scheduled:
            self._wake_scheduled = True
            loop.call_soon(self._wake)
        try:
            async with asyncio.timeout_at(leave_by_s):
                return await waiting.answer
        except TimeoutError:
            if not waiting.answer.cancelled():  # nobody's time passed: this is what the batch answered
                raise
            if not waiting.started:
                raise self._expired() from None
            self.stats.late += 1
            raise
        except asyncio.CancelledError:  # the client went away
            self.stats.abandoned += not waiting.started
            raise
        finally:
            if not waiting.started and waiting in self._queue:
                self._queue.remove(waiting)
                self.stats.queued = len(self._queue)

    def refuse_if_full(self, time_s: float) -> None:
        """Raise what `submit` would: the queue is full, or too long for a request that has `time_s`, or stands still."""
        ahead, now = len(self._queue), asyncio.get_running_loop().time()
        blocked = self.stats.in_flight >= self._lanes or (ahead > 0 and not self._wake_scheduled)  # no wake is due
        if blocked and ahead + self.stats.under_way >= self._places and self._stands_still(now):
            raise self._refused("no request was answered of late", 1.0, now)
        wait_s = self._pace.wait_s(ahead, now)
        most_s = min(self._wait_share * time_s, self._wait_at_most(time_s))
        if ahead >= self._max_queued or (ahead > 0 and wait_s > most_s):
            raise self._refused(f"{ahead} requests are already waiting", wait_s, now)

    def _refused(self, why: str, wait_s: float, now: float) -> ProblemError:
        self.stats.refused += 1
        if self._quality is not None:
            self._quality.refused(now)
        return overloaded(why, retry_after_s=min(_AGAIN_AT_MOST_S, max(1, math.ceil(wait_s))))

    def _stands_still(self, now: float) -> bool:
        """Whether no micro-batch under way has ended for far longer than they take."""
        wanted, usual = _STANDSTILL
        return now - self._moved_s > max(wanted * self._run_s, usual * self._pace.usual_s)

    def _wait_at_most(self, time_s: float) -> float:
        """After which a request would hardly be done in its time. A fifth is always granted: the pace may have changed."""
        return max(time_s - self._pace.run_s, 0.2 * time_s)

    def _wake(self) -> None:
        self._wake_scheduled = False
        loop = asyncio.get_running_loop()
        now = loop.time()
        room = self._pace.room(self._run_s, now) if self._run_s < math.inf else math.inf
        # In parts: one micro-batch that takes all the room leaves every stage but one idle.
        most = min(self._max_requests, max(_LEAST, room / _PARTS))
        while self._queue and self.stats.in_flight < self._lanes and self.stats.under_way < room:
            batch = self._next_batch(min(most, room - self.stats.under_way), now)
            if batch:
                if not self.stats.in_flight:
                    self._moved_s = now
                self.stats.in_flight += 1
                self.stats.under_way += len(batch)
                # In a context of its own: whoever woke us is no more behind this batch than any of its requests, and where
                # his client leaves, Serve ends all that was asked for under his id.
                task = loop.create_task(self._serve(batch), context=Context())
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        self.stats.queued = len(self._queue)
        self._pace.waiting(now, bool(self._queue))

    def _next_batch(self, most: float, now: float) -> list[_Waiting[T, R]]:
        batch: list[_Waiting[T, R]] = []
        while self._queue and len(batch) < most:
            head = self._queue[0]
            if batch and head.key != batch[0].key:
                break
            self._queue.popleft()
            if head.answer.done():  # the caller left
                continue
            if now - head.came_s > self._wait_at_most(head.leave_by_s - head.came_s):
                head.answer.set_exception(self._expired())
                continue
            head.started = True
            batch.append(head)
        return batch

    async def _serve(self, batch: list[_Waiting[T, R]]) -> None:
        began_s = asyncio.get_running_loop().time()
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
            self.stats.under_way -= len(batch)
            self._tell(batch, began_s)
            self._wake()

    def _expired(self) -> ProblemError:
        self.stats.expired += 1
        if self._quality is not None:
            self._quality.refused(asyncio.get_running_loop().time())
        return overloaded("the request's time passed while it waited its turn")

    def _tell(self, batch: Sequence[_Waiting[T, R]], began_s: float) -> None:
        now = asyncio.get_running_loop().time()
        stood_still = self._stands_still(now)
        self._pace.answered(len(batch), now - began_s, now)
        if stood_still:
            self._pace.forget(now)
        self._moved_s = now
        if self._quality is not None:
            for one in batch:
                self._quality.answered(now - one.came_s, now)

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
