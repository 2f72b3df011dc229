"""All parts of a server in one process: `topology: fused`, and tests without Ray."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

from serve_app.ledger.protocol import Ledger
from serve_app.serving.deciding import DecideFlow
from serve_app.serving.hosts import FeaturesHost, RankingHost, RetrievalHost
from serve_app.serving.journalling import JournalHost
from serve_app.serving.ledger_client import LedgerClient
from serve_app.serving.library import Library
from serve_app.serving.local_rpc import NotTaken
from serve_app.serving.nearby import Peer
from serve_app.serving.stages import LocalStages
from serve_app.serving.trips import LocalScores
from serve_app.settings import Settings

__all__ = ["bridged", "local_stages"]


def bridged(
    call: Callable[..., Any],
    loop: asyncio.AbstractEventLoop,
    timeout_s: float,
    read_s: float | None = None,
    near: Callable[[], Peer | None] = lambda: None,
) -> LedgerClient:
    """A ledger for worker threads: over a line of the thread's own where the owner is `near`, else by the owner's coroutine
    `call`, which runs on `loop`. read_s: how long a read may take (default: as long as anything); it is given up then. A
    write that takes too long goes on, its outcome unknown."""

    def ask(method: str, *arguments: Any, **keywords: Any) -> Any:
        limit_s = read_s if method == "read" else None
        gives_up, within_s = limit_s is not None, timeout_s if limit_s is None else limit_s
        if (peer := near()) is not None:
            with contextlib.suppress(NotTaken):
                return peer.wait(within_s, "call", method, *arguments, call_off=gives_up, **keywords)
        asked = asyncio.run_coroutine_threadsafe(call(method, *arguments, **keywords), loop)
        try:
            return asked.result(within_s)
        except TimeoutError:
            if gives_up:
                asked.cancel()
            raise

    return LedgerClient(ask)


def local_stages(
    settings: Settings, library: Library, ledger: Ledger
) -> Callable[[JournalHost, ThreadPoolExecutor], LocalStages]:
    """Every stage over `library`, as an ingress takes them."""

    def make(journal: JournalHost, pool: Executor) -> LocalStages:
        budgets = settings.budgets
        scores = LocalScores(FeaturesHost(library), RankingHost(library, journal), features_ms=budgets.features_ms)
        decide = DecideFlow(
            library,
            ledger,
            scores,
            journal,
            pool,
            ranking_ms=budgets.ranking_ms,
            max_attempts=settings.ledger.max_attempts,
        )
        return LocalStages(RetrievalHost(library), scores, library, decide, pool)

    return make
