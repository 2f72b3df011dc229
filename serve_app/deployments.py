"""Ray Serve shells: each deployment holds one host of `serve_app.serving` and nothing of its own.

Imports stand inside constructors: a replica loads what its own part needs, which decides how fast a server starts.

Every replica follows the promotion board, so it holds the releases and policies that requests may be pinned to, and catches
up with the catalogue's changes before it serves a request that knows newer ones. What replicas share is in
`serve_app.replicas`, the owner of the state in `serve_app.state_owner`.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from ray import serve
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle

from serve_app.hop import Hop, Listening
from serve_app.replicas import StageProcess, begin, ledger_of
from serve_app.serving import scope
from serve_app.serving.budgets import left_of, stretched
from serve_app.serving.local_rpc import HungUp
from serve_app.serving.relay import alone
from serve_app.settings import DeploymentsSettings, Settings
from serve_app.state_owner import LedgerReplica, OwnerHandle

if TYPE_CHECKING:
    from fastapi import FastAPI

    from serve_app.batch import Batch
    from serve_app.serving.deciding import DecideCall, Decided
    from serve_app.serving.hosts import FeatureMatrix, RankCall
    from serve_app.serving.journalling import JournalHost
    from serve_app.serving.library import Library, Pins
    from serve_app.serving.nearby import Nearby
    from serve_app.serving.stages import Stages
    from serve_app.serving.threads import Turns
    from serve_app.serving.trips import PageAnswer, PageTrip, TripTimes

__all__ = [
    "DecisionReplica",
    "FeaturesReplica",
    "IngressReplica",
    "LedgerReplica",
    "RankingReplica",
    "RetrievalReplica",
    "WorkerReplica",
]


class _StageReplica:
    """A replica of one stage: `answer` is called by threads that read calls from its own host, `run` by Serve."""

    _process: StageProcess
    _listening: Listening | None = None
    answer: Callable[..., Any]
    """The stage's work, in the thread that calls it and whose turn it is."""

    async def _begin(self) -> None:
        await self._process.start()
        await self._warm_up()
        self._listening = self._process.listen(self.answer)

    async def _warm_up(self) -> None:
        """What a replica does before it is called."""

    async def run(self, *arguments: Any) -> Any:
        """Called by Serve."""
        return await self._process.work(lambda: self.answer(*arguments))

    def check_health(self) -> None:
        """Called by Serve."""
        self._process.check_health()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve, for `serve_app.scaling`."""
        return self._listening.stats() if self._listening is not None else {}

    async def __del__(self) -> None:
        """Called by Serve when its own calls have been answered."""
        if self._listening is not None:
            await self._listening.retire()


class RetrievalReplica(_StageReplica):
    """Candidates."""

    async def __init__(self, settings: Settings, owner: DeploymentHandle) -> None:  # type: ignore[misc]
        self._process = StageProcess(settings, "retrieval", owner)
        from serve_app.serving.hosts import RetrievalHost

        self._host = RetrievalHost(self._process.library)
        await self._begin()

    def answer(self, batch: Batch, pins: Pins, kinds: Sequence[str] | None) -> Batch:
        """`news` of what RetrievalHost makes of the batch."""
        from serve_app.serving.hosts import news

        self._process.catch_up(pins)
        return news(batch, self._host.run(batch, pins, kinds))


class FeaturesReplica(_StageReplica):
    """Feature values."""

    async def __init__(self, settings: Settings, owner: DeploymentHandle) -> None:  # type: ignore[misc]
        self._process = StageProcess(settings, "features", owner)
        from serve_app.serving.hosts import FeaturesHost

        self._host = FeaturesHost(self._process.library)
        await self._begin()

    def answer(self, batch: Batch, pins: Pins) -> FeatureMatrix:
        """See FeaturesHost."""
        self._process.catch_up(pins)
        return self._host.run(batch, pins)


class _RemoteFeatures:
    """Features of their deployment, within their budget."""

    def __init__(self, hop: Hop, turns: Turns, features_ms: float) -> None:
        self._hop, self._turns, self._budget_s = hop, turns, features_ms / 1000

    def run(self, batch: Batch, pins: Pins) -> FeatureMatrix:
        from serve_app.stages.features.stage import Features

        within_s = left_of(stretched(self._budget_s, len(batch)))
        matrix: FeatureMatrix = self._hop.wait(self._turns, within_s, Features.read_of(batch), pins)
        return matrix


class _RemoteRetrieval:
    """Candidates of their deployment, within their budget."""

    def __init__(self, hop: Hop, turns: Turns, retrieval_ms: float) -> None:
        self._hop, self._turns, self._budget_s = hop, turns, retrieval_ms / 1000

    def run(self, batch: Batch, pins: Pins, kinds: Sequence[str] | None = None) -> Batch:
        from serve_app.serving.hosts import with_found
        from serve_app.stages.retrieval import Retrieval

        asked = Retrieval.read_of(batch), pins, kinds
        return with_found(batch, self._hop.wait(self._turns, left_of(self._budget_s), *asked))


class RankingReplica(_StageReplica):
    """Lists, pages of lists, and scores of notifications. Fetches features, and what stands in a page's lists, itself and
    journals what it made."""

    async def __init__(  # type: ignore[misc]
        self, settings: Settings, owner: DeploymentHandle, retrieval: DeploymentHandle, features: DeploymentHandle
    ) -> None:
        process = self._process = StageProcess(settings, "ranking", owner)
        from serve_app.serving.hosts import RankingHost
        from serve_app.serving.library import Role
        from serve_app.serving.trips import LocalScores, Trips

        turns, budgets = process.pool.turns, settings.budgets
        find = _RemoteRetrieval(process.hop(retrieval, Role.retrieval), turns, budgets.retrieval_ms)
        read = _RemoteFeatures(process.hop(features, Role.features), turns, budgets.features_ms)
        host = RankingHost(process.library, process.journal())
        self._trips = Trips(find, LocalScores(read, host, features_ms=budgets.features_ms), process.library)
        await self._begin()

    def answer(self, call: RankCall | PageTrip) -> Batch | PageAnswer:
        """See RankingHost and Trips."""
        from serve_app.serving.hosts import RankCall

        root, asked_s = call if isinstance(call, RankCall) else call.root, self._process.pool.turns.asked_s
        self._process.catch_up(root.pins)
        with nullcontext() if scope.current() else scope.of_requests(root.batch.requests["request_id"]):
            if isinstance(call, RankCall):
                return self._trips.scores.scored(call, alone(), 0)
            return self._trips.answer(call, asked_s)


class DecisionReplica(_StageReplica):
    """Send decisions on the ledger. Asks ranking for scores itself and journals what it decided."""

    async def __init__(self, settings: Settings, owner: DeploymentHandle, ranking: DeploymentHandle) -> None:  # type: ignore[misc]
        self._process = StageProcess(settings, "decision", owner)
        from serve_app.serving.deciding import DecideFlow
        from serve_app.serving.library import Role

        hop, turns = self._process.hop(ranking, Role.ranking), self._process.pool.turns
        self._flow = DecideFlow(
            self._process.library,
            ledger_of(self._process.owner, settings),
            lambda call, within_s: hop.wait(turns, within_s, call),
            self._process.journal(),
            self._process.pool,
            ranking_ms=settings.budgets.ranking_ms,
            max_attempts=settings.ledger.max_attempts,
        )
        await self._begin()

    async def _warm_up(self) -> None:
        """Each replica for itself, also one that replaces another: no caller waits for kernels to be loaded or compiled."""
        from serve_app.ingress.warming import warm_decisions
        from serve_app.serving.library import Pins

        library = self._process.library
        pins = Pins(library.releases.current, library.policies.current, library.seq)
        await warm_decisions(pins, library.edition(pins), self._flow)

    def answer(self, call: DecideCall) -> Decided:
        """See DecideFlow."""
        began_s = self._process.pool.turns.asked_s
        self._process.catch_up(call.pins)
        return self._flow.decided(call, began_s)


class WorkerReplica:
    """What nobody waits for: deferrals decided anew, queued messages handed over. Without a Decision deployment
    (`topology: fused`) it decides by itself."""

    async def __init__(self, settings: Settings, owner: DeploymentHandle, decision: DeploymentHandle | None = None) -> None:  # type: ignore[misc]
        self._process = StageProcess(settings, "worker", owner, whole=decision is None)
        from serve_app.serving.assemble import local_stages
        from serve_app.serving.backroom import Backroom
        from serve_app.serving.library import Role

        process, journal = self._process, self._process.journal()
        if decision is not None:
            decide: Callable[[DecideCall], Awaitable[Decided]] = process.hop(decision, Role.decision)
        else:
            ledger = ledger_of(process.owner, settings)
            decide = local_stages(settings, process.library, ledger)(journal, process.pool).decide
        self._backroom = Backroom(settings, process.library, process.owner, journal, process.pool, decide)
        await process.start()
        self._backroom.start()

    def check_health(self) -> None:
        """Called by Serve."""
        self._backroom.check_health()


class _RemoteStages:
    """The stages in their deployments."""

    def __init__(
        self, handles: Sequence[DeploymentHandle], nearby: Nearby, settings: DeploymentsSettings, library: Library
    ) -> None:
        """handles: of Retrieval, Ranking and Decision."""
        from serve_app.serving.library import Role

        roles = (Role.retrieval, Role.ranking, Role.decision)
        hops = (Hop(handle, role, nearby, settings) for handle, role in zip(handles, roles, strict=True))
        self._retrieve, self._rank, self._decide = hops
        self._library = library

    async def retrieve(self, batch: Batch, pins: Pins, kinds: Sequence[str] | None = None) -> Batch:
        from serve_app.serving.hosts import with_found
        from serve_app.stages.retrieval import Retrieval

        return with_found(batch, await self._retrieve(Retrieval.read_of(batch), pins, kinds))

    async def rank(self, call: RankCall) -> Batch:
        return await self._rank(call)

    async def page(self, trip: PageTrip, times: TripTimes) -> tuple[Batch, Batch | None]:
        async with asyncio.timeout(times.page_s):
            answer: PageAnswer = await self._rank(trip)
        return answer.told(trip, self._library.edition(trip.root.pins))

    async def decide(self, call: DecideCall) -> Decided:
        from serve_app.ingress.batcher import overloaded
        from serve_app.serving.lost import undecided

        try:
            return await self._decide(call)
        except BackPressureError:
            raise overloaded("too many decisions are waiting already") from None
        except HungUp as error:
            raise undecided(error, committing=call.commit) from error


class _Ingress:
    """HTTP. With `topology: fused` it gets no stage handles and runs the stages itself."""

    async def __init__(  # type: ignore[misc]
        self,
        settings: Settings,
        admin_token: str,
        owner: DeploymentHandle,
        stages: tuple[DeploymentHandle, DeploymentHandle, DeploymentHandle] | None = None,
        worker: DeploymentHandle | None = None,
    ) -> None:
        del worker  # nobody calls it; bound here, it belongs to the application
        name = secrets.token_hex(4)
        begin(settings, f"ingress-{name}", admin_token)
        from serve_app.ingress.server import IngressServer
        from serve_app.policies import read_policy
        from serve_app.running.ray_meters import metrics_pages
        from serve_app.serving.assemble import local_stages
        from serve_app.serving.library import ALL_ROLES, Library, Role

        port = OwnerHandle(owner)
        roles = {Role.ingress} if stages is not None else ALL_ROLES
        library = Library(settings.data, roles, lambda revision: read_policy(settings.data, revision))

        def make(journal: JournalHost, pool: ThreadPoolExecutor) -> Stages:
            if stages is not None:
                return _RemoteStages(stages, port.nearby, settings.deployments, library)
            return local_stages(settings, library, ledger_of(port, settings))(journal, pool)

        self._server = IngressServer(settings, name, library, port, make, admin_token=admin_token, metrics=metrics_pages)
        await self._server.start()

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._server.app

    def check_health(self) -> None:
        """Called by Serve."""
        self._server.check_health()


IngressReplica = serve.ingress()(_Ingress)
