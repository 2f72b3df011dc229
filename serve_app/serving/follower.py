"""A replica's side of a promotion: hold what the board wants, pin to what it says, report."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Executor
from typing import Any

from serve_app.errors import HindcastError
from serve_app.serving.board import KINDS, POLL_S, Kind, Orders, Report
from serve_app.serving.versions import VersionStore

__all__ = ["Follower"]

_LOG = logging.getLogger("hindcast.serving")
_RETRY_S = 0.5
_POLL_LIMIT_S = 5 * POLL_S

Poll = Callable[[Report, int], Awaitable[Orders]]


class Follower:
    """Keeps one process's version stores as the board orders. `start()` returns when the first orders are carried out."""

    def __init__(
        self, replica: str, role: str, stores: Mapping[Kind, VersionStore[Any]], poll: Poll, pool: Executor, *, admits: bool
    ) -> None:
        self._replica, self._role, self._admits = replica, role, admits
        self._stores, self._poll, self._pool = stores, poll, pool
        self._failures: dict[str, str] = {}
        self._epoch = 0
        self._ready = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._stopping = False

    async def start(self) -> None:
        """Begin to follow; raises what the first orders' versions raised."""
        orders = await self._ask()
        for kind in KINDS:
            for version in orders.wanted[kind]:
                try:
                    await self._load(kind, version)
                except HindcastError:
                    if version == orders.current[kind]:
                        raise
        await self._carry_out(orders)
        self._task = asyncio.get_running_loop().create_task(self._follow())

    async def stop(self) -> None:
        """End following. The flag is needed beside the cancellation: `asyncio.wait_for` of Python 3.11, in which a poll
        waits, swallows one that meets its result."""
        self._stopping = True
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def report(self) -> Report:
        """What this process holds."""
        return Report(
            replica=self._replica,
            role=self._role,
            pid=os.getpid(),
            admits=self._admits,
            loaded={kind: store.loaded() for kind, store in self._stores.items()},
            current={kind: _current(store) for kind, store in self._stores.items()},
            in_use={kind: store.in_use() for kind, store in self._stores.items()},
            failures=dict(self._failures),
        )

    async def _ask(self) -> Orders:
        while True:
            try:
                # Limited, so that a poll that got lost with the board's process is asked again.
                async with asyncio.timeout(_POLL_LIMIT_S):
                    return await self._poll(self.report(), self._epoch)
            except asyncio.CancelledError:
                raise
            except Exception as error:  # noqa: BLE001 - the board restarts by itself; until then we serve what we hold
                _LOG.warning("the promotion board did not answer: %s", error)
                await asyncio.sleep(_RETRY_S)

    async def _follow(self) -> None:
        while not self._stopping:
            orders = await self._ask()
            if orders.epoch != self._epoch:
                await self._carry_out(orders)

    async def _carry_out(self, orders: Orders) -> None:
        for kind in KINDS:
            for version in orders.wanted[kind]:
                with contextlib.suppress(HindcastError):
                    await self._load(kind, version)
            store = self._stores[kind]
            if orders.current[kind] in store.loaded():
                store.switch(orders.current[kind])
                store.keep(orders.wanted[kind])
        self._failures = {v: why for v, why in self._failures.items() if any(v in o for o in orders.wanted.values())}
        self._epoch = orders.epoch

    async def _load(self, kind: Kind, version: str) -> None:
        if version in self._failures:
            return
        try:
            await asyncio.get_running_loop().run_in_executor(self._pool, self._stores[kind].prepare, version)
        except HindcastError as error:
            self._failures[version] = str(error)
            _LOG.error("cannot load %s %s: %s", kind, version, error)
            raise


def _current(store: VersionStore[Any]) -> str | None:
    try:
        return store.current
    except HindcastError:
        return None
