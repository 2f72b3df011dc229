"""The journal as the serving path uses it: finished batches in, durable within a budget or said to be late."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

from serve_app.batch import Batch
from serve_app.clock import monotonic_s
from serve_app.log.assigned import assigned_columns
from serve_app.log.fingerprint import code_version, fingerprint
from serve_app.log.frames import Rows
from serve_app.log.journal import Journal
from serve_app.log.rows import EntityHashes, given_from_batch
from serve_app.serving import faults, spans
from serve_app.serving.budgets import stretched
from serve_app.serving.library import Edition
from serve_app.serving.meters import count, observe

__all__ = ["JournalHost"]

_LOG = logging.getLogger("hindcast.serving")
_PATIENCE = 4.0
Durable = Callable[[], bool]
"""Waits, as long as the budget allows: whether it is durable."""

_MOST_WAITING = 256


class JournalHost:
    """Appends finished batches to this process's journal, within a budget.

    An append cannot be taken back, so one that is late goes on by itself. Where one has hung for several budgets, or very
    many wait, further ones are not begun: nobody waits for a disk that does not answer, and memory stays bounded.
    """

    def __init__(self, journal: Journal, budget_ms: float) -> None:
        self.journal = journal
        self._budget_s = budget_ms / 1000
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="journal")
        self._waiting: dict[Future[None], float] = {}  # in order of beginning

    def append(self, batch: Batch, edition: Edition, *, within_s: float | None = None, **ledgered: Any) -> bool:
        """Whether the batch is durable in time. See `begin`."""
        return self.begin(batch, edition, within_s=within_s, **ledgered)()

    def begin(self, batch: Batch, edition: Edition, *, within_s: float | None = None, **ledgered: Any) -> Durable:
        """Begin to append the batch. An append that is late may still happen, and is then in the log. within_s: what the
        caller has left, if less than the budget. ledgered: what `given_from_batch` takes of the ledger's answer."""
        catalogue = edition.release.catalogue
        hashes = EntityHashes(
            edition.view.hashes, catalogue.review_hashes, catalogue.widget_hashes, catalogue.category_hashes
        )
        rows = given_from_batch(
            batch,
            hashes=hashes,
            policy_revision=edition.policy.revision,
            release=edition.release.version,
            fingerprint=fingerprint(),
            salt=int(edition.policy.rules.flip_salt),
            code_version=code_version(),
            **assigned_columns(batch.requests, edition.context.policies),
            **ledgered,
        )
        budget_s = stretched(self._budget_s, len(batch))
        return self._begin(rows, budget_s if within_s is None else min(budget_s, within_s))

    def write(self, rows: Mapping[str, Rows], *, budget_s: float | None = None) -> bool:
        """Whether rows of log tables are durable in time: the journal's own budget, or the one given."""
        return self._begin(rows, self._budget_s if budget_s is None else budget_s)()

    def _begin(self, rows: Mapping[str, Rows], budget_s: float) -> Durable:
        if (why := self._hangs(max(budget_s, self._budget_s))) is not None:
            late = _late(why)
            return lambda: late
        began_s, done = monotonic_s(), self._pool.submit(self._append, rows)
        self._waiting[done] = began_s
        done.add_done_callback(self._waiting.pop)
        return lambda: self._durable(done, began_s, budget_s)

    @staticmethod
    def _durable(done: Future[None], began_s: float, budget_s: float) -> bool:
        try:
            with spans.span("log"):
                done.result(max(began_s + budget_s - monotonic_s(), 0.0))
        except FutureTimeout:
            return _late(f"the journal missed its budget of {budget_s:g} s")
        except Exception as error:  # noqa: BLE001 - whatever failed, the rows are not known to be durable
            return _late(f"the journal refused a write: {type(error).__name__}: {error}")
        finally:
            observe("hindcast_stage_ms", (monotonic_s() - began_s) * 1e3, stage="log")
        return True

    def _append(self, rows: Mapping[str, Rows]) -> None:
        faults.strike(faults.Point.journal)
        self.journal.append(rows)

    def _hangs(self, budget_s: float) -> str | None:
        """Why no further append is begun now."""
        waiting = list(self._waiting.values())
        if len(waiting) >= _MOST_WAITING:
            return f"{len(waiting)} appends to the journal wait already"
        if waiting and (since := monotonic_s() - waiting[0]) > _PATIENCE * budget_s:
            return f"an append to the journal has hung for {since:.1f} s"
        return None

    def close(self) -> None:
        """Finish what is under way."""
        self._pool.shutdown(wait=True)
        self.journal.close()


def _late(why: str) -> bool:
    count("hindcast_degraded", stage="log")
    _LOG.warning("%s", why)
    return False
