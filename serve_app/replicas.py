"""What every replica of a deployment does and has: a beginning, a library for its role, a journal of its own."""

from __future__ import annotations

import asyncio
import gc
import secrets
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from ray import serve
from ray.serve.handle import DeploymentHandle

from serve_app.hop import Hop, Listening
from serve_app.serving.threads import Left, WorkThreads
from serve_app.settings import DeploymentSettings, Settings
from serve_app.state_owner import OwnerHandle

if TYPE_CHECKING:
    from serve_app.serving.journalling import JournalHost
    from serve_app.serving.ledger_client import LedgerClient
    from serve_app.serving.library import Pins, Role

__all__ = ["StageProcess", "begin", "ledger_of"]

T = TypeVar("T")


def begin(settings: Settings, process: str, admin_token: str = "") -> None:
    """What every replica does first. process: its name in log lines."""
    _start_light()
    from serve_app.running.logs import configure_logs
    from serve_app.running.loopback import keep_replica_ports_on_loopback
    from serve_app.running.ray_meters import RayMeters
    from serve_app.serving import faults
    from serve_app.serving.meters import install

    keep_replica_ports_on_loopback()
    install(RayMeters())
    configure_logs(settings, process, admin_token)
    if settings.tracing.to is not None:
        from opentelemetry import trace

        from serve_app.serving.spans import install_tracer

        install_tracer(trace.get_tracer("hindcast"))
    faults.install(settings.testing.faults)
    if settings.testing.clock_skew_ms:
        _skew_clock(settings.testing.clock_skew_ms)


def _start_light() -> None:
    """How fast a replica starts is how soon one that died is replaced."""
    # Where scikit-learn is installed (it is for development), XGBoost would import it, SciPy's statistics and more: two
    # seconds a replica for wrappers that nothing here uses.
    if "sklearn" not in sys.modules:
        sys.modules["sklearn"] = None  # type: ignore[assignment]
    # What Ray imported stays: to look through it again and again while we import more takes a third of a second.
    gc.freeze()
    # To look for cycles whenever 700 objects more are alive, as Python does by itself, takes 3 % of a replica's time under
    # load, and nearly all of them are gone by the end of their micro-batch.
    gc.set_threshold(10_000, 10, 10)
    # With the first kernel numba would import scipy.linalg for its BLAS. No kernel may use one: sums in any order.
    import numba.np.linalg

    numba.np.linalg.ensure_blas = _no_blas


def _no_blas() -> None:
    raise ImportError("kernels use no BLAS")


def _skew_clock(skews_ms: Sequence[int]) -> None:
    """A test asked for clocks that disagree: each replica of a deployment takes the entry of its rank."""
    import logging

    from serve_app.clock import set_clock_skew

    rank = serve.get_replica_context().rank.rank
    skew_ms = skews_ms[rank % len(skews_ms)]
    set_clock_skew(skew_ms * 1000)
    logging.getLogger("hindcast.serving").warning("TEST: this replica's clock is %+d ms off", skew_ms)


class StageProcess:
    """What every stage's replica has: a library for its role, kept as the board orders."""

    def __init__(self, settings: Settings, part: str, owner: DeploymentHandle, *, whole: bool = False) -> None:
        """whole: every stage runs here (`topology: fused`)."""
        name = f"{part}-{secrets.token_hex(4)}"
        begin(settings, name)
        from serve_app.policies import read_policy
        from serve_app.serving.follower import Follower
        from serve_app.serving.library import ALL_ROLES, Library, Role

        role = self._role = Role(part)
        self.settings = settings
        self.owner = OwnerHandle(owner)
        self.name = name
        self.deployment: DeploymentSettings = getattr(settings.deployments, role.value)
        # Threads that wait, for others or for their turn, are as many as calls under way.
        threads = self.deployment.threads
        most = max(threads, self.deployment.max_ongoing)
        self.pool = WorkThreads(most, role.value, stuck_s=settings.budgets.stuck_s, at_once=threads)
        self._loop = asyncio.get_running_loop()
        roles = ALL_ROLES if whole else {role}
        self.library = Library(settings.data, roles, lambda revision: read_policy(settings.data, revision))
        self._loading = ThreadPoolExecutor(1, thread_name_prefix="loading")
        admits = role is Role.worker  # it pins what it decides, as an ingress does
        self._follower = Follower(self.name, role.value, self.library.stores, self.owner.poll, self._loading, admits=admits)

    async def start(self) -> None:
        """Hold what the board wants, and every catalogue change so far."""
        from serve_app.serving.editions import catch_up
        from serve_app.serving.stage_gauges import tell_calls

        await self._follower.start()
        await catch_up(self.library, self.owner.call)
        await self._learn()
        self._telling = self._loop.create_task(tell_calls(self._role.value, [self.pool]))

    def hop(self, handle: DeploymentHandle, role: Role) -> Hop:
        """The way to another deployment."""
        return Hop(handle, role, self.owner.nearby, self.settings.deployments)

    def listen(self, run: Callable[..., Any]) -> Listening:
        """Take calls of `run` from this host, now that everything is ready for them."""
        listening = Listening(run, self.pool.turns, self.deployment.max_ongoing)
        self.owner.announce(listening.address)
        return listening

    def check_health(self) -> None:
        """HindcastError where a thread is stuck."""
        self.pool.check()

    def catch_up(self, pins: Pins) -> None:
        """Learn the catalogue changes up to `pins.seq`; in a thread that works. TimeoutError where the owner is silent."""
        if self.library.seq >= pins.seq:
            return
        learning = asyncio.run_coroutine_threadsafe(self._learn(), self._loop)
        try:
            with self.pool.turns.given_up():
                learning.result(self.settings.budgets.request_ms / 1000)
        except TimeoutError:
            learning.cancel()
            raise

    async def _learn(self) -> None:
        live = await self.owner.live(np.empty(0, np.uint64), self.library.seq)
        self.library.learn(live.changes)

    async def work(self, function: Callable[[], T]) -> T:
        """Run blocking work off the event loop; whoever does not wait for it any more is not worked for."""
        from serve_app.serving.stages import in_pool

        gone = False

        def begun() -> T:
            if gone:
                raise Left
            return function()

        try:
            return await in_pool(self.pool, begun)
        except asyncio.CancelledError:
            gone = True
            raise

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


def ledger_of(owner: OwnerHandle, settings: Settings) -> LedgerClient:
    from serve_app.serving.assemble import bridged

    budgets = settings.budgets
    read_s, write_s = budgets.ledger_ms / 1000, budgets.commit_ms / 1000
    return bridged(owner.call, asyncio.get_running_loop(), write_s, read_s, owner.near)
