"""How the ingress reaches the stages: the same calls, whether a stage runs in this process or behind a deployment."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from contextlib import nullcontext
from contextvars import copy_context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from serve_app.batch import Batch
from serve_app.serving import scope
from serve_app.serving.budgets import stretched
from serve_app.serving.hosts import FeatureMatrix, FeaturesHost, RankCall, RankingHost, RetrievalHost
from serve_app.serving.library import Pins
from serve_app.serving.lost import called_off
from serve_app.serving.meters import count, timed
from serve_app.serving.relay import Baton, Detour, Limit, relayed

if TYPE_CHECKING:
    from serve_app.serving.deciding import DecideCall, Decided

__all__ = [
    "FeaturesCall",
    "ListTrip",
    "LocalScores",
    "LocalStages",
    "RankFlow",
    "Stages",
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


class FeaturesCall(Protocol):
    """Features of one batch, from wherever they are."""

    async def __call__(self, batch: Batch, pins: Pins) -> FeatureMatrix:
        """The matrix of a batch's candidates."""


class RankFlow:
    """Ranking with its features: fetch within a budget, fall back to declared defaults, rank in a worker thread."""

    def __init__(self, host: RankingHost, features: FeaturesCall, pool: Executor, *, features_ms: float) -> None:
        self._host, self._features, self._pool, self._budget_s = host, features, pool, features_ms / 1000

    async def __call__(self, call: RankCall) -> Batch:
        """See Stages.rank."""
        with nullcontext() if scope.current() else scope.of_requests(call.batch.requests["request_id"]):
            return await self._ranked(call)

    async def _ranked(self, call: RankCall) -> Batch:
        kept = self._host.kept(call)
        degraded = False
        try:
            with timed("hindcast_stage_ms", stage="features"):
                async with asyncio.timeout(stretched(self._budget_s, len(kept))):
                    matrix = await self._features(kept, call.pins)
        except (Exception, asyncio.CancelledError) as error:  # any failure of features has the one declared fall-back
            if called_off(error):
                raise
            _features_failed(error)
            matrix, degraded = self._host.defaults(call, kept.candidates.rows), True
        return await in_pool(self._pool, lambda: self._host.run(call, kept, matrix, degraded=degraded))


class LocalScores:
    """Features and ranking in the calling thread."""

    def __init__(self, features: FeaturesHost, ranking: RankingHost, *, features_ms: float) -> None:
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


@dataclass(slots=True)
class ListTrip:
    """One batch on its way from requests to lists. call: made of the candidates once they are found (None: not yet).
    retrieval_s, ranking_s: budgets of the stages; latest_s: when both must be over, from the start."""

    batch: Batch
    pins: Pins
    kinds: Sequence[str] | None
    ranked: Callable[[Batch], RankCall]
    retrieval_s: float
    ranking_s: float
    latest_s: float
    call: RankCall | None = None


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
        limit_s = stretched(self._scores.features_s, len(call.batch))
        late = Detour(1, limit_s, lambda _: self._without_features(call))
        return await relayed(self._pool, lambda baton: self._scores.scored(call, baton, 0), (late,))

    async def lists(self, trip: ListTrip) -> Batch:
        """Candidates and their ranking by one thread. Where it raises, `trip.call` says whether candidates were found."""

        def first(baton: Baton) -> Batch:
            with timed("hindcast_stage_ms", stage="retrieval"):
                found = self._retrieval.run(trip.batch, trip.pins, trip.kinds)
            call = trip.ranked(found)
            baton.past(1)
            trip.call = call
            with timed("hindcast_stage_ms", stage="ranking"):
                return self._scores.scored(call, baton, 1)

        def defaults(_: Baton) -> Batch:
            assert trip.call is not None
            return self._without_features(trip.call)

        features = Detour(2, stretched(self._scores.features_s, len(trip.batch)), defaults, since=1)
        limits = Limit(1, trip.retrieval_s, latest_s=trip.latest_s), Limit(3, trip.ranking_s, 1, trip.latest_s)
        return await relayed(self._pool, first, (features,), limits)

    def _without_features(self, call: RankCall) -> Batch:
        return self._scores.on_defaults(call, TimeoutError("they took too long"))

    async def decide(self, call: DecideCall) -> Decided:
        """See Stages."""
        return await self._decide(call)


async def in_pool(pool: Executor, work: Callable[[], T]) -> T:
    """Run blocking work off the event loop. It knows whom it works for, as the caller does."""
    return await asyncio.get_running_loop().run_in_executor(pool, copy_context().run, work)
