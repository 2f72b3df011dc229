"""The log kept up while a server runs: journal compacted, decision records copied, erased users forgotten, daily snapshots.

One worker does it at a time (the log's writer lock); the others find it at work and wait for their next turn.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path

import pyarrow as pa

from serve_app.clock import now_us
from serve_app.errors import HindcastError, NotReady
from serve_app.log.upkeep import UpkeepLedger, UpkeepResult, upkeep
from serve_app.serving.meters import count
from serve_app.serving.stages import in_pool

__all__ = ["Upkeeper"]

_LOG = logging.getLogger("hindcast.serving")


class Upkeeper:
    """See the module. every_s: from the end of one run to the next. The work is done in threads of `pool`."""

    def __init__(
        self, data: Path, ledger: UpkeepLedger, pool: Executor, *, every_s: float, clock: Callable[[], int] = now_us
    ) -> None:
        self._data, self._ledger, self._pool, self._clock = data, ledger, pool, clock
        self._every_s = every_s

    async def run(self) -> None:
        """Until cancelled. An error is said, counted, and tried again at the next turn: nothing is lost meanwhile."""
        while True:
            await asyncio.sleep(self._every_s)
            try:
                await self.once()
            except NotReady as busy:
                count("hindcast_upkeep", outcome="busy")
                _LOG.info("the log is kept up by somebody else: %s", busy.message)
            except (HindcastError, OSError) as error:
                count("hindcast_upkeep", outcome="failed")
                _LOG.warning("the log cannot be kept up: %s", error)

    async def once(self) -> UpkeepResult:
        """One run."""
        result = await in_pool(self._pool, self._kept_up)
        count("hindcast_upkeep", outcome="done")
        if result.copies.unreadable:
            _LOG.error("%d decision records cannot be read: hindcast ledger check", result.copies.unreadable)
        return result

    def _kept_up(self) -> UpkeepResult:
        try:
            return upkeep(self._data, self._ledger, now_us=self._clock())
        finally:
            _give_back()


def _give_back() -> None:
    """Memory that the work needed goes back to the system: the next run is minutes away."""
    pa.default_memory_pool().release_unused()
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:  # glibc's
        trim(0)
