"""Ray Serve shells: each deployment holds one host of `serve_app.serving` and nothing of its own.

Imports stand inside constructors: a replica loads what its own part needs, which decides how fast a server starts.

Every replica follows the promotion board, so it holds the releases and policies that requests may be pinned to, and catches
up with the catalogue's changes before it serves a request that knows newer ones. What replicas share is in
`serve_app.replicas`, the owner of the state in `serve_app.state_owner`.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from serve_app.hop import Listening
from serve_app.replicas import StageProcess, begin, ledger_of
from serve_app.serving import scope
from serve_app.serving.relay import alone
from serve_app.settings import Settings
from serve_app.state_owner import LedgerReplica, OwnerHandle

if TYPE_CHECKING:
    from fastapi import FastAPI

    from serve_app.batch import Batch
    from serve_app.serving.deciding import DecideCall, Decided
    from serve_app.serving.hosts import FeatureMatrix, RankCall
    from serve_app.serving.journalling import JournalHost
    from serve_app.serving.library import Pins
    from serve_app.serving.stages import Stages
    from serve_app.serving.trips import PageAnswer, PageTrip

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


class RankingReplica(_StageReplica):
    """Lists, pages of lists, and scores of notifications. Fetches features, and what stands in a page's lists, itself and
    journals what it made."""

    async def __init__(  # type: ignore[misc]
        self, settings: Settings, owner: DeploymentHandle, retrieval: DeploymentHandle, features: DeploymentHandle
    ) -> None:
        process = self._process = StageProcess(settings, "ranking", owner)
        from serve_app.remote_stages import RemoteFeatures, RemoteRetrieval
        from serve_app.serving.hosts import RankingHost
        from serve_app.serving.library import Role
        from serve_app.serving.trips import LocalScores, Trips

        turns, budgets = process.pool.turns, settings.budgets
        find = RemoteRetrieval(process.hop(retrieval, Role.retrieval), turns, budgets.retrieval_ms)
        read = RemoteFeatures(process.hop(features, Role.features), turns, budgets.features_ms)
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
                from serve_app.remote_stages import RemoteStages

                return RemoteStages(stages, port.nearby, settings.deployments, library)
            return local_stages(settings, library, ledger_of(port, settings))(journal, pool)

        self._server = IngressServer(settings, name, library, port, make, admin_token=admin_token, metrics=metrics_pages)
        await self._server.start()

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._server.app

    def check_health(self) -> None:
        """Called by Serve."""
        self._server.check_health()


IngressReplica = serve.ingress()(_Ingress)
