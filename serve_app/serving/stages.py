"""How the ingress reaches the stages: the same calls, whether a stage runs in this process or behind a deployment."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from contextlib import nullcontext
from contextvars import copy_context
from typing import TYPE_CHECKING, Protocol, TypeVar

from serve_app.batch import Batch
from serve_app.serving import scope
from serve_app.serving.budgets import stretched
from serve_app.serving.hosts import FeatureMatrix, FeaturesHost, RankCall, RankingHost, RetrievalHost
from serve_app.serving.library import Pins
from serve_app.serving.lost import called_off
from serve_app.serving.meters import count, timed

if TYPE_CHECKING:
    from serve_app.serving.deciding import DecideCall, Decided

__all__ = ["FeaturesCall", "LocalScores", "LocalStages", "RankFlow", "Stages", "features_failed", "in_pool"]

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
            features_failed(error)
            matrix, degraded = self._host.defaults(call, kept.candidates.rows), True
        return await in_pool(self._pool, lambda: self._host.run(call, kept, matrix, degraded=degraded))


class LocalScores:
    """Features and ranking in the calling thread."""

    def __init__(self, features: FeaturesHost, ranking: RankingHost, *, features_ms: float) -> None:
        self._features, self._ranking, self.features_s = features, ranking, features_ms / 1000

    def kept(self, call: RankCall) -> Batch:
        """See RankingHost."""
        return self._ranking.kept(call)

    def matrix(self, call: RankCall, kept: Batch) -> FeatureMatrix:
        """Features of the candidates `kept`."""
        with timed("hindcast_stage_ms", stage="features"):
            return self._features.run(kept, call.pins)

    def ranked(self, call: RankCall, kept: Batch, matrix: FeatureMatrix | None) -> Batch:
        """The batch ranked; matrix None: on declared defaults."""
        known = matrix if matrix is not None else self._ranking.defaults(call, kept.candidates.rows)
        return self._ranking.run(call, kept, known, degraded=matrix is None)


def features_failed(error: BaseException) -> None:
    """Say so: their defaults take their place."""
    count("hindcast_degraded", stage="features")
    _LOG.warning("features fell back to their defaults: %s: %s", type(error).__name__, error)


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

        async def read(batch: Batch, pins: Pins) -> FeatureMatrix:
            return await in_pool(pool, lambda: features.run(batch, pins))

        self._rank = RankFlow(ranking, read, pool, features_ms=features_ms)
        self._decide = make_decide(LocalScores(features, ranking, features_ms=features_ms))

    async def retrieve(self, batch: Batch, pins: Pins, kinds: Sequence[str] | None = None) -> Batch:
        """See Stages."""
        return await in_pool(self._pool, lambda: self._retrieval.run(batch, pins, kinds))

    async def rank(self, call: RankCall) -> Batch:
        """See Stages."""
        return await self._rank(call)

    async def decide(self, call: DecideCall) -> Decided:
        """See Stages."""
        return await self._decide(call)


async def in_pool(pool: Executor, work: Callable[[], T]) -> T:
    """Run blocking work off the event loop. It knows whom it works for, as the caller does."""
    return await asyncio.get_running_loop().run_in_executor(pool, copy_context().run, work)
