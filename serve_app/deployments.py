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
from typing import TYPE_CHECKING, Any

from ray import serve
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle

from serve_app.hop import Hop, Listening
from serve_app.replicas import StageProcess, begin, ledger_of
from serve_app.serving.local_rpc import HungUp
from serve_app.settings import DeploymentsSettings, Settings
from serve_app.state_owner import LedgerReplica, OwnerHandle

if TYPE_CHECKING:
    from fastapi import FastAPI

    from serve_app.batch import Batch
    from serve_app.serving.deciding import DecideCall, Decided
    from serve_app.serving.hosts import FeatureMatrix, RankCall
    from serve_app.serving.journalling import JournalHost
    from serve_app.serving.library import Pins
    from serve_app.serving.nearby import Nearby
    from serve_app.serving.stages import Stages

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
    """A replica of one stage: `run` is called by Serve and, from its own host, over a local socket."""

    _process: StageProcess
    _listening: Listening | None = None
    run: Callable[..., Awaitable[Any]]

    async def _begin(self) -> None:
        await self._process.start()
        await self._warm_up()
        self._listening = await self._process.listen(self.run)

    async def _warm_up(self) -> None:
        """What a replica does before it is called."""

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

    async def run(self, batch: Batch, pins: Pins, kinds: Sequence[str] | None) -> Batch:
        """See RetrievalHost."""
        await self._process.catch_up(pins)
        return await self._process.work(lambda: self._host.run(batch, pins, kinds))


class FeaturesReplica(_StageReplica):
    """Feature values."""

    async def __init__(self, settings: Settings, owner: DeploymentHandle) -> None:  # type: ignore[misc]
        self._process = StageProcess(settings, "features", owner)
        from serve_app.serving.hosts import FeaturesHost

        self._host = FeaturesHost(self._process.library)
        await self._begin()

    async def run(self, batch: Batch, pins: Pins) -> FeatureMatrix:
        """See FeaturesHost."""
        await self._process.catch_up(pins)
        return await self._process.work(lambda: self._host.run(batch, pins))


class RankingReplica(_StageReplica):
    """Lists, and scores of notifications. Fetches its features itself and journals what it made."""

    async def __init__(self, settings: Settings, owner: DeploymentHandle, features: DeploymentHandle) -> None:  # type: ignore[misc]
        self._process = StageProcess(settings, "ranking", owner)
        from serve_app.serving.hosts import RankingHost
        from serve_app.serving.library import Role
        from serve_app.serving.stages import RankFlow

        host = RankingHost(self._process.library, self._process.journal())
        hop = self._process.hop(features, Role.features)

        async def read(batch: Batch, pins: Pins) -> FeatureMatrix:
            return await hop(batch, pins)

        self._flow = RankFlow(host, read, self._process.pool, features_ms=settings.budgets.features_ms)
        await self._begin()

    async def run(self, call: RankCall) -> Batch:
        """See RankFlow."""
        await self._process.catch_up(call.pins)
        return await self._flow(call)


class DecisionReplica(_StageReplica):
    """Send decisions on the ledger. Asks ranking for scores itself and journals what it decided."""

    async def __init__(self, settings: Settings, owner: DeploymentHandle, ranking: DeploymentHandle) -> None:  # type: ignore[misc]
        self._process = StageProcess(settings, "decision", owner)
        from serve_app.serving.deciding import DecideFlow
        from serve_app.serving.library import Role

        self._flow = DecideFlow(
            self._process.library,
            ledger_of(self._process.owner, settings),
            self._process.hop(ranking, Role.ranking),
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

    async def run(self, call: DecideCall) -> Decided:
        """See DecideFlow."""
        await self._process.catch_up(call.pins)
        return await self._flow(call)


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

    def __init__(self, handles: Sequence[DeploymentHandle], nearby: Nearby, settings: DeploymentsSettings) -> None:
        """handles: of Retrieval, Ranking and Decision."""
        from serve_app.serving.library import Role

        roles = (Role.retrieval, Role.ranking, Role.decision)
        hops = (Hop(handle, role, nearby, settings) for handle, role in zip(handles, roles, strict=True))
        self._retrieve, self._rank, self._decide = hops

    async def retrieve(self, batch: Batch, pins: Pins, kinds: Sequence[str] | None = None) -> Batch:
        return await self._retrieve(batch, pins, kinds)

    async def rank(self, call: RankCall) -> Batch:
        return await self._rank(call)

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
                return _RemoteStages(stages, port.nearby, settings.deployments)
            return local_stages(settings, library, ledger_of(port, settings))(journal, pool)

        self._server = IngressServer(settings, name, library, port, make, admin_token=admin_token, metrics=metrics_pages)
        await self._server.start()

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._server.app

    def check_health(self) -> None:
        """Called by Serve."""
        self._server.check_health()


IngressReplica = serve.ingress()(_Ingress)
