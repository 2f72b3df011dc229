"""Ray Serve shells: each deployment holds one host of `serve_app.serving` and nothing of its own.

Imports stand inside constructors: a replica loads what its own part needs, which decides how fast a server starts.

Every replica follows the promotion board, so it holds the releases and policies that requests may be pinned to, and catches
up with the catalogue's changes before it serves a request that knows newer ones.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from ray import serve
from ray.exceptions import RayTaskError
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle

from serve_app.settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI

    from serve_app.batch import Batch
    from serve_app.ledger.protocol import UserChanges, UserRecord
    from serve_app.serving.board import Kind, Orders, Report
    from serve_app.serving.deciding import DecideCall, Decided
    from serve_app.serving.hosts import FeatureMatrix, RankCall
    from serve_app.serving.journalling import JournalHost
    from serve_app.serving.ledger_client import LedgerClient
    from serve_app.serving.library import Pins
    from serve_app.serving.owner import LiveAnswer, Optings
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

T = TypeVar("T")


def _begin(settings: Settings, process: str, admin_token: str = "") -> None:
    """What every replica does first. process: its name in log lines."""
    # Where scikit-learn is installed (it is for development), XGBoost would import it, SciPy's statistics and more: two
    # seconds a replica for wrappers that nothing here uses.
    if "sklearn" not in sys.modules:
        sys.modules["sklearn"] = None  # type: ignore[assignment]
    from serve_app.running.logs import configure_logs
    from serve_app.running.loopback import keep_replica_ports_on_loopback
    from serve_app.running.ray_meters import RayMeters
    from serve_app.serving.meters import install

    keep_replica_ports_on_loopback()
    install(RayMeters())
    configure_logs(settings, process, admin_token)
    if settings.tracing.to is not None:
        from opentelemetry import trace

        from serve_app.serving.spans import install_tracer

        install_tracer(trace.get_tracer("hindcast"))
    if settings.testing.clock_skew_ms:
        _skew_clock(settings.testing.clock_skew_ms)


def _skew_clock(skews_ms: Sequence[int]) -> None:
    """A test asked for clocks that disagree: each replica of a deployment takes the entry of its rank."""
    import logging

    from serve_app.clock import set_clock_skew

    rank = serve.get_replica_context().rank.rank
    skew_ms = skews_ms[rank % len(skews_ms)]
    set_clock_skew(skew_ms * 1000)
    logging.getLogger("hindcast.serving").warning("TEST: this replica's clock is %+d ms off", skew_ms)


class LedgerReplica:
    """The one process that owns the ledger and the promotion board."""

    def __init__(self, settings: Settings) -> None:
        _begin(settings, "ledger")
        from serve_app.clock import now_us
        from serve_app.errors import NotReady
        from serve_app.ledger.opening import open_ledger
        from serve_app.policies import read_current_policy, read_policy
        from serve_app.release.registry import read_current
        from serve_app.serving.board import Board
        from serve_app.serving.owner import StateOwner

        data = settings.data
        (release, _), (policy, _) = read_current(data), read_current_policy(data)
        if release is None or policy is None:
            raise NotReady("no release or no policy has been promoted", field=str(data), hint="hindcast build --promote")
        ledger = open_ledger(
            data,
            backend=settings.ledger.backend,
            redis_url=settings.ledger.redis_url,
            durability=settings.ledger.durability,
        )
        board = Board(release, policy, epoch=now_us())
        self._owner = StateOwner(
            ledger,
            board,
            threads=settings.deployments.ledger.threads,
            window_us=lambda revision: read_policy(data, revision).longest_window_us,
        )
        self._owner.keep_histories()

    async def call(self, method: str, *arguments: Any, **keywords: Any) -> Any:
        """See StateOwner."""
        return await self._owner.call(method, *arguments, **keywords)

    async def live(self, users: Any, after_seq: int) -> LiveAnswer:
        """See StateOwner."""
        return await self._owner.live(users, after_seq)

    async def change_user(self, user: int, changes: UserChanges, optings: Optings | None = None) -> UserRecord:
        """See StateOwner."""
        return await self._owner.change_user(user, changes, optings)

    async def poll(self, report: Report, after_epoch: int) -> Orders:
        """See StateOwner."""
        return await self._owner.poll(report, after_epoch)

    async def prepare(self, kind: Kind, version: str) -> None:
        """See StateOwner."""
        await self._owner.prepare(kind, version)

    async def commit_version(self, kind: Kind, version: str) -> None:
        """See StateOwner."""
        await self._owner.commit_version(kind, version)

    async def replicas(self) -> Sequence[Report]:
        """See StateOwner."""
        return await self._owner.replicas()

    def __del__(self) -> None:
        if hasattr(self, "_owner"):
            self._owner.close()


class _OwnerHandle:
    """The state owner behind its deployment handle; one handle a method, built once."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._call, self._live, self._change_user = handle.call, handle.live, handle.change_user
        self._poll, self._prepare, self._commit_version = handle.poll, handle.prepare, handle.commit_version
        self._replicas = handle.replicas

    async def call(self, method: str, *arguments: Any, **keywords: Any) -> Any:
        return await self._call.remote(method, *arguments, **keywords)

    async def live(self, users: Any, after_seq: int) -> LiveAnswer:
        return await self._live.remote(users, after_seq)

    async def change_user(self, user: int, changes: UserChanges, optings: Optings | None = None) -> UserRecord:
        return await self._change_user.remote(user, changes, optings)

    async def poll(self, report: Report, after_epoch: int) -> Orders:
        return await self._poll.remote(report, after_epoch)

    async def prepare(self, kind: Kind, version: str) -> None:
        await self._prepare.remote(kind, version)

    async def commit_version(self, kind: Kind, version: str) -> None:
        await self._commit_version.remote(kind, version)

    async def replicas(self) -> Sequence[Report]:
        return await self._replicas.remote()


