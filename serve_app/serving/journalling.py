"""The journal as the serving path uses it: finished batches in, durable within a budget or said to be late."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

import pyarrow as pa

from serve_app.batch import Batch
from serve_app.errors import HindcastError
from serve_app.log.assigned import assigned_columns
from serve_app.log.fingerprint import code_version, fingerprint
from serve_app.log.journal import Journal
from serve_app.log.rows import EntityHashes, rows_from_batch
from serve_app.serving.budgets import stretched
from serve_app.serving.library import Edition
from serve_app.serving.meters import count, timed

__all__ = ["JournalHost"]

_LOG = logging.getLogger("hindcast.serving")


class JournalHost:
    """Appends finished batches to this process's journal, within a budget."""

    def __init__(self, journal: Journal, budget_ms: float) -> None:
        self.journal = journal
        self._budget_s = budget_ms / 1000
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="journal")

    def append(self, batch: Batch, edition: Edition, **ledgered: Any) -> bool:
        """Whether the batch is durable in time. An append that is late may still happen, and is then in the log.
        ledgered: what `rows_from_batch` takes of the ledger's answer."""
        catalogue = edition.release.catalogue
        hashes = EntityHashes(
            edition.view.hashes, catalogue.review_hashes, catalogue.widget_hashes, catalogue.category_hashes
        )
        rows = rows_from_batch(
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
        return self.write(rows, budget_s=stretched(self._budget_s, len(batch)))

    def write(self, rows: Mapping[str, pa.RecordBatch], *, budget_s: float | None = None) -> bool:
        """Whether rows of log tables are durable in time: the journal's own budget, or the one given."""
        budget_s = budget_s or self._budget_s
        done: Future[None] = self._pool.submit(self.journal.append, rows)
        try:
            with timed("hindcast_stage_ms", stage="log"):
                done.result(budget_s)
        except FutureTimeout:
            count("hindcast_degraded", stage="log")
            _LOG.warning("the journal missed its budget of %g s", budget_s)
            return False
        except HindcastError as error:
            _LOG.error("the journal refused a write: %s", error)
            return False
        return True

    def close(self) -> None:
        """Finish what is under way."""
        self._pool.shutdown(wait=True)
        self.journal.close()
