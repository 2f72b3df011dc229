"""How the ingress reaches the stages: the same calls, whether a stage runs in this process or behind a deployment."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from contextvars import copy_context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from serve_app.batch import Batch
from serve_app.serving.budgets import stretched
from serve_app.serving.hosts import FeatureMatrix, FeaturesHost, RankCall, RankingHost, RetrievalHost
from serve_app.serving.library import Pins
from serve_app.serving.meters import count, timed
from serve_app.serving.relay import Baton, Detour, Limit, relayed

if TYPE_CHECKING:
    from serve_app.serving.deciding import DecideCall, Decided

__all__ = [
    "FeaturesSource",
    "ListTrip",
    "LocalScores",
    "LocalStages",
    "PageTrip",
    "Stages",
    "TripTimes",
    "in_pool",
]

_LOG = logging.getLogger("hindcast.serving")
T = TypeVar("T")


class Stages(Protocol):
    """The stages of one server."""

    async def retrieve(self, batch: Batch, pins: Pins, kinds: Sequence[str] | None = None) -> Batch:
        """Candidates, dropped ones included; see RetrievalHost.run."""

    async def rank(self, call: RankCall) -> Batch:
        """Lists; see RankingHost.run."""

    async def decide(self, call: DecideCall) -> Decided:
        """Send decisions; see serve_app.serving.deciding."""


class FeaturesSource(Protocol):
    """Features of one batch, from this process or another; the calling thread waits for them."""

    def run(self, batch: Batch, pins: Pins) -> FeatureMatrix:
        """See FeaturesHost."""


class LocalScores:
    """Features and ranking in the calling thread."""

    def __init__(self, features: FeaturesSource, ranking: RankingHost, *, features_ms: float) -> None:
        self._features, self._ranking, self.features_s = features, ranking, features_ms / 1000

    def scored(self, call: RankCall, baton: Baton, legs: int) -> Batch:
        """Features, the leg after the first `legs`, and ranking; on declared defaults where features fail."""
        kept = self._ranking.kept(call)
        try:
            with timed("hindcast_stage_ms", stage="features"):
                matrix = self._features.run(kept, call.pins)
        except Exception as error:  # noqa: BLE001 - any failure of features has the one declared fall-back
            baton.past(legs + 1)
            return self.on_defaults(call, error)
        baton.past(legs + 1)
        return self._ranking.run(call, kept, matrix, degraded=False)

    def on_defaults(self, call: RankCall, error: BaseException) -> Batch:
        """Ranking without features. error: what became of them."""
        _features_failed(error)
        kept = self._ranking.kept(call)
        return self._ranking.run(call, kept, self._ranking.defaults(call, kept.candidates.rows), degraded=True)


def _features_failed(error: BaseException) -> None:
    """Say so: their defaults take their place."""
    count("hindcast_degraded", stage="features")
    _LOG.warning("features fell back to their defaults: %s: %s", type(error).__name__, error)


@dataclass(frozen=True, slots=True)
class TripTimes:
    """Budgets of the stages, and when all must be over, from the start of a trip."""

    retrieval_s: float
    ranking_s: float
    latest_s: float

    def limits(self, legs: int) -> tuple[Limit, Limit]:
        """Of a ListTrip that follows so many legs."""
        latest_s = self.latest_s
        return (
            Limit(legs + 1, self.retrieval_s, legs, latest_s),
            Limit(legs + 3, self.ranking_s, legs + 1, latest_s),
        )


@dataclass(slots=True)
class ListTrip:
    """One batch on its way from requests to lists. call: made of the candidates once they are found (None: not yet)."""

    batch: Batch
    pins: Pins
    kinds: Sequence[str] | None
    ranked: Callable[[Batch], RankCall]
    call: RankCall | None = None


@dataclass(slots=True)
class PageTrip:
    """Pages on their way: things that lists stand on are ranked (`root`), then `filled` says which lists those shown ask
    for (None: no lists), at most `most`. page: root's answer, lists: what was asked for; each None until it is known."""

    root: RankCall
    filled: Callable[[Batch], ListTrip | None]
    most: int
    page: Batch | None = None
    lists: ListTrip | None = None


class LocalStages:
    """Every stage in this process, in worker threads (`topology: fused`, and tests)."""

    def __init__(
        self,
        retrieval: RetrievalHost,
        features: FeaturesHost,
        ranking: RankingHost,
        make_decide: Callable[[LocalScores], Callable[[DecideCall], Awaitable[Decided]]],
        pool: Executor,
        *,
        features_ms: float,
    ) -> None:
        self._retrieval, self._pool = retrieval, pool
        self._scores = LocalScores(features, ranking, features_ms=features_ms)
        self._decide = make_decide(self._scores)

    async def retrieve(self, batch: Batch, pins: Pins, kinds: Sequence[str] | None = None) -> Batch:
        """See Stages."""
        return await in_pool(self._pool, lambda: self._retrieval.run(batch, pins, kinds))

    async def rank(self, call: RankCall) -> Batch:
        """See Stages."""
        late = Detour(1, self._features_s(len(call.batch)), lambda _: self._without_features(call))
        return await relayed(self._pool, lambda baton: self._scores.scored(call, baton, 0), (late,))

    async def lists(self, trip: ListTrip, times: TripTimes) -> Batch:
        """Candidates and their ranking by one thread. Where it raises, `trip.call` says whether candidates were found."""

        def defaults(_: Baton) -> Batch:
            return self._listed_on_defaults(trip)

        late = Detour(2, self._features_s(len(trip.batch)), defaults, since=1)
        return await relayed(self._pool, lambda baton: self._listed(trip, baton, 0), (late,), times.limits(0))

    async def page(self, trip: PageTrip, times: TripTimes) -> Batch | None:
        """A page and its lists by one thread: the lists, None where there are none. Where it raises, the trip says how far
        it came."""

        def shown(page: Batch, baton: Baton) -> Batch | None:
            baton.past(2)
            trip.page = page
            trip.lists = trip.filled(page)
            return None if trip.lists is None else self._listed(trip.lists, baton, 2)

        def first(baton: Baton) -> Batch | None:
            with timed("hindcast_stage_ms", stage="ranking"):
                page = self._scores.scored(trip.root, baton, 0)
            return shown(page, baton)

        def on_defaults(baton: Baton) -> Batch | None:
            return shown(self._without_features(trip.root), baton)

        def lists_on_defaults(_: Baton) -> Batch | None:
            assert trip.lists is not None
            return self._listed_on_defaults(trip.lists)

        late = (
            Detour(1, self._features_s(len(trip.root.batch)), on_defaults),
            Detour(4, self._features_s(trip.most), lists_on_defaults, since=3),
        )
        limits = Limit(2, times.ranking_s, latest_s=times.latest_s), *times.limits(2)
        return await relayed(self._pool, first, late, limits)

    def _listed(self, trip: ListTrip, baton: Baton, legs: int) -> Batch:
        """The legs after the first `legs`: retrieval, features, ranking."""
        with timed("hindcast_stage_ms", stage="retrieval"):
            found = self._retrieval.run(trip.batch, trip.pins, trip.kinds)
        call = trip.ranked(found)
        baton.past(legs + 1)
        trip.call = call
        with timed("hindcast_stage_ms", stage="ranking"):
            return self._scores.scored(call, baton, legs + 1)

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
