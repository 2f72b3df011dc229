"""The sweeper: deferrals whose time has come are decided anew, in bounded batches and at a bounded pace.

The ledger keeps the deferrals; the sweeper keeps nothing. Several of them, or one that died half way, do no harm: a child's
request id and key follow from its parent, and the commit that answers a deferral removes it (see `serve_app.serving.again`).
A deferral that cannot be decided now (its bucket is closed, its record unreadable) is set aside for a while, so that it does
not hold up the others.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

from serve_app.clock import monotonic_s, now_us
from serve_app.decide import DecideStatus
from serve_app.errors import DamagedArtifact, InvalidInput
from serve_app.ledger.protocol import Deferral
from serve_app.serving.again import Due, asked_again, read_due
from serve_app.serving.deciding import DecideCall, Decided
from serve_app.serving.editions import EditionNow, OwnerCall
from serve_app.serving.ledger_client import translated
from serve_app.serving.library import Edition, Pins
from serve_app.serving.meters import count, gauge, observe
from serve_app.serving.stages import in_pool
from serve_app.vocabulary import Action, Reason

__all__ = ["SweepSettings", "Sweeper", "Swept"]

_LOG = logging.getLogger("hindcast.serving")
_SECOND = 1_000_000
_ASIDE_S, _ASIDE_MOST_S, _ASIDE_BATCHES = 5, 3600, 20
_OPEN = (DecideStatus.ledger_unavailable, DecideStatus.outcome_unknown, DecideStatus.contended)


@dataclass(frozen=True, slots=True)
class SweepSettings:
    """batch: deferrals decided together; per_s: at most so many a second; deadline_ms: of one batch."""

    batch: int = 500
    per_s: float = 2_000
    poll_ms: float = 1_000
    deadline_ms: float = 60_000


@dataclass(slots=True)
class Swept:
    """What one sweep did. outcomes: how many deferrals ended how (send, defer, suppress, expired, none, answered already;
    open: still to be decided; unreadable, failed: set aside)."""

    due: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)


class Sweeper:
    """See the module. Runs on one event loop; `call` reaches the ledger, array work goes to `pool`."""

    def __init__(
        self,
        call: OwnerCall,
        edition: EditionNow,
        decide: Callable[[DecideCall], Awaitable[Decided]],
        pool: Executor,
        settings: SweepSettings,
        *,
        clock: Callable[[], int] = now_us,
    ) -> None:
        self._call, self._edition, self._decide, self._pool = call, edition, decide, pool
        self._settings, self._clock = settings, clock
        self._aside: dict[tuple[int, int], tuple[int, int]] = {}

    async def run(self) -> None:
        """Sweep until cancelled. What fails is logged, counted and tried again, ever more slowly."""
        wait_s = poll_s = self._settings.poll_ms / 1000
        while True:
            began = monotonic_s()
            try:
                swept = await self.sweep()
            except asyncio.CancelledError:
                raise
            except Exception as error:  # noqa: BLE001 - a ledger or a stage that is away comes back; deferrals wait in the ledger
                wait_s = min(2 * wait_s, 30.0)
                count("hindcast_deferrals", outcome="sweep_failed")
                _LOG.warning("a sweep failed, the next in %.1f s: %s: %s", wait_s, type(error).__name__, error)
            else:
                paced_s = swept.due / self._settings.per_s - (monotonic_s() - began)
                wait_s = max(paced_s, 0.0) if swept.due >= self._settings.batch else poll_s
            await asyncio.sleep(wait_s)

    async def sweep(self) -> Swept:
        """Decide one batch of due deferrals. Raises what the ledger or the stages raised."""
        now, most = self._clock(), self._settings.batch
        found = await self._call("due_deferrals", now, most + len(self._aside))
        self._forget_aside(found, now)
        ready = [one for one in found if (one.user, one.request_id) not in self._aside or self._again_at(one) <= now][:most]
        gauge("hindcast_sweep_lag_s", max((now - found[0].until) / 1e6, 0.0) if found else 0.0)
        swept = Swept(len(ready))
        if ready:
            due, damaged = await in_pool(self._pool, lambda: read_due(ready))
            for one, why in damaged:
                self._set_aside(one, now, "unreadable", why, swept)
            if due:
                async with self._edition() as edition:
                    await self._decided(due, edition, now, swept)
        for outcome, rows in swept.outcomes.items():
            count("hindcast_deferrals", rows, outcome=outcome)
        return swept

    async def _decided(self, due: Sequence[Due], edition: Edition, now: int, swept: Swept) -> None:
        """Decide `due`; where one of them makes the batch fail, halve it until that one stands alone."""
        deadline = now + int(self._settings.deadline_ms * 1000)
        try:
            again = await in_pool(self._pool, lambda: asked_again(due, edition, now, deadline))
            pins = Pins(edition.release.version, edition.policy.revision, edition.view.seq)
            call = DecideCall(again.batch, pins, again.keys, again.digests, commit=True, explain=False)
            made = await self._decide(call)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            own = translated(error, "decide")
            if not isinstance(own, InvalidInput | DamagedArtifact):
                raise
            if len(due) == 1:
                self._set_aside(due[0].deferral, now, "failed", str(own), swept)
                return
            for half in (due[: len(due) // 2], due[len(due) // 2 :]):
                await self._decided(half, edition, now, swept)
            return
        await self._told(due, made, now, swept)

    async def _told(self, due: Sequence[Due], made: Decided, now: int, swept: Swept) -> None:
        decided = made.decided
        action, reason = decided.batch.requests["action"], decided.batch.requests["reason"]
        for row, one in enumerate(due):
            status = DecideStatus(int(decided.status[row]))
            observe("hindcast_sweep_lag_ms", max(now - one.deferral.until, 0) / 1e3)
            if status in _OPEN:
                self._set_aside(one.deferral, now, "open", status.name, swept)
            elif status is DecideStatus.duplicate:
                swept.outcomes["answered already"] += 1
                await self._call("drop_deferral", one.deferral.user, one.deferral.request_id)
            elif status is DecideStatus.key_reused:
                self._set_aside(one.deferral, now, "failed", "its key answered another deferral", swept)
            else:
                expired = reason[row] == Reason.expired and action[row] == Action.suppress
                swept.outcomes["expired" if expired else Action(int(action[row])).name] += 1

    def _again_at(self, one: Deferral) -> int:
        return self._aside[one.user, one.request_id][0]

    def _set_aside(self, one: Deferral, now: int, outcome: str, why: str, swept: Swept) -> None:
        _, times = self._aside.get((one.user, one.request_id), (0, 0))
        wait_s = min(_ASIDE_S * 2**times, _ASIDE_MOST_S)
        swept.outcomes[outcome] += 1
        if times or len(self._aside) < _ASIDE_BATCHES * self._settings.batch:
            self._aside[one.user, one.request_id] = (now + wait_s * _SECOND, times + 1)
        level = logging.DEBUG if outcome == "open" else logging.ERROR
        _LOG.log(level, "deferral %016x of user %016x is set aside for %d s: %s", one.request_id, one.user, wait_s, why)

    def _forget_aside(self, found: Sequence[Deferral], now: int) -> None:
        """Deferrals set aside that the ledger no longer has."""
        if self._aside:
            known = {(one.user, one.request_id) for one in found}
            self._aside = {pair: until for pair, until in self._aside.items() if pair in known or until[0] > now}
