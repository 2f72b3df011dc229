"""A capacity that tests set (`testing.capacity_per_s`): micro-batches share it as processes share a processor."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

__all__ = ["Throttle", "throttled"]

T = TypeVar("T")
R = TypeVar("R")


class Throttle:
    """So many requests a second, request by request, in turns among the micro-batches that wait."""

    def __init__(self, capacity_per_s: float) -> None:
        self._each_s = 1 / capacity_per_s
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._pump: asyncio.Task[None] | None = None

    async def take(self, requests: int) -> None:
        """Wait until as many requests' turns have come."""
        loop = asyncio.get_running_loop()
        over = loop.create_future()
        self._waiting.append((requests, over))
        if self._pump is None or self._pump.done():
            self._pump = loop.create_task(self._serve())
        await over

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        next_s = loop.time()
        while self._waiting:
            next_s += self._each_s
            await asyncio.sleep(next_s - loop.time())
            left, over = self._waiting.popleft()
            if left > 1 and not over.done():
                self._waiting.append((left - 1, over))
            elif not over.done():
                over.set_result(None)


def throttled(
    run: Callable[[Sequence[T]], Awaitable[Sequence[R | Exception]]], throttle: Throttle | None
) -> Callable[[Sequence[T]], Awaitable[Sequence[R | Exception]]]:
    """`run`, each of whose batches first waits for its share of the capacity. None: `run` itself."""
    if throttle is None:
        return run

    async def waits(items: Sequence[T]) -> Sequence[R | Exception]:
        await throttle.take(len(items))
        return await run(items)

    return waits
