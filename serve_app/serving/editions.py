"""The edition that work of the server's own is done with: what is in force now, with all catalogue changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.errors import LedgerUnavailable
from serve_app.ledger.columns import LedgerView
from serve_app.ledger.protocol import CatalogueChange
from serve_app.serving.library import Edition, Library, Pins
from serve_app.serving.owner import LiveAnswer, Look

__all__ = ["EditionNow", "OwnerCall", "catch_up", "edition_with_changes", "editions", "look"]

_PAGE = 10_000  # changes: a megabyte or two, learned in some hundredths of a second

OwnerCall = Callable[..., Awaitable[Any]]
"""call(method, *arguments, **keywords): one method of the ledger, by name (see serve_app.serving.owner)."""

EditionNow = Callable[[], AbstractAsyncContextManager[Edition]]
"""The edition in force, held while the context is open."""

Live = Callable[..., Awaitable[LiveAnswer]]


async def catch_up(library: Library, call: OwnerCall) -> None:
    """Learn the catalogue changes so far a page at a time, before anybody asks `live`, which answers with all there are: a
    process that starts holds no more than a page that is not learned, and its event loop gets a turn between two."""
    while True:
        page: list[CatalogueChange] = await call("catalogue_changes", library.seq, _PAGE)
        library.learn(page)
        if len(page) < _PAGE:
            return


async def edition_with_changes(library: Library, live: Live, limit_s: float, release: str, policy: str) -> Edition:
    """The pinned edition with every catalogue change that was answered before now. LedgerUnavailable where they are not
    learned within `limit_s`: nothing is done unverified."""
    try:
        async with asyncio.timeout(limit_s):
            seen = await live(np.empty(0, np.uint64), library.seq)
    except TimeoutError:
        raise LedgerUnavailable("live changes could not be checked in time", field="availability") from None
    library.learn(seen.changes)
    return library.edition(Pins(release, policy, seen.head))


async def look(
    library: Library, call: OwnerCall, limit_s: float, users: npt.NDArray[np.uint64], after_seq: int
) -> tuple[int, LedgerView]:
    """The newest catalogue sequence number, whose changes the library has learned then, and what the ledger says of `users`
    (u64[n]), in one call. LedgerUnavailable where that takes longer than `limit_s`."""
    try:
        async with asyncio.timeout(limit_s):
            seen: Look = await call("look", users, after_seq)
    except TimeoutError:
        raise LedgerUnavailable("users and live changes could not be read in time", field="ledger") from None
    library.learn(seen.changes)
    return seen.head, seen.view


def editions(library: Library, live: Live, live_ms: float) -> EditionNow:
    """Editions of `library`, pinned while they are in use; see `edition_with_changes`."""

    @asynccontextmanager
    async def now() -> AsyncIterator[Edition]:
        with library.releases.pinned() as (release, _), library.policies.pinned() as (policy, _):
            yield await edition_with_changes(library, live, live_ms / 1000, release, policy)

    return now
