"""Work that nobody waits for, put together: deferrals decided anew, queued messages handed over, segments refreshed, the log
kept up, queues measured."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import Executor
from typing import Any

from serve_app.clock import now_us
from serve_app.errors import HindcastError
from serve_app.log.lag import log_lag
from serve_app.segments.periodic import SegmentRefresher
from serve_app.serving.assemble import bridged
from serve_app.serving.board import Report
from serve_app.serving.deciding import DecideCall, Decided
from serve_app.serving.editions import EditionNow, OwnerCall, editions
from serve_app.serving.journalling import JournalHost
from serve_app.serving.ledger_client import translated
from serve_app.serving.library import Library, Role
from serve_app.serving.meters import gauge
from serve_app.serving.outbox import DeskSettings, OutboxDesk
from serve_app.serving.stages import in_pool
from serve_app.serving.sweeping import Sweeper, SweepSettings
from serve_app.serving.upkeeping import Upkeeper
from serve_app.serving.webhook import WebhookSettings, WebhookWorker
from serve_app.settings import OutboxSettings, Settings

__all__ = ["Backroom", "outbox_desk"]

_LOG = logging.getLogger("hindcast.serving")
_MEASURE_S = 15.0
_TIDY_S, _TIDY_ROWS = 60.0, 500
_LIVE_MS = 5_000.0
_UPKEEP_CALL_S = 120.0


def outbox_desk(
    settings: Settings, call: OwnerCall, edition: EditionNow, journal: JournalHost, pool: Executor
) -> OutboxDesk:
    """The desk as the settings want it, for the worker and for senders that pull."""
    own = settings.outbox
    booked = DeskSettings(own.max_attempts, own.backoff_s, own.backoff_most_s, own.max_age_h)
    return OutboxDesk(call, edition, journal, pool, booked)


class Backroom:
    """The tasks of one worker process. `start` on its event loop; `stop` ends them."""

    def __init__(
        self,
        settings: Settings,
        library: Library,
        owner: Any,
        journal: JournalHost,
        pool: Executor,
        decide: Callable[[DecideCall], Awaitable[Decided]],
        *,
        clock: Callable[[], int] = now_us,
    ) -> None:
        """owner: has the coroutines `call`, `live` and `replicas` of serve_app.serving.owner.StateOwner."""
        self._call, self._clock = _told(owner.call), clock
        self._replicas: Callable[[], Awaitable[Sequence[Report]]] = owner.replicas
        edition = editions(library, owner.live, max(settings.budgets.live_ms, _LIVE_MS))
        own = settings.deferrals
        sweep = SweepSettings(own.batch, own.per_s, own.poll_ms, settings.budgets.decide_batch_ms)
        self.sweeper = Sweeper(self._call, edition, decide, pool, sweep, clock=clock) if own.enabled else None
        self.desk = outbox_desk(settings, self._call, edition, journal, pool)
        hook = webhook_settings(settings.outbox)
        self.webhook = WebhookWorker(self.desk, hook) if hook is not None else None
        minutes = settings.segments.refresh_minutes
        redis_url = settings.ledger.redis_url if settings.ledger.backend == "redis" else None
        refresher = SegmentRefresher(settings.data, refresh_minutes=minutes, redis_url=redis_url)
        self.refresher = refresher if minutes else None
        self._settings, self._pool = settings, pool
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin; from here on everything goes by itself."""
        parts: list[Coroutine[Any, Any, None]] = [self._measure()]
        parts += [] if self.webhook is not None else [self._tidy()]
        parts += [part.run() for part in (self.sweeper, self.webhook, self.refresher) if part is not None]
        every_s = self._settings.journal.upkeep_s
        if every_s:
            ledger = bridged(self._call, asyncio.get_running_loop(), _UPKEEP_CALL_S)
            parts.append(Upkeeper(self._settings.data, ledger, self._pool, every_s=every_s, clock=self._clock).run())
        self._tasks = [asyncio.get_running_loop().create_task(part) for part in parts]

    async def stop(self) -> None:
        """End; what is under way is left to the ledger's leases and keys."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def check_health(self) -> None:
        """Raise where a part has ended, which none does by itself."""
        for task in self._tasks:
            if task.done():
                error = None if task.cancelled() else task.exception()
                raise HindcastError(f"a part of the worker ended: {error!r}")

    async def _tidy(self) -> None:
        """Where no webhook is set and perhaps nobody pulls: stale messages do not pile up, the rest is said."""
        while True:
            await asyncio.sleep(_TIDY_S)
            try:
                waiting = await self.desk.tidy(_TIDY_ROWS)
            except asyncio.CancelledError:
                raise
            except Exception as error:  # noqa: BLE001 - a ledger that is away comes back
                _LOG.warning("the outbox could not be tidied: %s", error)
            else:
                if waiting:
                    _LOG.warning("%d messages wait to be claimed: set outbox.webhook_url, or POST /v1/outbox/claim", waiting)

    async def measure(self) -> None:
        """Say how long the queues are, how far the log is behind, and how many replicas report."""
        depths = await self._call("queue_depths", self._clock())
        for name in ("deferrals", "due", "outbox", "ready", "buried"):
            gauge("hindcast_queue_rows", getattr(depths, name), queue=name)
        lag = await in_pool(self._pool, lambda: log_lag(self._settings.data, now_us=self._clock()))
        gauge("hindcast_log_lag_s", lag.seconds)
        gauge("hindcast_log_waiting_bytes", lag.waiting)
        reporting = Counter(one.role for one in await self._replicas())
        for role in Role:
            gauge("hindcast_replicas", reporting[role.value], role=role.value)

    async def _measure(self) -> None:
        while True:
            try:
                await self.measure()
            except asyncio.CancelledError:
                raise
            except Exception as error:  # noqa: BLE001 - a ledger that is away comes back
                _LOG.warning("the queues could not be measured: %s", error)
            await asyncio.sleep(_MEASURE_S)


def webhook_settings(own: OutboxSettings) -> WebhookSettings | None:
    """The worker's settings with the secret read; None without an address. InvalidInput for a file that cannot be read."""
    if own.webhook_url is None:
        return None
    secret = own.read_secret()
    headers = ((own.secret_header, secret),) if secret else ()
    return WebhookSettings(str(own.webhook_url), own.webhook_timeout_ms / 1000, own.concurrency, own.poll_ms, headers)


def _told(call: OwnerCall) -> OwnerCall:
    """`call` with errors in our own words."""

    async def ask(method: str, *arguments: Any, **keywords: Any) -> Any:
        try:
            return await call(method, *arguments, **keywords)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            raise translated(error, method) from error

    return ask
