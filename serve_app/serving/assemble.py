"""All parts of a server in one process: `topology: fused`, and tests without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

from serve_app.ledger.protocol import Ledger
from serve_app.serving.deciding import DecideFlow
from serve_app.serving.hosts import FeaturesHost, RankingHost, RetrievalHost
from serve_app.serving.journalling import JournalHost
from serve_app.serving.ledger_client import LedgerCall, LedgerClient
from serve_app.serving.library import Library
from serve_app.serving.stages import LocalStages
from serve_app.settings import Settings

__all__ = ["bridge", "bridged", "local_stages"]


def bridged(
    call: Callable[..., Any], loop: asyncio.AbstractEventLoop, timeout_s: float, read_s: float | None = None
) -> LedgerClient:
    """A ledger for worker threads over the owner's coroutine `call`; see `bridge`."""
    return LedgerClient(bridge(call, loop, timeout_s, read_s))


def bridge(
    call: Callable[..., Any], loop: asyncio.AbstractEventLoop, timeout_s: float, read_s: float | None = None
) -> LedgerCall:
    """`call`, which runs on `loop`, for worker threads. read_s: how long a read may take (default: as long as anything); it
    is given up then. A write that takes too long goes on, its outcome unknown."""

    def ask(method: str, *arguments: Any, **keywords: Any) -> Any:
        asked = asyncio.run_coroutine_threadsafe(call(method, *arguments, **keywords), loop)
        if method != "read" or read_s is None:
            return asked.result(timeout_s)
        try:
            return asked.result(read_s)
        except TimeoutError:
            asked.cancel()
            raise

    return ask


def local_stages(
    settings: Settings, library: Library, ledger: Ledger
) -> Callable[[JournalHost, ThreadPoolExecutor], LocalStages]:
    """Every stage over `library`, as an ingress takes them."""

    def make(journal: JournalHost, pool: Executor) -> LocalStages:
        budgets = settings.budgets
        return LocalStages(
            RetrievalHost(library),
            FeaturesHost(library),
            RankingHost(library, journal),
            lambda scores: DecideFlow(
                library,
                ledger,
                scores,
                journal,
                pool,
                ranking_ms=budgets.ranking_ms,
                max_attempts=settings.ledger.max_attempts,
            ),
            pool,
            features_ms=budgets.features_ms,
        )

    return make