class _StageProcess:
    """What every stage's replica has: a library for its role, kept as the board orders."""

    def __init__(self, settings: Settings, part: str, owner: DeploymentHandle, *, whole: bool = False) -> None:
        """whole: every stage runs here (`topology: fused`)."""
        name = f"{part}-{secrets.token_hex(4)}"
        _begin(settings, name)
        from serve_app.policies import read_policy
        from serve_app.serving.follower import Follower
        from serve_app.serving.library import ALL_ROLES, Library, Role

        role = Role(part)
        self.settings = settings
        self.owner = _OwnerHandle(owner)
        self.name = name
        threads = getattr(settings.deployments, role.value).threads
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix=role.value)
        roles = ALL_ROLES if whole else {role}
        self.library = Library(settings.data, roles, lambda revision: read_policy(settings.data, revision))
        self._loading = ThreadPoolExecutor(1, thread_name_prefix="loading")
        admits = role is Role.worker  # it pins what it decides, as an ingress does
        self._follower = Follower(self.name, role.value, self.library.stores, self.owner.poll, self._loading, admits=admits)

    async def start(self) -> None:
        """Hold what the board wants, and every catalogue change so far."""
        await self._follower.start()
        await self._learn()

    async def catch_up(self, pins: Pins) -> None:
        """Learn the catalogue changes up to `pins.seq`."""
        if self.library.seq < pins.seq:
            await self._learn()

    async def _learn(self) -> None:
        live = await self.owner.live(np.empty(0, np.uint64), self.library.seq)
        self.library.learn(live.changes)

    async def work(self, function: Callable[[], T]) -> T:
        """Run blocking work off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self.pool, function)

    def journal(self) -> JournalHost:
        """This process's own journal."""
        from serve_app.log.journal import Journal
        from serve_app.serving.journalling import JournalHost

        journal = Journal(
            self.settings.data,
            self.name,
            durability=self.settings.journal.durability,
            file_bytes=self.settings.journal.segment_bytes,
        )
        return JournalHost(journal, self.settings.budgets.journal_ms)


class RetrievalReplica:
    """Candidates."""

    async def __init__(self, settings: Settings, owner: DeploymentHandle) -> None:  # type: ignore[misc]
        self._process = _StageProcess(settings, "retrieval", owner)
        from serve_app.serving.hosts import RetrievalHost

        self._host = RetrievalHost(self._process.library)
        await self._process.start()

    async def run(self, batch: Batch, pins: Pins, kinds: Sequence[str] | None) -> Batch:
        """See RetrievalHost."""
        await self._process.catch_up(pins)
        return await self._process.work(lambda: self._host.run(batch, pins, kinds))


class FeaturesReplica:
    """Feature values."""

    async def __init__(self, settings: Settings, owner: DeploymentHandle) -> None:  # type: ignore[misc]
        self._process = _StageProcess(settings, "features", owner)
        from serve_app.serving.hosts import FeaturesHost

        self._host = FeaturesHost(self._process.library)
        await self._process.start()

    async def run(self, batch: Batch, pins: Pins) -> FeatureMatrix:
        """See FeaturesHost."""
        await self._process.catch_up(pins)
        return await self._process.work(lambda: self._host.run(batch, pins))


