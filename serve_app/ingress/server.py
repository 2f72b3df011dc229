"""One ingress: its parts put together, and the app they make. Runs inside a deployment, or by itself in a test."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from fastapi import FastAPI
from starlette.responses import HTMLResponse

from serve_app.errors import HindcastError
from serve_app.ingress.auth import KeyRing
from serve_app.ingress.batcher import MicroBatcher
from serve_app.ingress.bodies import Bodies
from serve_app.ingress.call_log import call_log
from serve_app.ingress.calls import Call, CallsApp, add_calls, openapi_of
from serve_app.ingress.docs import docs_page
from serve_app.ingress.gauges import BatcherGauges
from serve_app.ingress.problems import install_problem_handlers
from serve_app.ingress.recommend import Recommender
from serve_app.ingress.refusing import RefusalPace
from serve_app.ingress.routes_notify import NotifyRoutes
from serve_app.ingress.routes_operate import OperateRoutes
from serve_app.ingress.routes_outbox import OutboxRoutes
from serve_app.ingress.routes_recommend import RecommendRoutes
from serve_app.ingress.routes_state import StateRoutes
from serve_app.ingress.throttle import Throttle
from serve_app.ingress.warming import warm_up
from serve_app.ledger.protocol import UserChanges, UserRecord
from serve_app.log.fingerprint import code_version
from serve_app.log.journal import Journal
from serve_app.serving.backroom import outbox_desk
from serve_app.serving.board import Kind, Orders, Report
from serve_app.serving.editions import editions
from serve_app.serving.follower import Follower
from serve_app.serving.journalling import JournalHost
from serve_app.serving.ledger_client import translated
from serve_app.serving.library import Library
from serve_app.serving.lost import called_off
from serve_app.serving.owner import LiveAnswer, Optings
from serve_app.serving.stage_gauges import tell_calls
from serve_app.serving.stages import Stages
from serve_app.serving.threads import WorkThreads
from serve_app.settings import Settings

__all__ = ["IngressServer", "OwnerPort"]

_LARGEST_AT_ONCE = 2  # bodies of the largest kind that an ingress holds


class OwnerPort(Protocol):
    """The state owner as an ingress calls it (see serve_app.serving.owner)."""

    async def call(self, method: str, *arguments: Any, **keywords: Any) -> Any:
        """One method of the ledger."""

    async def live(self, users: npt.NDArray[np.uint64], after_seq: int) -> LiveAnswer:
        """What a micro-batch needs."""

    async def change_user(self, user: int, changes: UserChanges, optings: Optings | None = None) -> UserRecord:
        """Change one user's state."""

    async def poll(self, report: Report, after_epoch: int) -> Orders:
        """Report to the promotion board."""

    async def prepare(self, kind: Kind, version: str) -> None:
        """First phase of a promotion."""

    async def commit_version(self, kind: Kind, version: str) -> None:
        """Second phase of a promotion."""

    async def replicas(self) -> Any:
        """Reports of living replicas."""


_FALL_BACK_THREADS = 4
_PLAIN_THREADS = 4
_TIMED = frozenset({"call", "live", "change_user"})  # promotions and polls keep times of their own


class _Owner:
    """An owner whose errors are always ours, and that answers or is given up: a process that hangs, or was replaced while
    a call was under way, must not hold a request for ever. What was given up may still happen: a write is then unknown."""

    def __init__(self, port: OwnerPort, limit_s: float) -> None:
        self._port, self._limit_s = port, limit_s

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._port, name)

        async def ask(*arguments: Any, **keywords: Any) -> Any:
            try:
                async with asyncio.timeout(self._limit_s if name in _TIMED else None):
                    return await method(*arguments, **keywords)
            except (Exception, asyncio.CancelledError) as error:
                if called_off(error):
                    raise
                said = str(arguments[0]) if name == "call" else name
                raise translated(error, said) from error

        return ask


def _lanes(settings: Settings) -> int:
    batching, cores = settings.batching, os.cpu_count() or 2
    if settings.topology == "chain":
        return batching.in_flight_chain or max(2, cores)
    # Ingresses that share a core with others lose more by smaller micro-batches than they gain by having two of them.
    return batching.in_flight_fused or (1 if settings.deployments.ingress.min_replicas >= cores else 2)


