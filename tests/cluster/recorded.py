"""A server in this process whose clock, ledger and stages do what a test says; it sweeps deferrals like a deployed one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import httpx
import uvicorn

from serve_app.clock import micros_of, now_us, set_clock_skew
from serve_app.errors import LedgerUnavailable
from serve_app.ingress.server import IngressServer
from serve_app.ledger.opening import open_ledger
from serve_app.policies import read_current_policy, read_policy
from serve_app.release.registry import read_current
from serve_app.serving.assemble import bridged, local_stages
from serve_app.serving.board import Board
from serve_app.serving.editions import editions
from serve_app.serving.journalling import JournalHost
from serve_app.serving.library import ALL_ROLES, Library
from serve_app.serving.owner import StateOwner
from serve_app.serving.sweeping import Sweeper, SweepSettings
from serve_app.settings import Settings
from tests.cluster.server_support import TOKEN, _InProcess

__all__ = ["RecordedServer", "clock_at", "recorded_server"]


def clock_at(moment: str) -> None:
    """From now on the process's clock goes on from that moment (ISO 8601, UTC where it names no zone)."""
    at = datetime.fromisoformat(moment)
    set_clock_skew(0)
    set_clock_skew(micros_of(at if at.tzinfo else at.replace(tzinfo=UTC)) - now_us())


class _Owner:
    """The state owner; reads of the ledger take `delay_s`, and none succeeds while `away`."""

    def __init__(self, owner: StateOwner) -> None:
        self._owner, self.delay_s, self.away = owner, 0.0, False

    async def call(self, method: str, *arguments: Any, **keywords: Any) -> Any:
        if method == "read":
            await asyncio.sleep(self.delay_s)  # the delay that a test asked for
        if self.away and method in ("read", "commit"):
            raise LedgerUnavailable("nobody can reach it", field="ledger", hint="retry")
        return await self._owner.call(method, *arguments, **keywords)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._owner, name)


class RecordedServer(_InProcess):
    """owner: see `_Owner`. swept: how many deferrals were decided again, by outcome."""

    owner: _Owner
    sweeper: Sweeper

    def __init__(self, settings: Settings, read_s: float) -> None:
        super().__init__(settings)
        self._read_s = read_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._flow: Any = None

    def sweep(self) -> dict[str, int]:
        """Decide what is due by the process's clock; outcomes."""
        assert self._loop is not None
        done = asyncio.run_coroutine_threadsafe(self.sweeper.sweep(), self._loop).result(60)
        return dict(done.outcomes)

    @contextmanager
    def without_time_for(self, stage: str) -> Iterator[None]:
        """ranking or features: its budget is over before it has begun."""
        stages: Any = self._server.stages
        owner, name = (stages._decide, "_ranking_s") if stage == "ranking" else (stages._scores, "features_s")
        usual = getattr(owner, name)
        setattr(owner, name, 0.0)
        try:
            yield
        finally:
            setattr(owner, name, usual)

    async def _serve(self) -> None:
        data, self._loop = self.settings.data, asyncio.get_running_loop()
        (release, _), (policy, _) = read_current(data), read_current_policy(data)
        assert release is not None
        assert policy is not None
        self.owner = _Owner(StateOwner(open_ledger(data, durability="process"), Board(release, policy)))
        library = Library(data, ALL_ROLES, lambda revision: read_policy(data, revision))
        ledger = bridged(self.owner.call, self._loop, 30.0, self._read_s)
        make = local_stages(self.settings, library, ledger)
        self._server = server = IngressServer(self.settings, "test", library, self.owner, make, admin_token=TOKEN)
        await server.start()
        self.sweeper = self._sweeper(server, library)
        config = uvicorn.Config(server.app, port=self.port, log_level="error", timeout_graceful_shutdown=5)
        self.uvicorn = uvicorn.Server(config)
        self.uvicorn.install_signal_handlers = lambda: None  # type: ignore[method-assign]
        serving = asyncio.create_task(self.uvicorn.serve())
        while not self.uvicorn.started:
            await asyncio.sleep(0.01)  # uvicorn has nothing else to wait on
        self.ready.set()
        await serving
        await server.stop()
        self.owner.close()

    def _sweeper(self, server: IngressServer, library: Library) -> Sweeper:
        pool, journal = ThreadPoolExecutor(2), server.journal
        assert isinstance(journal, JournalHost)
        edition = editions(library, self.owner.live, 5_000.0)
        return Sweeper(self.owner.call, edition, server.stages.decide, pool, SweepSettings(), clock=now_us)


@contextmanager
def recorded_server(settings: Settings, *, read_s: float = 5.0) -> Iterator[tuple[httpx.Client, RecordedServer]]:
    """A client and the server. read_s: how long a read of the ledger may take."""
    server = RecordedServer(settings, read_s)
    server.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=60.0) as client:
            yield client, server
    finally:
        server.end()
        set_clock_skew(0)
