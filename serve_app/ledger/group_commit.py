"""One thread that owns a SQLite connection and runs everybody's writes, many of them in one transaction.

A caller hands in an operation and waits until the transaction that holds it is durable. While one transaction is being
synced to disk the next callers queue up, so that the cost of a sync is shared by all who wait for it.
"""

from __future__ import annotations

import contextlib
import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, Protocol, TypeVar

from serve_app.errors import HindcastError, LedgerUnavailable, OutcomeUnknown

__all__ = ["GroupCommit", "GroupOwner"]

R = TypeVar("R")
_Job = tuple[Callable[[], Any], "Future[Any]"]
_MOST = 256  # operations in one transaction
_PAUSE_S, _QUIET_S = 0.25, 2.0  # how long to wait for a job; without any for this long, the owner is idle


class GroupOwner(Protocol):
    """What the thread needs from the ledger it works for. The thread alone changes the ledger's memory, under the lock
    that readers take too."""

    def open_connection(self) -> sqlite3.Connection:
        """Connect and load; called in the thread, at the start and again after a failed transaction."""

    def between(self, connection: sqlite3.Connection, *, idle: bool) -> bool:
        """Housekeeping between transactions; True while there is more to do at once."""

    def closing(self, connection: sqlite3.Connection) -> None:
        """Last words before the connection closes."""


class GroupCommit:
    """Starts the thread; raises what the first `open_connection` raised."""

    def __init__(self, owner: GroupOwner, lock: threading.RLock, timeout_s: float) -> None:
        self._owner, self._lock, self.timeout_s = owner, lock, timeout_s
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._connection: sqlite3.Connection | None = None
        self.closed = False
        started: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(started,), name="ledger-writer", daemon=True)
        self._thread.start()
        started.result()

    @property
    def connection(self) -> sqlite3.Connection:
        """The connection, for use inside operations only."""
        if self._connection is None:
            raise LedgerUnavailable("the ledger file cannot be opened", hint="see the log for the cause; it is tried again")
        return self._connection

    @property
    def healthy(self) -> bool:
        """False between a failed transaction and the next successful load."""
        return self._connection is not None and not self.closed and self.alive

    @property
    def queued(self) -> int:
        """Operations that wait for a transaction."""
        return self._jobs.qsize()

    @property
    def alive(self) -> bool:
        """Whether the thread works, or has been told to end."""
        return self.closed or self._thread.is_alive()

    def run(self, operation: Callable[[], R]) -> R:
        """Run `operation` in the thread, inside a transaction; returns when that is durable.

        Raises what the operation raised (it must not have written by then), LedgerUnavailable when nothing was
        committed, OutcomeUnknown when that is not known.
        """
        future = self.begin(operation)
        try:
            return future.result(self.timeout_s)
        except FutureTimeout:
            raise self.overdue(future) from None

    def begin(self, operation: Callable[[], R]) -> Future[R]:
        """`run` for those who do not wait in a thread: what it would give or raise comes in the future. Who has waited for
        `timeout_s` raises what `overdue` gives."""
        if self.closed or not self.alive:
            raise LedgerUnavailable("the ledger is closed" if self.closed else "the ledger's thread has ended")
        future: Future[R] = Future()
        self._jobs.put((operation, future))
        return future

    def overdue(self, future: Future[Any]) -> HindcastError:
        """What to raise of an operation that took too long; one that has not begun never will."""
        if future.cancel():
            return LedgerUnavailable(f"the ledger was busy for {self.timeout_s:g} s")
        return OutcomeUnknown(f"the write did not end within {self.timeout_s:g} s", hint="retry the same key")

    def close(self) -> None:
        """Finish what is queued, then end the thread."""
        if not self.closed:
            self.closed = True
            self._jobs.put(None)
            self._thread.join()

    def _run(self, started: Future[None]) -> None:
        try:
            self._connection = self._owner.open_connection()
        except BaseException as error:  # noqa: BLE001 (handed to the thread that waits for the start)
            started.set_exception(error)
            return
        started.set_result(None)
        more, last, quiet_s = False, False, 0.0
        while not last:
            jobs, last = self._take(wait=not more)
            if jobs:
                self._transact(jobs)
            # Between two large batches a second may pass: that is no reason to begin a round for a handful of rows.
            quiet_s = 0.0 if jobs else quiet_s + (0.0 if more else _PAUSE_S)
            more = self._housekeep(idle=quiet_s >= _QUIET_S) if not last else False
        self._drain()
        if self._connection is not None:
            self._owner.closing(self._connection)
            self._connection.close()
            self._connection = None

    def _take(self, *, wait: bool) -> tuple[list[_Job], bool]:
        """Jobs that wait (at least one, or none after a pause), and whether the end was asked for."""
        jobs: list[_Job] = []
        try:
            job = self._jobs.get(timeout=_PAUSE_S) if wait else self._jobs.get_nowait()
            while job is not None:
                if job[1].set_running_or_notify_cancel():
                    jobs.append(job)
                if len(jobs) >= _MOST:
                    return jobs, False
                job = self._jobs.get_nowait()
        except queue.Empty:
            return jobs, False
        return jobs, True

    def _transact(self, jobs: list[_Job]) -> None:
        outcomes: list[tuple[Future[Any], Any, BaseException | None]] = []
        committing = False
        try:
            if self._connection is None:
                self._connection = self._owner.open_connection()
            self._connection.execute("BEGIN")
            for operation, future in jobs:
                try:
                    outcomes.append((future, operation(), None))
                except HindcastError as error:
                    outcomes.append((future, None, error))
            committing = True
            self._connection.execute("COMMIT")
        except BaseException as error:  # noqa: BLE001 (every waiting caller is told)
            self._fail(jobs, error, committing=committing)
            return
        for future, result, raised in outcomes:
            if raised is not None:
                future.set_exception(raised)
            else:
                future.set_result(result)

    def _fail(self, jobs: list[_Job], error: BaseException, *, committing: bool) -> None:
        """The transaction is gone, and memory is ahead of the file: load anew before anyone reads."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            # Where this fails too, `connection` says so to every caller, and the next job tries again.
            with contextlib.suppress(HindcastError, sqlite3.Error, OSError):
                self._connection = self._owner.open_connection()
        kind = OutcomeUnknown if committing else LedgerUnavailable
        for _, future in jobs:
            told = kind(f"the ledger's transaction failed: {error}") if isinstance(error, sqlite3.Error | OSError) else error
            told.__cause__ = error if told is not error else None
            future.set_exception(told)

    def _housekeep(self, *, idle: bool) -> bool:
        if self._connection is None:
            return False
        try:
            return self._owner.between(self._connection, idle=idle)
        except (sqlite3.Error, HindcastError) as error:
            self._fail([], error, committing=False)
            return False

    def _drain(self) -> None:
        while True:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return
            if job is not None and job[1].set_running_or_notify_cancel():
                job[1].set_exception(LedgerUnavailable("the ledger is closed"))
