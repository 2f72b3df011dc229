"""How the ingress reaches the stages: the same calls, whether a stage runs in this process or behind a deployment."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from contextvars import copy_context
from typing import TYPE_CHECKING, Protocol, TypeVar

from serve_app.batch import Batch
from serve_app.serving.budgets import stretched
from serve_app.serving.hosts import RankCall, RetrievalHost
from serve_app.serving.library import Library, Pins
from serve_app.serving.relay import Baton, Detour, Limit, relayed
from serve_app.serving.trips import ListTrip, LocalScores, PageTrip, Trips, TripTimes

if TYPE_CHECKING:
    from serve_app.serving.deciding import DecideCall, Decided

__all__ = ["LocalStages", "Stages", "in_pool"]

T = TypeVar("T")


class Stages(Protocol):
    """The stages of one server."""

    async def retrieve(self, batch: Batch, pins: Pins, kinds: Sequence[str] | None = None) -> Batch:
        """Candidates, dropped ones included; see RetrievalHost.run."""

    async def rank(self, call: RankCall) -> Batch:
        """Lists; see RankingHost.run."""

    async def page(self, trip: PageTrip, times: TripTimes) -> tuple[Batch, Batch | None]:
        """A page and its lists, None where there are none. Where it raises, the trip says how far it came."""

    async def decide(self, call: DecideCall) -> Decided:
        """Send decisions; see serve_app.serving.deciding."""


class LocalStages:
    """Every stage in this process, in worker threads (`topology: fused`, and tests)."""

    def __init__(
        self,
        retrieval: RetrievalHost,
        scores: LocalScores,
        library: Library,
        decide: Callable[[DecideCall], Awaitable[Decided]],
        pool: Executor,
    ) -> None:
        self._retrieval, self._scores, self._decide, self._pool = retrieval, scores, decide, pool
        self._trips = Trips(retrieval, scores, library)

    async def retrieve(self, batch: Batch, pins: Pins, kinds: Sequence[str] | None = None) -> Batch:
        """See Stages."""
        return await in_pool(self._pool, lambda: self._retrieval.run(batch, pins, kinds))

    async def rank(self, call: RankCall) -> Batch:
        """See Stages."""
        late = Detour(1, self._features_s(len(call.batch)), lambda _: self._without_features(call))
        return await relayed(self._pool, lambda baton: self._scores.scored(call, baton, 0), (late,))

    async def lists(self, trip: ListTrip, times: TripTimes) -> Batch:
        """Candidates and their ranking by one thread. Where it raises, `trip.call` says whether candidates were found."""
        late = Detour(2, self._features_s(len(trip.batch)), lambda _: self._listed_on_defaults(trip), since=1)
        return await relayed(self._pool, lambda baton: self._trips.lists(trip, baton, 0), (late,), times.limits(0))

    async def page(self, trip: PageTrip, times: TripTimes) -> tuple[Batch, Batch | None]:
        """See Stages. By one thread."""

        def on_defaults(baton: Baton) -> tuple[Batch, Batch | None]:
            return self._trips.filled(trip, self._without_features(trip.root), baton)

        def lists_on_defaults(_: Baton) -> tuple[Batch, Batch | None]:
            assert trip.page is not None
            assert trip.lists is not None
            return trip.page, self._listed_on_defaults(trip.lists)

        late = (
            Detour(1, self._features_s(len(trip.root.batch)), on_defaults),
            Detour(4, self._features_s(trip.most), lists_on_defaults, since=3),
        )
        limits = Limit(2, times.ranking_s, latest_s=times.latest_s), *times.limits(2)
        return await relayed(self._pool, lambda baton: self._trips.page(trip, baton), late, limits)

    def _listed_on_defaults(self, trip: ListTrip) -> Batch:
        assert trip.call is not None
        return self._without_features(trip.call)

    def _features_s(self, requests: int) -> float:
        return stretched(self._scores.features_s, requests)

    def _without_features(self, call: RankCall) -> Batch:
        return self._scores.on_defaults(call, TimeoutError("they took too long"))

    async def decide(self, call: DecideCall) -> Decided:
        """See Stages."""
        return await self._decide(call)


async def in_pool(pool: Executor, work: Callable[[], T]) -> T:
    """Run blocking work off the event loop. It knows whom it works for, as the caller does."""
    return await asyncio.get_running_loop().run_in_executor(pool, copy_context().run, work)
