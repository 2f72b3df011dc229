"""Work of several legs that one thread does in one go, though each leg has a time of its own.

To hand work to a thread and take it back costs more than many a leg does, so one thread runs them all. A leg that hangs or
is late is *overtaken*: another thread goes on with something instead, and the first, should it ever come to the end of its
leg, stops there.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextvars import copy_context
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["Baton", "Detour", "Limit", "Overtaken", "alone", "relayed"]

T = TypeVar("T")


class Overtaken(BaseException):
    """Raised in a thread that must not go on. Not an Exception: it is none of the failures a leg may have."""


class _Race:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holder: Baton | None = None
        self._done = 0
        self._ended_s: dict[int, float] = {}

    def baton(self) -> Baton:
        with self._lock:
            self._holder = Baton(self)
            return self._holder

    def past(self, baton: Baton, legs: int) -> None:
        with self._lock:
            if self._holder is not baton:
                raise Overtaken
            self._done = max(self._done, legs)
            self._ended_s.setdefault(legs, time.monotonic())

    def ended_s(self, legs: int) -> float | None:
        """When the first `legs` legs had ended, on the clock of the event loop; None: not yet."""
        return self._ended_s.get(legs)

    def overtaken(self, legs: int) -> bool:
        """Whether the first `legs` legs had not ended yet: now they are as good as done, and nobody holds the baton."""
        with self._lock:
            if self._done >= legs:
                return False
            self._holder, self._done = None, legs
            self._ended_s.setdefault(legs, time.monotonic())
            return True

    def stop(self) -> None:
        with self._lock:
            self._holder = None


class Baton:
    """The right of a thread to go on."""

    def __init__(self, race: _Race) -> None:
        self._race = race

    def past(self, legs: int) -> None:
        """So many legs have ended. Overtaken where this thread must stop."""
        self._race.past(self, legs)


def alone() -> Baton:
    """For work that nobody overtakes: its legs keep their times themselves."""
    return _Race().baton()


@dataclass(frozen=True, slots=True)
class Limit:
    """The first `legs` legs end within `after_s` seconds of the end of the first `since` (0: of the start), and within
    `latest_s` of the start; else the caller hears of a TimeoutError, though no thread is free to tell him."""

    legs: int
    after_s: float
    since: int = 0
    latest_s: float = math.inf


@dataclass(frozen=True, slots=True)
class Detour(Generic[T]):
    """Where what a Limit asks for is not so, `instead` does what comes after these legs."""

    legs: int
    after_s: float
    instead: Callable[[Baton], T]
    since: int = 0
    latest_s: float = math.inf


async def relayed(
    pool: Executor, first: Callable[[Baton], T], detours: Sequence[Detour[T]], limits: Sequence[Limit] = ()
) -> T:
    """What `first`, or the detour that overtook it, gives or raises. They know whom they work for, as the caller does. Where
    the caller stops waiting, what runs stops at the end of its leg."""
    loop, race = asyncio.get_running_loop(), _Race()
    answer: asyncio.Future[T] = loop.create_future()
    began_s = loop.time()

    def start(work: Callable[[Baton], T]) -> None:
        running = loop.run_in_executor(pool, copy_context().run, _run, work, race.baton())
        running.add_done_callback(lambda ended: _settle(answer, ended))

    def due(limit: Limit | Detour[T], timer: int) -> None:
        if answer.done():
            return
        since_s = race.ended_s(limit.since) if limit.since else began_s
        # Legs that have not begun by now end no earlier than this: to look again then is soon enough.
        ends_s = min((loop.time() if since_s is None else since_s) + limit.after_s, began_s + limit.latest_s)
        if ends_s > loop.time():
            timers[timer] = loop.call_at(ends_s, due, limit, timer)
        elif race.overtaken(limit.legs):
            if isinstance(limit, Detour):
                start(limit.instead)
            else:
                answer.set_exception(TimeoutError())

    every: list[Limit | Detour[T]] = [*limits, *detours]
    timers = [loop.call_later(min(one.after_s, one.latest_s), due, one, at) for at, one in enumerate(every)]
    start(first)
    try:
        return await answer
    finally:
        race.stop()
        for timer in timers:
            timer.cancel()


def _run(work: Callable[[Baton], T], baton: Baton) -> T:
    baton.past(0)  # it may have waited for its thread until nobody wanted it any more
    return work(baton)


def _settle(answer: asyncio.Future[T], ended: asyncio.Future[T]) -> None:
    if ended.cancelled():
        answer.cancel()
        return
    error = ended.exception()
    if answer.done() or isinstance(error, Overtaken):
        return
    if error is None:
        answer.set_result(ended.result())
    else:
        answer.set_exception(error)
