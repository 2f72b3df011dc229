"""How long a stage may take: its budget for a batch of a given size, and no longer than whoever asked will wait."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from serve_app.clock import monotonic_s

__all__ = ["left_of", "over_at", "stretched"]

_MICRO_BATCH = 64

_over_s: ContextVar[float] = ContextVar("hindcast_over_s", default=math.inf)


def stretched(budget_s: float, rows: int) -> float:
    """A stage's budget for `rows` requests: budgets are meant for micro-batches, and grow for what is larger."""
    return budget_s * max(1.0, rows / _MICRO_BATCH)


@contextmanager
def over_at(at_s: float) -> Iterator[None]:
    """Work of this thread that waits for nobody after `at_s` of the monotonic clock."""
    token = _over_s.set(at_s)
    try:
        yield
    finally:
        _over_s.reset(token)


def left_of(budget_s: float, share: float = 1.0) -> float:
    """The budget, or this share of what is left of the time for this thread's work. TimeoutError where nothing is."""
    left_s = share * (_over_s.get() - monotonic_s())
    if left_s <= 0:
        raise TimeoutError("the time for the whole is over")
    return min(budget_s, left_s)
