"""Work of several legs that one thread does in one go, though each leg has a time of its own.

To hand work to a thread and take it back costs more than many a leg does, so one thread runs them all. A leg that hangs or
is late is *overtaken*: another thread goes on with something instead, and the first, should it ever come to the end of its
leg, stops there.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextvars import copy_context
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["Baton", "Detour", "Overtaken", "relayed"]

T = TypeVar("T")


class Overtaken(BaseException):
    """Raised in a thread that must not go on. Not an Exception: it is none of the failures a leg may have."""


class _Race:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holder: Baton | None = None
        self._done = 0

    def baton(self) -> Baton:
        with self._lock:
            self._holder = Baton(self)
            return self._holder

    def past(self, baton: Baton, legs: int) -> None:
        with self._lock:
            if self._holder is not baton:
                raise Overtaken
            self._done = max(self._done, legs)

    def overtaken(self, legs: int) -> bool:
        """Whether the first `legs` legs had not ended yet: now they are as good as done, and nobody holds the baton."""
        with self._lock:
            if self._done >= legs:
                return False
            self._holder, self._done = None, legs
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


@dataclass(frozen=True, slots=True)
class Detour(Generic[T]):
    """Where the first `legs` legs have not ended `after_s` seconds from the start, `instead` does what comes after them."""

    legs: int
    after_s: float
    instead: Callable[[Baton], T]


async def relayed(pool: Executor, first: Callable[[Baton], T], detours: Sequence[Detour[T]]) -> T:
    """What `first`, or the detour that overtook it, gives or raises. They know whom they work for, as the caller does. Where
    the caller stops waiting, what runs stops at the end of its leg."""
    loop, race = asyncio.get_running_loop(), _Race()
    answer: asyncio.Future[T] = loop.create_future()

    def start(work: Callable[[Baton], T]) -> None:
        running = loop.run_in_executor(pool, copy_context().run, _run, work, race.baton())
        running.add_done_callback(lambda ended: _settle(answer, ended))

    def overtake(detour: Detour[T]) -> None:
        if not answer.done() and race.overtaken(detour.legs):
            start(detour.instead)

    timers = [loop.call_later(one.after_s, overtake, one) for one in detours]
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
