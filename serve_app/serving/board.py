"""Two-phase promotion: every replica loads the new version, then pins flip, and the old one goes with its last pin.

One *board* per server holds the orders; every replica *polls* it: it reports what it holds and gets the orders as soon as
they change. `prepare` ends when every living replica holds the version (and fails, changing nothing, when one cannot);
`commit` ends when every replica that admits requests pins new ones to it. A replica that starts meanwhile gets both
versions with its first orders. The board keeps nothing on disk: what is current stands in the data folder's pointers.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from serve_app.clock import monotonic_s
from serve_app.errors import InvalidInput, NotReady

__all__ = ["KINDS", "Board", "Kind", "Orders", "Report"]

Kind = Literal["release", "policy"]
KINDS: tuple[Kind, ...] = ("release", "policy")

POLL_S = 2.0
"""How long a poll waits for news."""
_SILENT_S = 3 * POLL_S + 4.0
"""A replica not heard of for this long is taken to be gone."""


@dataclass(frozen=True, slots=True)
class Orders:
    """What every replica is to hold, what to pin new requests to, and where the processes of each role listen for calls from
    their own host (see serve_app.serving.nearby)."""

    epoch: int
    wanted: dict[Kind, tuple[str, ...]]
    current: dict[Kind, str]
    near: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Report:
    """What one replica says of itself. admits: it pins requests. failures: version -> why it could not be loaded.
    near: where it listens for calls from its own host, once it does."""

    replica: str
    role: str
    pid: int
    admits: bool
    loaded: dict[Kind, frozenset[str]]
    current: dict[Kind, str | None]
    in_use: dict[Kind, frozenset[str]]
    failures: dict[str, str]
    near: str | None = None


class Board:
    """The orders and the latest report of every replica. Used from one event loop."""

    def __init__(
        self,
        release: str,
        policy: str,
        *,
        epoch: int = 1,
        clock: Callable[[], float] = monotonic_s,
        near: dict[str, tuple[str, ...]] | None = None,
    ) -> None:
        """epoch: number of the first orders. A board that takes over from one that died begins beyond its numbers (with the
        time, say), so that no follower takes other orders for those it has carried out. near: who listens that sends no
        reports."""
        self._always_near = near or {}
        versions: dict[Kind, tuple[str, ...]] = {"release": (release,), "policy": (policy,)}
        self._orders = Orders(epoch, versions, {"release": release, "policy": policy}, self._always_near)
        self._reports: dict[str, tuple[float, Report]] = {}
        self._news = asyncio.Condition()
        self._clock = clock

    @property
    def orders(self) -> Orders:
        """The orders in force."""
        return self._orders

    def replicas(self) -> list[Report]:
        """Reports of the replicas heard of lately."""
        limit = self._clock() - _SILENT_S
        self._reports = {name: entry for name, entry in self._reports.items() if entry[0] >= limit}
        return [report for _, report in self._reports.values()]

    async def poll(self, report: Report, after_epoch: int, wait_s: float = POLL_S) -> Orders:
        """Take a replica's report; give the orders when they are newer than `after_epoch`, or when `wait_s` is over."""
        async with self._news:
            self._reports[report.replica] = (self._clock(), report)
            self._retire()
            self._name_the_near()
            self._news.notify_all()
            if self._orders.epoch <= after_epoch:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._news.wait_for(lambda: self._orders.epoch > after_epoch), wait_s)
                entry = self._reports.get(report.replica)
                self._reports[report.replica] = (self._clock(), entry[1] if entry else report)
            return self._orders

    def _name_the_near(self) -> None:
        near = dict(self._always_near)
        for report in self.replicas():
            if report.near is not None:
                near[report.role] = (*near.get(report.role, ()), report.near)
        if near != self._orders.near:
            self._give(near=near)

    def leave(self, replica: str) -> None:
        """A replica that ends says so, and is not waited for."""
        self._reports.pop(replica, None)

    async def prepare(self, kind: Kind, version: str, timeout_s: float = 120.0) -> None:
        """Have every replica load `version`. NotReady names the replica that cannot, or those not heard of in time."""
        async with self._news:
            if version != self._orders.current[kind]:
                others = tuple(one for one in self._orders.wanted[kind] if one != version)
                self._give(wanted={**self._orders.wanted, kind: (*others, version)})
            try:
                await asyncio.wait_for(self._news.wait_for(lambda: self._prepared(kind, version)), timeout_s)
            except TimeoutError:
                waiting = ", ".join(one.replica for one in self.replicas() if version not in one.loaded[kind]) or "none"
                self._unwant(kind, version)
                raise NotReady(f"{kind} {version} was not loaded in {timeout_s:g} s by: {waiting}", field=kind) from None
            except NotReady:
                self._unwant(kind, version)
                raise

    def _prepared(self, kind: Kind, version: str) -> bool:
        reports = self.replicas()
        for report in reports:
            if version in report.failures:
                raise NotReady(f"{report.replica} cannot load {kind} {version}: {report.failures[version]}", field=kind)
        admits = any(report.admits for report in reports)
        return admits and all(version in report.loaded[kind] for report in reports)

    async def commit(self, kind: Kind, version: str, timeout_s: float = 30.0) -> None:
        """Pin new requests to `version`; returns when every admitting replica does. InvalidInput if not prepared."""
        async with self._news:
            if version not in self._orders.wanted[kind]:
                raise InvalidInput(f"{kind} {version} was not prepared", field="version", hint="prepare it first")
            self._give(current={**self._orders.current, kind: version})
            try:
                await asyncio.wait_for(self._news.wait_for(lambda: self._flipped(kind, version)), timeout_s)
            except TimeoutError:
                late = ", ".join(one.replica for one in self.replicas() if one.admits and one.current[kind] != version)
                raise NotReady(f"{kind} {version} is ordered, but not yet in force in: {late}", field=kind) from None
            self._retire()

    def _flipped(self, kind: Kind, version: str) -> bool:
        return all(report.current[kind] == version for report in self.replicas() if report.admits)

    def _retire(self) -> None:
        """Stop wanting versions that nobody pins any more, once all admitting replicas have flipped."""
        reports = self.replicas()
        for kind in KINDS:
            current = self._orders.current[kind]
            if not self._flipped(kind, current):
                continue
            used = {version for report in reports if report.admits for version in report.in_use[kind]}
            known = self._orders.wanted[kind]
            place = known.index(current) if current in known else 0
            # Versions after the current one are being prepared; those before it are left behind.
            kept = tuple(v for n, v in enumerate(known) if v == current or v in used or n > place)
            if kept != known:
                self._give(wanted={**self._orders.wanted, kind: kept})

    def _unwant(self, kind: Kind, version: str) -> None:
        if version != self._orders.current[kind]:
            kept = tuple(one for one in self._orders.wanted[kind] if one != version)
            self._give(wanted={**self._orders.wanted, kind: kept})

    def _give(self, **changes: dict[Kind, tuple[str, ...]] | dict[Kind, str] | dict[str, tuple[str, ...]]) -> None:
        self._orders = replace(self._orders, epoch=self._orders.epoch + 1, **changes)  # type: ignore[arg-type]
        self._news.notify_all()
