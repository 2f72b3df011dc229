"""Worker threads that know how long each has been at its present work.

Native calls cannot be interrupted: a thread that hangs in one is lost to its process, and with enough of them the process
serves nothing. `check` raises then, for the health check that has the replica replaced.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from serve_app.clock import monotonic_s
from serve_app.errors import HindcastError

__all__ = ["WorkThreads"]

P = ParamSpec("P")
T = TypeVar("T")


class WorkThreads(ThreadPoolExecutor):
    """A pool of threads that says when one of them is stuck."""

    def __init__(self, threads: int, name: str, *, stuck_s: float) -> None:
        """stuck_s: no piece of work takes as long."""
        super().__init__(threads, thread_name_prefix=name)
        self._stuck_s = stuck_s
        self._began: dict[int, float] = {}

    def submit(self, function: Callable[P, T], /, *arguments: P.args, **keywords: P.kwargs) -> Future[T]:
        """See ThreadPoolExecutor."""
        return super().submit(self._timed, function, *arguments, **keywords)

    def _timed(self, function: Callable[P, T], /, *arguments: P.args, **keywords: P.kwargs) -> T:
        me = threading.get_ident()
        self._began[me] = monotonic_s()
        try:
            return function(*arguments, **keywords)
        finally:
            del self._began[me]

    def longest_s(self) -> float:
        """How long the thread that has been at it longest has been at it."""
        now = monotonic_s()
        return max((now - began for began in list(self._began.values())), default=0.0)

    def check(self) -> None:
        """HindcastError where a thread is stuck. One that compiles is not, nor are those that wait for it."""
        longest = self.longest_s()
        if longest > self._stuck_s and not _compiling():
            raise HindcastError(f"a {self._thread_name_prefix} thread has been at one thing for {longest:.0f} s")


def _compiling() -> bool:
    """Whether another thread of this process compiles a kernel just now: on a new machine that takes minutes, once."""
    numba = sys.modules.get("numba.core.compiler_lock")
    if numba is None:
        return False
    lock = numba.global_compiler_lock._lock
    if lock.acquire(blocking=False):
        lock.release()
        return False
    return True
