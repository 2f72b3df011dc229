"""Threads that work: how many wait, how many are at it."""

from __future__ import annotations

import threading

from serve_app.clock import monotonic_s
from serve_app.serving.threads import WorkThreads

_LONG_S = 30.0


def test_calls_that_wait_and_calls_under_way_are_told_apart() -> None:
    gate, begun = threading.Event(), threading.Semaphore(0)

    def work() -> None:
        begun.release()
        assert gate.wait(_LONG_S)

    pool = WorkThreads(3, "test", stuck_s=60, at_once=1)
    asked = [pool.submit(work) for _ in range(5)]
    assert begun.acquire(timeout=_LONG_S)
    ends_s = monotonic_s() + _LONG_S
    while pool.waiting < 4:  # two threads for their turn, two pieces for a thread
        assert monotonic_s() < ends_s
    assert (pool.waiting, pool.turns.waiting, pool.turns.under_way) == (4, 2, 1)
    gate.set()
    for one in asked:
        one.result(_LONG_S)
    assert (pool.waiting, pool.turns.under_way) == (0, 0)
    pool.shutdown()
