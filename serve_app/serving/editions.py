"""The edition that work of the server's own is done with: what is in force now, with all catalogue changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import numpy as np

from serve_app.errors import LedgerUnavailable
from serve_app.serving.library import Edition, Library, Pins
from serve_app.serving.owner import LiveAnswer

__all__ = ["EditionNow", "OwnerCall", "editions"]

OwnerCall = Callable[..., Awaitable[Any]]
"""call(method, *arguments, **keywords): one method of the ledger, by name (see serve_app.serving.owner)."""

EditionNow = Callable[[], AbstractAsyncContextManager[Edition]]
"""The edition in force, held while the context is open."""

Live = Callable[..., Awaitable[LiveAnswer]]


def editions(library: Library, live: Live, live_ms: float) -> EditionNow:
    """Editions of `library`. LedgerUnavailable where live changes are not learned in time: nothing is done unverified."""

    @asynccontextmanager
    async def now() -> AsyncIterator[Edition]:
        with library.releases.pinned() as (release, _), library.policies.pinned() as (policy, _):
            try:
                async with asyncio.timeout(live_ms / 1000):
                    seen = await live(np.empty(0, np.uint64), library.seq)
            except TimeoutError:
                raise LedgerUnavailable("live changes could not be checked in time", field="availability") from None
            library.learn(seen.changes)
            yield library.edition(Pins(release, policy, seen.head))

    return now
