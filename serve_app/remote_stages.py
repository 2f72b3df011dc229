"""Stages behind their deployments, called as if they ran here: sent the columns they read, joined with what they found.

Imported where one of them is called: a replica loads what its own part needs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle

from serve_app.batch import Batch
from serve_app.hop import Hop
from serve_app.serving.budgets import left_of, stretched
from serve_app.serving.hosts import FeatureMatrix, RankCall, with_found
from serve_app.serving.library import Library, Pins, Role
from serve_app.serving.local_rpc import HungUp
from serve_app.serving.lost import undecided
from serve_app.serving.nearby import Nearby
from serve_app.serving.threads import Turns
from serve_app.serving.trips import PageAnswer, PageTrip, TripTimes
from serve_app.settings import DeploymentsSettings
from serve_app.stages.features.stage import Features
from serve_app.stages.retrieval import Retrieval

if TYPE_CHECKING:
    from serve_app.serving.deciding import DecideCall, Decided

__all__ = ["RemoteFeatures", "RemoteRetrieval", "RemoteStages"]

_FEATURES_SHARE = 0.6  # of what is left they are waited for; lists are to be ranked without them in the rest


class RemoteFeatures:
    """Features of their deployment, within their budget; a FeaturesSource."""

    def __init__(self, hop: Hop, turns: Turns, features_ms: float) -> None:
        self._hop, self._turns, self._budget_s = hop, turns, features_ms / 1000

    def run(self, batch: Batch, pins: Pins) -> FeatureMatrix:
        """See FeaturesHost."""
        within_s = left_of(stretched(self._budget_s, len(batch)), _FEATURES_SHARE)
        matrix: FeatureMatrix = self._hop.wait(self._turns, within_s, Features.read_of(batch), pins)
        return matrix


class RemoteRetrieval:
    """Candidates of their deployment, within their budget; a RetrievalSource."""

    def __init__(self, hop: Hop, turns: Turns, retrieval_ms: float) -> None:
        self._hop, self._turns, self._budget_s = hop, turns, retrieval_ms / 1000

    def run(self, batch: Batch, pins: Pins, kinds: Sequence[str] | None = None) -> Batch:
        """See RetrievalHost."""
        asked = Retrieval.read_of(batch), pins, kinds
        return with_found(batch, self._hop.wait(self._turns, left_of(self._budget_s), *asked))


class RemoteStages:
    """The stages in their deployments, for an ingress; see Stages."""

    def __init__(
        self, handles: Sequence[DeploymentHandle], nearby: Nearby, settings: DeploymentsSettings, library: Library
    ) -> None:
        """handles: of Retrieval, Ranking and Decision."""
        roles = (Role.retrieval, Role.ranking, Role.decision)
        hops = (Hop(handle, role, nearby, settings) for handle, role in zip(handles, roles, strict=True))
        self._retrieve, self._rank, self._decide = hops
        self._library = library

    async def retrieve(self, batch: Batch, pins: Pins, kinds: Sequence[str] | None = None) -> Batch:
        """See RetrievalHost."""
        return with_found(batch, await self._retrieve(Retrieval.read_of(batch), pins, kinds))

    async def rank(self, call: RankCall) -> Batch:
        """See RankingHost."""
        ranked: Batch = await self._rank(call)
        return ranked

    async def page(self, trip: PageTrip, times: TripTimes) -> tuple[Batch, Batch | None]:
        """See Trips."""
        async with asyncio.timeout(times.page_s):
            answer: PageAnswer = await self._rank(trip)
        return answer.told(trip, self._library.edition(trip.root.pins))

    async def decide(self, call: DecideCall) -> Decided:
        """See DecideFlow."""
        from serve_app.ingress.batcher import overloaded

        try:
            decided: Decided = await self._decide(call)
        except BackPressureError:
            raise overloaded("too many decisions are waiting already") from None
        except HungUp as error:
            raise undecided(error, committing=call.commit) from error
        return decided
