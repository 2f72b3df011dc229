"""Before the first request: one of each kind through every stage, so that nobody waits for code to be compiled or mapped."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import numpy as np

from serve_app.clock import monotonic_s, now_us
from serve_app.errors import LedgerUnavailable
from serve_app.ingress.asked import AskedRows
from serve_app.ingress.asks import Ask, Known
from serve_app.ingress.decisions import Asking, prepare_decisions
from serve_app.ingress.recommend import LiveCall, Recommender
from serve_app.ingress.schemas_notify import DecideRow
from serve_app.serving.deciding import DecideCall, Decided
from serve_app.serving.editions import OwnerCall, catch_up
from serve_app.serving.given import KIND_SOURCES, given_reviews, given_widgets
from serve_app.serving.hosts import RankCall
from serve_app.serving.library import Edition, Library, Pins
from serve_app.serving.list_requests import PageFill
from serve_app.serving.owner import LiveAnswer
from serve_app.serving.stages import Stages
from serve_app.serving.trips import PageTrip, TripTimes
from serve_app.vocabulary import Surface

__all__ = ["warm_decisions", "warm_up"]

_LOG = logging.getLogger("hindcast.ingress")
_AGAIN_S = 0.2
_LIMIT_S = 300.0  # kernels may have to be compiled; a stage that hangs must not keep an ingress from starting
_NO_HURRY = TripTimes(retrieval_s=_LIMIT_S, ranking_s=_LIMIT_S, latest_s=_LIMIT_S)


async def warm_up(library: Library, stages: Stages, recommender: Recommender, live: LiveCall, call: OwnerCall) -> None:
    """Run dry requests with time for compiling. A surface that fails here is logged; it would fall back in service, too."""
    answer = await _first(library, live, call)
    library.learn(answer.changes)
    pins = Pins(library.releases.current, library.policies.current, library.seq)
    edition, known = library.edition(pins), Known(answer.recents, answer.state)
    for surface in (Surface.related, Surface.gateway, Surface.widgets, Surface.reviews):
        try:
            async with asyncio.timeout(_LIMIT_S):
                await _list(surface, pins, edition, known, stages, recommender)
        except Exception as error:  # noqa: BLE001 - a stage that fails or hangs has its fall-back, here as in service
            _LOG.warning("surface %s cannot be warmed up: %s: %s", surface.name, type(error).__name__, error)
    await warm_decisions(pins, edition, stages.decide)


async def _first(library: Library, live: LiveCall, call: OwnerCall) -> LiveAnswer:
    """The first answer of the state's owner, which may be starting or compiling itself; what it said before is learned."""
    ends_s = monotonic_s() + _LIMIT_S
    while True:
        try:
            await catch_up(library, call)
            return await live(np.zeros(1, np.uint64), library.seq)
        except LedgerUnavailable as error:
            if monotonic_s() > ends_s:
                raise
            _LOG.warning("the state's owner does not answer yet: %s", error)
            await asyncio.sleep(_AGAIN_S)


async def _list(
    surface: Surface, pins: Pins, edition: Edition, known: Known, stages: Stages, recommender: Recommender
) -> None:
    rows, now = edition.release.catalogue, now_us()
    anchor = rows.items["item_id"][0].as_py() if len(rows.items) else None
    user = rows.users["user_id"][0].as_py() if len(rows.users) else None
    ask = Ask(surface=surface, request_id=1, decided_at=now, deadline_at=now, user=user, anchor=anchor, slots=5)
    if surface is Surface.related:
        await recommender.rehearse_fall_backs(ask, pins, edition, known)
    batch = recommender.requests([ask], edition, known)
    if surface is Surface.widgets:
        found = given_widgets(batch, rows, edition.view.overlay, [None])
    elif surface is Surface.reviews:
        found = given_reviews(batch, rows, [None])
    else:
        kinds = list(KIND_SOURCES) if surface is Surface.gateway else [None]
        for kind in kinds:
            found = await stages.retrieve(batch, pins, None if kind is None else [kind])
    if surface.name not in edition.held.heads:
        return
    await stages.rank(RankCall(found, pins, explain=False, log=False, page=np.zeros(1, np.int32)))
    if surface is Surface.widgets and Surface.gateway.name in edition.held.heads:
        fill = PageFill(np.full(1, 5, np.int32), [()], 1.0)
        await stages.page(PageTrip(RankCall(found, pins, explain=False, log=False), fill), _NO_HURRY)


async def warm_decisions(pins: Pins, edition: Edition, decide: Callable[[DecideCall], Awaitable[Decided]]) -> None:
    """One dry decision over every live campaign. Logged where it fails: the first callers then wait a little longer."""
    now = now_us()
    rows = AskedRows.of_models([DecideRow(user="\0nobody")])
    asking = Asking(rows, np.ones(1, np.uint64), np.array([now]), np.array([now]), ["warm-up"])
    prepared = prepare_decisions(asking, edition)
    if prepared.batch is not None:
        try:
            async with asyncio.timeout(_LIMIT_S):
                await decide(DecideCall(prepared.batch, pins, None, None, commit=False, explain=False))
        except Exception as error:  # noqa: BLE001 - it fails closed in service, too
            _LOG.warning("decisions cannot be warmed up: %s: %s", type(error).__name__, error)
