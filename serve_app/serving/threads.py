"""Worker threads that know how long each has been at its present work.

Native calls cannot be interrupted: a thread that hangs in one is lost to its process, and with enough of them the process
serves nothing. `check` raises then, for the health check that has the replica replaced.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import ParamSpec, TypeVar

from serve_app.clock import monotonic_s
from serve_app.errors import HindcastError

__all__ = ["Left", "Turns", "WorkThreads"]

P = ParamSpec("P")
T = TypeVar("T")
_LOOK_S = 0.05


class Left(BaseException):
    """Whoever is worked for has left. Not an Exception: it is none of the failures that work may have."""


class Turns:
    """How many threads of a process work at once, and how long each has been at it."""

    def __init__(self, at_once: int, name: str, *, stuck_s: float) -> None:
        """stuck_s: no piece of work takes as long."""
        self._name, self._stuck_s = name, stuck_s
        self._free = threading.Semaphore(at_once)
        self._began: dict[int, float] = {}
        self._waiting = set[int]()
        self._own = threading.local()

    @property
    def asked_s(self) -> float:
        """When the calling thread, whose turn it is, began to wait for it."""
        asked_s: float = self._own.asked_s
        return asked_s

    def taken(self, left: Callable[[], bool]) -> AbstractContextManager[None]:
        """The calling thread works, as soon as it is its turn. Left where `left` says so after it had to wait."""
        return _Taken(self, left)

    def _take(self, left: Callable[[], bool]) -> None:
        self._own.asked_s, self._own.left = monotonic_s(), left
        if not self._free.acquire(blocking=False):
            self._wait(left)
        self._began[threading.get_ident()] = monotonic_s()

    def _give_back(self) -> None:
        del self._began[threading.get_ident()]
        self._free.release()

    def _wait(self, left: Callable[[], bool]) -> None:
        me = threading.get_ident()
        self._waiting.add(me)
        try:
            while not self._free.acquire(timeout=_LOOK_S):
                if left():
                    raise Left
        finally:
            self._waiting.discard(me)
        if left():
            self._free.release()
            raise Left

    def given_up(self) -> AbstractContextManager[None]:
        """The calling thread, whose turn it is, waits for another process: others may work meanwhile. Left where whoever it
        works for did not wait as long."""
        return _GivenUp(self)

    def _give_up(self) -> None:
        self._free.release()

    def _resume(self) -> None:
        self._free.acquire()
        if self._own.left():
            raise Left

    @property
    def waiting(self) -> int:
        """Threads that wait for their turn."""
        return len(self._waiting)

    @property
    def under_way(self) -> int:
        """Threads that work, or wait for another process meanwhile."""
        return len(self._began)

    def longest_s(self) -> float:
        """How long the thread that has been at it longest has been at it."""
        now = monotonic_s()
        return max((now - began for began in list(self._began.values())), default=0.0)

    def check(self) -> None:
        """HindcastError where a thread is stuck. One that compiles is not, nor are those that wait for it."""
        longest = self.longest_s()
        if longest > self._stuck_s and not _compiling():
            raise HindcastError(f"a {self._name} thread has been at one thing for {longest:.0f} s")


class _Taken(AbstractContextManager[None]):
    """See Turns.taken. What every call enters is a class: with generators a lone page took 1 to 15 % longer, in turns."""

    __slots__ = ("_left", "_turns")

    def __init__(self, turns: Turns, left: Callable[[], bool]) -> None:
        self._turns, self._left = turns, left

    def __enter__(self) -> None:
        self._turns._take(self._left)

    def __exit__(self, *_: object) -> None:
        self._turns._give_back()


class _GivenUp(AbstractContextManager[None]):
    """See Turns.given_up."""

    __slots__ = ("_turns",)

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def __enter__(self) -> None:
        self._turns._give_up()

    def __exit__(self, *_: object) -> None:
        self._turns._resume()


class WorkThreads(ThreadPoolExecutor):
    """A pool of threads that says when one of them is stuck."""

    def __init__(self, threads: int, name: str, *, stuck_s: float, at_once: int | None = None) -> None:
        """stuck_s: see Turns. at_once: threads that work while the others wait for their turn; None: all."""
        super().__init__(threads, thread_name_prefix=name)
        self.turns = Turns(at_once or threads, name, stuck_s=stuck_s)

    def submit(self, function: Callable[P, T], /, *arguments: P.args, **keywords: P.kwargs) -> Future[T]:
        """See ThreadPoolExecutor."""
        return super().submit(self._in_turn, function, *arguments, **keywords)

    def _in_turn(self, function: Callable[P, T], /, *arguments: P.args, **keywords: P.kwargs) -> T:
        with self.turns.taken(_stays):
            return function(*arguments, **keywords)

    @property
    def waiting(self) -> int:
        """Pieces of work that have not begun."""
        return self._work_queue.qsize() + self.turns.waiting

    def check(self) -> None:
        """HindcastError where a thread is stuck."""
        self.turns.check()


def _stays() -> bool:
    return False


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