class RankingReplica:
    """Lists, and scores of notifications. Fetches its features itself and journals what it made."""

    async def __init__(self, settings: Settings, owner: DeploymentHandle, features: DeploymentHandle) -> None:  # type: ignore[misc]
        self._process = _StageProcess(settings, "ranking", owner)
        from serve_app.serving.hosts import RankingHost
        from serve_app.serving.stages import RankFlow

        run = features.run

        async def read(batch: Batch, pins: Pins) -> FeatureMatrix:
            return await run.remote(batch, pins)

        host = RankingHost(self._process.library, self._process.journal())
        self._flow = RankFlow(host, read, self._process.pool, features_ms=settings.budgets.features_ms)
        await self._process.start()

    async def run(self, call: RankCall) -> Batch:
        """See RankFlow."""
        await self._process.catch_up(call.pins)
        return await self._flow(call)


class DecisionReplica:
    """Send decisions on the ledger. Asks ranking for scores itself and journals what it decided."""

    async def __init__(self, settings: Settings, owner: DeploymentHandle, ranking: DeploymentHandle) -> None:  # type: ignore[misc]
        self._process = _StageProcess(settings, "decision", owner)
        from serve_app.serving.deciding import DecideFlow

        score = ranking.run

        async def rank(call: RankCall) -> Batch:
            return await score.remote(call)

        self._flow = DecideFlow(
            self._process.library,
            _ledger_of(self._process.owner, settings),
            rank,
            self._process.journal(),
            self._process.pool,
            ranking_ms=settings.budgets.ranking_ms,
            max_attempts=settings.ledger.max_attempts,
        )
        await self._process.start()
        await self._warm_up()

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
        self._process = _StageProcess(settings, "worker", owner, whole=decision is None)
        from serve_app.serving.assemble import local_stages
        from serve_app.serving.backroom import Backroom

        process, journal = self._process, self._process.journal()
        if decision is not None:
            run = decision.run

            async def decide(call: DecideCall) -> Decided:
                return await run.remote(call)
        else:
            ledger = _ledger_of(process.owner, settings)
            decide = local_stages(settings, process.library, ledger)(journal, process.pool).decide
        self._backroom = Backroom(settings, process.library, process.owner, journal, process.pool, decide)
        await process.start()
        self._backroom.start()

    def check_health(self) -> None:
        """Called by Serve."""
        self._backroom.check_health()


class _RemoteStages:
    """The stages behind their deployment handles."""

    def __init__(self, retrieval: DeploymentHandle, ranking: DeploymentHandle, decision: DeploymentHandle) -> None:
        self._retrieve, self._rank, self._decide = retrieval.run, ranking.run, decision.run

    async def retrieve(self, batch: Batch, pins: Pins, kinds: Sequence[str] | None = None) -> Batch:
        return await self._retrieve.remote(batch, pins, kinds)

    async def rank(self, call: RankCall) -> Batch:
        return await self._rank.remote(call)

    async def decide(self, call: DecideCall) -> Decided:
        from serve_app.ingress.batcher import overloaded
        from serve_app.serving.lost import own_error, undecided

        try:
            return await self._decide.remote(call)
        except BackPressureError:
            raise overloaded("too many decisions are waiting already") from None
        except RayTaskError as error:  # raised by our code over there
            raise own_error(error) or error from error
        except Exception as error:  # the process is gone, or the way to it
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
        _begin(settings, f"ingress-{name}", admin_token)
        from serve_app.ingress.server import IngressServer
        from serve_app.policies import read_policy
        from serve_app.running.ray_meters import metrics_pages
        from serve_app.serving.assemble import local_stages
        from serve_app.serving.library import ALL_ROLES, Library, Role

        port = _OwnerHandle(owner)
        roles = {Role.ingress} if stages is not None else ALL_ROLES
        library = Library(settings.data, roles, lambda revision: read_policy(settings.data, revision))

        def make(journal: JournalHost, pool: ThreadPoolExecutor) -> Stages:
            if stages is not None:
                return _RemoteStages(*stages)
            return local_stages(settings, library, _ledger_of(port, settings))(journal, pool)

        self._server = IngressServer(settings, name, library, port, make, admin_token=admin_token, metrics=metrics_pages)
        await self._server.start()

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._server.app

    def check_health(self) -> None:
        """Called by Serve."""
        self._server.check_health()


IngressReplica = serve.ingress()(_Ingress)


def _ledger_of(owner: _OwnerHandle, settings: Settings) -> LedgerClient:
    from serve_app.serving.assemble import bridged

    budgets = settings.budgets
    return bridged(owner.call, asyncio.get_running_loop(), budgets.commit_ms / 1000, budgets.ledger_ms / 1000)
