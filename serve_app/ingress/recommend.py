"""Lists for a micro-batch: live facts, retrieval, ranking, each within its budget and with its declared fall-back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch
from serve_app.errors import NotReady
from serve_app.ingress.asks import Ask, Known, request_batch, users_of
from serve_app.ingress.deadlines import left_s, within
from serve_app.noise import hash_key, salt_of
from serve_app.serving.hosts import RankCall, flagged
from serve_app.serving.journalling import JournalHost
from serve_app.serving.library import Edition, Library, Pins
from serve_app.serving.list_requests import PageFill, Shelves
from serve_app.serving.lost import called_off
from serve_app.serving.meters import count, observe, timed
from serve_app.serving.owner import LiveAnswer
from serve_app.serving.pages import unranked
from serve_app.serving.stages import LocalStages, Stages, in_pool
from serve_app.serving.trips import ListTrip, PageTrip, TripTimes
from serve_app.settings import BudgetSettings
from serve_app.stages.retrieval import SurfaceRetrieval
from serve_app.stages.stage import Context
from serve_app.vocabulary import Source, StageBit, Surface

__all__ = ["Lists", "ListsOptions", "LiveCall", "Recommender"]

_LOG = logging.getLogger("hindcast.ingress")
_RETRY_SALT = salt_of("request answered by a fall-back")
_NOBODY = np.empty(0, np.uint64)
_SPARE = 0.2  # of a request's time is kept for the fall-backs of its stages
_POPULAR = SurfaceRetrieval({Source.popular: 100, Source.fresh: 10})

LiveCall = Callable[[npt.NDArray[np.uint64], int], Awaitable[LiveAnswer]]


@dataclass(frozen=True, slots=True)
class ListsOptions:
    """What all asks of one batch share. log: journal the result (not a dry run)."""

    release: str
    policy: str
    explain: bool
    log: bool


@dataclass(slots=True)
class Lists:
    """Ranked lists, request by request, and what they were made with."""

    batch: Batch
    edition: Edition
    cold: npt.NDArray[np.bool_]


class _PopularOnly:
    """Stands in for a policy where retrieval fell back: popular items and the same filters."""

    def retrieval(self, surface: Surface, variant: int = 0) -> SurfaceRetrieval:  # noqa: ARG002 - the protocol's signature
        return _POPULAR


class Recommender:
    """Makes lists for micro-batches of asks on one surface."""

    def __init__(
        self,
        library: Library,
        stages: Stages,
        live: LiveCall,
        journal: JournalHost,
        pool: Executor,
        budgets: BudgetSettings,
        *,
        recents_kept: int,
        log_rate: float,
    ) -> None:
        self._library, self._stages, self._live, self._journal, self._pool = library, stages, live, journal, pool
        self._budgets = budgets
        self._recents_kept, self._log_rate = recents_kept, log_rate
        self._spare_s = _SPARE * budgets.request_ms / 1000

    async def lists(self, asks: Sequence[Ask], options: ListsOptions) -> Lists:
        """One list per ask. NotReady when live changes cannot be learned: nothing unverified is served."""
        edition, known = await self.admit(asks, options)
        batch = self.requests(asks, edition, known)
        pins = Pins(options.release, options.policy, edition.view.seq)
        return await self.listed(batch, pins, edition, options)

    async def admit(self, asks: Sequence[Ask], options: ListsOptions) -> tuple[Edition, Known]:
        """Check the head of the live changes, learn what is new, read the users' live facts."""
        observe("hindcast_batch_requests", len(asks), stage=asks[0].surface.name)
        live = await self._learned(users_of(asks))
        at_hand = int((np.diff(live.recents.offsets) > 0).sum())
        count("hindcast_users", at_hand, known="yes")
        count("hindcast_users", len(live.recents.offsets) - 1 - at_hand, known="no")
        edition = self._library.edition(Pins(options.release, options.policy, live.head))
        return edition, Known(live.recents, live.state)

    async def _learned(self, users: npt.NDArray[np.uint64]) -> LiveAnswer:
        """Live facts, whose changes are learned. NotReady where they do not come in time."""
        try:
            with timed("hindcast_stage_ms", stage="live"):
                async with within(self._budgets.live_ms / 1000):
                    live = await self._live(users, self._library.seq)
        except TimeoutError:
            raise NotReady("live catalogue changes could not be checked in time", field="availability") from None
        self._library.learn(live.changes)
        return live

    def requests(self, asks: Sequence[Ask], edition: Edition, known: Known, quality: float = 1.0) -> Batch:
        """Request columns of the asks. quality: see request_batch."""
        return request_batch(asks, edition, known, recents_kept=self._recents_kept, log_rate=self._log_rate, quality=quality)

    async def listed(self, batch: Batch, pins: Pins, edition: Edition, options: ListsOptions) -> Lists:
        """Candidates, popular items where retrieval fails or is late, and lists, retrieval's order where ranking does."""
        trip = ListTrip(batch, pins, options.explain, options.log)
        return await self._lists(await self._listed(trip, edition), batch.requests["cold"], pins)

    async def _listed(self, trip: ListTrip, edition: Edition) -> Batch:
        if not isinstance(self._stages, LocalStages) or not self._has_models(trip.batch, edition):
            call = trip.ranking(await self.retrieve(trip.batch, trip.pins, edition, trip.kinds))
            return await self._ranked(call, edition)
        try:
            return await self._stages.lists(trip, self._times())
        except (Exception, asyncio.CancelledError) as error:  # each stage has its one declared fall-back
            if called_off(error):
                raise
            return await self._instead(trip, edition, error)

    async def page(
        self, given: Batch, pins: Pins, edition: Edition, options: ListsOptions, fill: PageFill
    ) -> tuple[Lists, Lists | None, Shelves]:
        """What is `given` ranked, the lists of what is shown then (None: nothing is), and where they stand. Fall-backs as of
        `rank` and `listed`."""
        times = self._times()
        trip = PageTrip(RankCall(given, pins, options.explain, options.log), fill, times.wait_s)
        ranked, filled = await self._page(trip, times, edition)
        cold, shelves = given.requests["cold"], Shelves.of(ranked)
        page = await self._lists(ranked, cold, pins)
        return page, None if filled is None else await self._lists(filled, cold[shelves.page], pins), shelves

    async def _page(self, trip: PageTrip, times: TripTimes, edition: Edition) -> tuple[Batch, Batch | None]:
        if not self._has_models(trip.root.batch, edition) or Surface.gateway.name not in edition.held.heads:
            return await self._filled(trip, await self._ranked(trip.root, edition), edition)
        try:
            with timed("hindcast_stage_ms", stage="page"):
                return await self._stages.page(trip, times)
        except (Exception, asyncio.CancelledError) as error:  # each stage has its one declared fall-back
            if called_off(error):
                raise
            page, lists = trip.page, trip.lists  # as they are now: a thread that was overtaken may still change them
            if page is None:
                return await self._filled(trip, await self._unranked_instead(trip.root, edition, error), edition)
            if lists is None:
                return await self._filled(trip, page, edition)
            return page, await self._instead(lists, edition, error)

    async def _filled(self, trip: PageTrip, page: Batch, edition: Edition) -> tuple[Batch, Batch | None]:
        """A page whose root is ranked, and its lists, stage by stage."""
        lists = trip.asked_by(page, edition)
        return page, None if lists is None else await self._listed(lists, edition)

    def _times(self) -> TripTimes:
        budgets = self._budgets
        return TripTimes(budgets.retrieval_ms / 1000, budgets.ranking_ms / 1000, max(left_s() - self._spare_s, 0.0))

    async def _instead(self, trip: ListTrip, edition: Edition, error: BaseException) -> Batch:
        """The fall-back of the stage that a trip did not come to the end of."""
        if trip.call is not None:
            return await self._unranked_instead(trip.call, edition, error)
        return await self._ranked(trip.ranking(await self._popular_instead(trip.batch, edition, error)), edition)

    async def retrieve(self, batch: Batch, pins: Pins, edition: Edition, kinds: Sequence[str] | None = None) -> Batch:
        """Candidates; popular items by the same filters where retrieval fails or is late. kinds: see RetrievalHost."""
        try:
            with timed("hindcast_stage_ms", stage="retrieval"):
                async with within(self._budgets.retrieval_ms / 1000, spare_s=self._spare_s):
                    return await self._stages.retrieve(batch, pins, kinds)
        except (Exception, asyncio.CancelledError) as error:  # any failure of retrieval has the one declared fall-back
            if called_off(error):
                raise
            return await self._popular_instead(batch, edition, error)

    async def _popular_instead(self, batch: Batch, edition: Edition, error: BaseException) -> Batch:
        count("hindcast_degraded", stage="retrieval")
        _LOG.warning("retrieval fell back to popular items: %s: %s", type(error).__name__, error)
        return await in_pool(self._pool, lambda: _popular(batch, edition))

    async def rehearse_fall_backs(self, ask: Ask, pins: Pins, edition: Edition, known: Known) -> None:
        """Both fall-backs once, without a log: so that whoever needs them first does not wait for code to be loaded."""
        batch = self.requests([ask], edition, known)
        found = await in_pool(self._pool, lambda: _popular(batch, edition))
        call = RankCall(found, pins, explain=False, log=False)
        await in_pool(self._pool, lambda: self._unranked(call, edition, 0.0, late=False))

    async def rank(self, batch: Batch, pins: Pins, edition: Edition, options: ListsOptions) -> Lists:
        """Lists from candidates; retrieval's order where ranking fails or is late."""
        ranked = await self._ranked(RankCall(batch, pins, options.explain, options.log), edition)
        return await self._lists(ranked, batch.requests["cold"], pins)

    async def _lists(self, ranked: Batch, cold: npt.NDArray[np.bool_], pins: Pins) -> Lists:
        """NotReady where a stage knew catalogue changes that cannot be learned here in time."""
        seq = max(ranked.requests["availability_seq"].tolist(), default=pins.seq)
        if seq > self._library.seq:
            await self._learned(_NOBODY)
        if seq > self._library.seq:
            raise NotReady("a stage knows catalogue changes that this process has not seen yet", field="availability")
        newest = self._library.edition(Pins(pins.release, pins.policy, max(seq, pins.seq)))
        return Lists(ranked, newest, cold)

    @staticmethod
    def _has_models(batch: Batch, edition: Edition) -> bool:
        return all(Surface(one).name in edition.held.heads for one in set(batch.requests["surface"].tolist()))

    async def _ranked(self, call: RankCall, edition: Edition) -> Batch:
        if not self._has_models(call.batch, edition):  # the release declares that it has no model for this surface
            return await self._fall_back(call, edition, late=False)
        try:
            with timed("hindcast_stage_ms", stage="ranking"):
                async with within(self._budgets.ranking_ms / 1000, spare_s=self._spare_s):
                    return await self._stages.rank(call)
        except (Exception, asyncio.CancelledError) as error:  # any failure of ranking has the one declared fall-back
            if called_off(error):
                raise
            return await self._unranked_instead(call, edition, error)

    async def _unranked_instead(self, call: RankCall, edition: Edition, error: BaseException) -> Batch:
        count("hindcast_degraded", stage="ranking")
        _LOG.warning("ranking fell back to retrieval's order: %s: %s", type(error).__name__, error)
        return await self._fall_back(call, edition, late=True)

    async def _fall_back(self, call: RankCall, edition: Edition, *, late: bool) -> Batch:
        within_s = max(left_s() - self._spare_s / 2, 0.0)
        return await in_pool(self._pool, lambda: self._unranked(call, edition, within_s, late=late))

    def _unranked(self, call: RankCall, edition: Edition, within_s: float, *, late: bool) -> Batch:
        """Retrieval's order. Where ranking is late it goes out under fresh request ids: ranking may yet journal the old
        ones, which nobody will have seen."""
        batch = flagged(call.batch, StageBit.ranking)
        if call.log and late:
            requests = batch.requests.copy()
            requests["request_id"] = hash_key(_RETRY_SALT, batch.requests["request_id"])
            batch = Batch(requests, batch.candidates, batch.offsets, batch.meta)
        ranked = unranked(batch, call.page)
        if call.log and not self._journal.append(ranked, edition, within_s=within_s):
            ranked = flagged(ranked, StageBit.log)
        return ranked


def _popular(batch: Batch, edition: Edition) -> Batch:
    assert edition.held.retrieval is not None
    context = Context((_PopularOnly(),), edition.context.parts)
    return flagged(edition.held.retrieval.run(batch, context), StageBit.retrieval)
