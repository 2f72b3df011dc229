"""The journal as the serving path uses it: finished batches in, durable within a budget or said to be late."""

from __future__ import annotations

import logging
from collections.abc import Mapping
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
from serve_app.serving import faults
from serve_app.serving.budgets import stretched
from serve_app.serving.library import Edition
from serve_app.serving.meters import count, timed

__all__ = ["JournalHost"]

_LOG = logging.getLogger("hindcast.serving")
_PATIENCE = 4.0
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
        """Whether the batch is durable in time. An append that is late may still happen, and is then in the log.
        within_s: what the caller has left, if less than the budget. ledgered: what `given_from_batch` takes of the ledger's
        answer."""
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
        return self.write(rows, budget_s=budget_s if within_s is None else min(budget_s, within_s))

    def write(self, rows: Mapping[str, Rows], *, budget_s: float | None = None) -> bool:
        """Whether rows of log tables are durable in time: the journal's own budget, or the one given."""
        budget_s = self._budget_s if budget_s is None else budget_s
        if (why := self._hangs(max(budget_s, self._budget_s))) is not None:
            return _late(why)
        done = self._pool.submit(self._append, rows)
        self._waiting[done] = monotonic_s()
        done.add_done_callback(self._waiting.pop)
        try:
            with timed("hindcast_stage_ms", stage="log"):
                done.result(budget_s)
        except FutureTimeout:
            return _late(f"the journal missed its budget of {budget_s:g} s")
        except Exception as error:  # noqa: BLE001 - whatever failed, the rows are not known to be durable
            return _late(f"the journal refused a write: {type(error).__name__}: {error}")
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