class IngressServer:
    """See the module. `start` before the first request, `stop` after the last."""

    def __init__(
        self,
        settings: Settings,
        replica: str,
        library: Library,
        owner: OwnerPort,
        make_stages: Callable[[JournalHost, ThreadPoolExecutor], Stages],
        *,
        admin_token: str = "",
        metrics: Callable[[], Sequence[str]] | None = None,
    ) -> None:
        self.settings, self.library = settings, library
        self._owner: Any = _Owner(owner, settings.budgets.commit_ms / 1000)
        self._pool = WorkThreads(settings.deployments.ingress.threads, "ingress", stuck_s=settings.budgets.stuck_s)
        self._loading = ThreadPoolExecutor(1, thread_name_prefix="loading")
        journal = Journal(
            settings.data,
            f"ingress-{replica}",
            durability=settings.journal.durability,
            file_bytes=settings.journal.segment_bytes,
        )
        self.journal = JournalHost(journal, settings.budgets.journal_ms)
        self.stages = make_stages(self.journal, self._pool)
        # Threads of their own: stages that hang in this process must not hold up what answers instead of them, nor what
        # needs no stage: events, users, batches being read.
        self._fall_backs = WorkThreads(_FALL_BACK_THREADS, "fall-back", stuck_s=settings.budgets.stuck_s)
        self._plain = WorkThreads(_PLAIN_THREADS, "plain", stuck_s=settings.budgets.stuck_s)
        self._follower = Follower(replica, "ingress", library.stores, self._owner.poll, self._loading, admits=True)
        self.recommender = Recommender(
            library,
            self.stages,
            self._owner.live,
            self.journal,
            self._fall_backs,
            settings.budgets,
            recents_kept=settings.limits.recents_kept,
            log_rate=settings.journal.log_rate,
        )
        self.app = self._build(KeyRing(settings.security.keys_file, admin_token), metrics)

    def _build(self, keys: KeyRing, metrics: Callable[[], Sequence[str]] | None) -> FastAPI:
        lanes = _lanes(self.settings)
        capacity = self.settings.testing.capacity_per_s
        throttle = None if capacity is None else Throttle(capacity)
        self.recommend_routes = RecommendRoutes(self.recommender, self.library, self.settings, lanes, throttle)
        owner, plain = self._owner, self._plain
        self.notify_routes = NotifyRoutes(owner, self.library, self.stages, plain, self.settings, lanes, throttle)
        edition = editions(self.library, self._owner.live, self.settings.budgets.live_ms)
        parts: list[Any] = [  # what is called most comes first: Serve looks for a call's name in this order
            self.recommend_routes,
            self.notify_routes,
            StateRoutes(owner, self.library, self.journal, plain, self.settings),
            OutboxRoutes(outbox_desk(self.settings, owner.call, edition, self.journal, plain)),
            OperateRoutes(self._owner, self.library, self.settings, metrics, self.journal),
        ]
        calls: list[Call] = [call for part in parts for call in part.calls()]
        app = CallsApp(title="Hindcast", docs_url=None, redoc_url=None, openapi_url=None)
        install_problem_handlers(app)
        tell = call_log(self.settings.logs.calls)
        refusals = RefusalPace(self.settings.batching.refusals_per_s, 0.1 * self.settings.budgets.request_ms / 1000)
        add_calls(app, calls, keys, bodies=_bodies(self.settings), tell=tell, refusals=refusals)
        document = openapi_of(calls, version=code_version())
        app.openapi = lambda: document  # type: ignore[method-assign]
        app.add_route("/openapi.json", _constant_json(document), methods=["GET"], include_in_schema=False)
        app.add_route("/docs", _constant_html(docs_page(document)), methods=["GET"], include_in_schema=False)
        return app

    async def start(self) -> None:
        """Load what the board wants; raises what that raised."""
        await self._follower.start()
        await warm_up(self.library, self.stages, self.recommender, self._owner.live, self._owner.call)
        lanes = {name: batcher.stats for name, batcher in self._batchers().items()}
        gauges = BatcherGauges(lanes, self.recommend_routes.qualities)
        pools = (self._pool, self._fall_backs, self._plain)
        loop = asyncio.get_running_loop()
        self._telling = [loop.create_task(one) for one in (gauges.run(), tell_calls("ingress", pools))]

    async def stop(self) -> None:
        """Answer what is under way, then let go of threads and files."""
        await self._follower.stop()
        for one in self._telling:
            one.cancel()
        for batcher in self._batchers().values():
            await batcher.drain()
        for pool in (self._pool, self._fall_backs, self._plain, self._loading):
            pool.shutdown(wait=True)
        self.journal.close()

    def _batchers(self) -> dict[str, MicroBatcher[Any, Any]]:
        return {**self.recommend_routes.batchers, "decide": self.notify_routes.batcher}

    def check_health(self) -> None:
        """Raise where this replica can serve nothing."""
        if not self.library.releases.loaded():
            raise HindcastError("no release is loaded")
        for pool in (self._pool, self._fall_backs, self._plain):
            pool.check()


def _bodies(settings: Settings) -> Bodies:
    limits = settings.limits
    return Bodies(
        most_arriving=settings.http.places_of_one_surface,
        most_bytes=_LARGEST_AT_ONCE * max(limits.batch_body_bytes, limits.event_body_bytes, limits.body_bytes),
        arrive_s=limits.body_s,
    )


def _constant_json(document: dict[str, Any]) -> Callable[..., Any]:
    import orjson
    from starlette.responses import Response

    body = orjson.dumps(document)

    async def endpoint(_: Any) -> Response:
        return Response(body, media_type="application/json")

    return endpoint


def _constant_html(page: str) -> Callable[..., Any]:
    async def endpoint(_: Any) -> HTMLResponse:
        return HTMLResponse(page)

    return endpoint
