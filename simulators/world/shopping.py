"""A day of shopping: sessions, the lists they are shown, clicks, carts, orders. Uses no send and makes none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from serve_app.stages.ranking.settings import ListSettings
from serve_app.vocabulary import EventType, Surface
from simulators.world.browsing import (
    Sessions,
    Views,
    gateway_candidates,
    open_sessions,
    organic_views,
    related_candidates,
)
from simulators.world.happenings import happenings
from simulators.world.items import ItemPopularity
from simulators.world.model import Model
from simulators.world.responses import activity_probability, cart_probability, item_truth, order_probability
from simulators.world.settings import DAY_US, SECOND_US
from simulators.world.slates import Asked, Slate, item_slate, slate_clicks, widget_slate
from simulators.world.state import WorldState

__all__ = ["Shopping", "Touches", "buy", "shop"]

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
U64 = npt.NDArray[np.uint64]

_GATEWAY_SHARE = 0.75
_RELATED_SHARE = 0.6


@dataclass(frozen=True, slots=True)
class Touches:
    """Items a user looks at, with what led there: request and slot of a list, or 0 and -1."""

    user: I64
    item: I32
    at: I64
    session: U64
    request_id: U64
    slot: I32
    campaign: I32


@dataclass(slots=True)
class Shopping:
    """What a day of shopping leaves: slates with their truth, events, orders (HAPPENING rows of type conversion)."""

    slates: list[Slate] = field(default_factory=list)
    events: list[npt.NDArray[np.void]] = field(default_factory=list)
    p_active: F64 = field(default_factory=lambda: np.zeros(0))


def shop(model: Model, state: WorldState, lists: Mapping[Surface, ListSettings], day: int, env_seq: int) -> Shopping:
    """Everyone's day, from the state at its start."""
    out = Shopping(p_active=_activity(model, state, day))
    popular = ItemPopularity(model.items, model.items.demand(day))
    sessions = open_sessions(model.settings, model.draws, model.population, model.clock, state, day, out.p_active)
    views = organic_views(model.draws, model.population, model.items, popular, model.taste, sessions, day)
    touched = [_organic(sessions, views)]
    at_gateway = np.flatnonzero(_drawn(model, sessions, day, "session.gateway") < _GATEWAY_SHARE)
    touched += _gateway(model, state, lists, sessions, at_gateway, popular, day, env_seq, out)
    touched += _related(model, state, lists, _anchors(touched), popular, day, env_seq, out)
    for one in touched:
        out.events.append(_views(one))
        out.events += buy(model, state, one, day)
    return out


def _activity(model: Model, state: WorldState, day: int) -> F64:
    start = model.settings.start_us + day * DAY_US
    noon = np.full(len(model.population), start + DAY_US // 2, np.int64)
    local_day = (noon + model.clock.offset_us(state.place, noon)) // DAY_US
    weekend = (local_day + 3) % 7 >= 5  # 1970-01-01 was a Thursday
    return activity_probability(model.population, state, model.settings.response, weekend)


def _drawn(model: Model, sessions: Sessions, day: int, purpose: str) -> F64:
    return model.draws.uniform(purpose, model.population.user[sessions.user], day)


def _organic(sessions: Sessions, views: Views) -> Touches:
    n = len(views.owner)
    none = np.zeros(n, np.uint64), np.full(n, -1, np.int32), np.full(n, -1, np.int32)
    return Touches(sessions.user[views.owner], views.item, views.at, sessions.session[views.owner], *none)


def _ask(model: Model, surface: Surface, user: I64, at: I64, day: int, root: U64 | None = None) -> Asked:
    """Requests of one surface; one a user and day, so (user, day, surface) makes the id."""
    ids = model.draws.bits("request.id", model.population.user[user], day, int(surface))
    return Asked(surface, day, user, at, ids, ids if root is None else root)


def _gateway(
    model: Model,
    state: WorldState,
    lists: Mapping[Surface, ListSettings],
    sessions: Sessions,
    rows: I64,
    popular: ItemPopularity,
    day: int,
    env_seq: int,
    out: Shopping,
) -> list[Touches]:
    """The page: the order of its rows, and a list of items under one root id."""
    user, at, session = sessions.user[rows], sessions.at[rows], sessions.session[rows]
    page = _ask(model, Surface.widgets, user, at, day)
    widgets = widget_slate(model, state, lists[Surface.widgets], page, env_seq)
    width = model.settings.slate_candidates
    found = gateway_candidates(model.draws, model.population, model.items, popular, model.taste, state, user, day, width)
    asked = _ask(model, Surface.gateway, user, at + 1, day, page.root_id)
    items = item_slate(model, state, lists[Surface.gateway], asked, env_seq, found)
    out.slates += [widgets, items]
    out.events.append(_clicks(widgets, slate_clicks(model, widgets, day), session, 3 * SECOND_US))
    clicked = slate_clicks(model, items, day)
    out.events.append(_clicks(items, clicked, session, 6 * SECOND_US))
    return [_followed(items, clicked, session)]


def _anchors(touched: list[Touches]) -> Touches:
    """The first touch of each user, clicks on the gateway before organic views."""
    user = np.concatenate([one.user for one in reversed(touched)])
    _, first = np.unique(user, return_index=True)
    names = Touches.__dataclass_fields__
    every = {name: np.concatenate([getattr(one, name) for one in reversed(touched)])[first] for name in names}
    return Touches(**every)


def _related(
    model: Model,
    state: WorldState,
    lists: Mapping[Surface, ListSettings],
    anchors: Touches,
    popular: ItemPopularity,
    day: int,
    env_seq: int,
    out: Shopping,
) -> list[Touches]:
    """Related products on some of the product pages."""
    who = model.population.user[anchors.user]
    rows = np.flatnonzero(model.draws.uniform("session.related", who, day) < _RELATED_SHARE)
    user, anchor = anchors.user[rows], anchors.item[rows]
    asked = _ask(model, Surface.related, user, anchors.at[rows] + SECOND_US, day)
    width = model.settings.slate_candidates
    found = related_candidates(model.draws, model.population, model.items, popular, user, anchor, day, width)
    slate = item_slate(model, state, lists[Surface.related], asked, env_seq, found, anchor)
    out.slates.append(slate)
    clicked = slate_clicks(model, slate, day)
    session = anchors.session[rows]
    out.events.append(_clicks(slate, clicked, session, 5 * SECOND_US))
    return [_followed(slate, clicked, session)]


def _click_at(slate: Slate, clicked: I64, pace_us: int) -> I64:
    slot = slate.batch.candidates["slot"][clicked].astype(np.int64)
    at: I64 = slate.batch.requests["decided_at"][slate.batch.owner[clicked]] + (slot + 1) * pace_us
    return at


def _clicks(slate: Slate, clicked: I64, session: U64, pace_us: int) -> npt.NDArray[np.void]:
    owner, cand = slate.batch.owner[clicked], slate.batch.candidates
    return happenings(
        len(clicked),
        type=EventType.click,
        user=slate.user[owner],
        ts=_click_at(slate, clicked, pace_us),
        request_id=slate.batch.requests["request_id"][owner],
        slot=cand["slot"][clicked],
        item=cand["item"][clicked] if "item" in cand else -1,
        session=session[owner],
    )


def _followed(slate: Slate, clicked: I64, session: U64) -> Touches:
    """The product page a click leads to, opened a second later."""
    owner, cand = slate.batch.owner[clicked], slate.batch.candidates
    at = _click_at(slate, clicked, 6 * SECOND_US) + SECOND_US
    ids, slot = slate.batch.requests["request_id"][owner], cand["slot"][clicked]
    return Touches(
        slate.user[owner], cand["item"][clicked], at, session[owner], ids, slot, np.full(len(owner), -1, np.int32)
    )


def _views(touched: Touches) -> npt.NDArray[np.void]:
    return happenings(
        len(touched.user),
        type=EventType.view,
        user=touched.user,
        ts=touched.at,
        item=touched.item,
        session=touched.session,
        request_id=touched.request_id,
        slot=touched.slot,
    )


def buy(model: Model, state: WorldState, touched: Touches, day: int) -> list[npt.NDArray[np.void]]:
    """[add_to_cart, conversion] events after product pages; they carry the decision that led there. Bots buy nothing."""
    response, who = model.settings.response, model.population.user[touched.user]
    truth = item_truth(model.population, model.items, response, touched.user, touched.item.astype(np.int64))
    p_cart = np.where(model.population.bot[touched.user], 0.0, cart_probability(response, truth))
    rows = np.flatnonzero(model.draws.uniform("shop.cart", who, day, touched.item) < p_cart)
    p_order = order_probability(model.population, state, response, touched.user[rows])
    ordered = rows[model.draws.uniform("shop.order", who[rows], day, touched.item[rows]) < p_order]
    cart = _bought(model, touched, rows, day, EventType.add_to_cart, 20 * SECOND_US)
    return [cart, _bought(model, touched, ordered, day, EventType.conversion, 400 * SECOND_US)]


def _bought(model: Model, touched: Touches, rows: I64, day: int, kind: EventType, later_us: int) -> npt.NDArray[np.void]:
    item, user = touched.item[rows], touched.user[rows]
    pieces = 1 + (model.draws.uniform("shop.pieces", model.population.user[user], day, item) < 0.12).astype(np.int32)
    return happenings(
        len(rows),
        type=kind,
        user=user,
        ts=touched.at[rows] + later_us,
        item=item,
        session=touched.session[rows],
        request_id=touched.request_id[rows],
        slot=touched.slot[rows],
        campaign=touched.campaign[rows],
        quantity=pieces,
        amount=model.items.price[item] * pieces,
    )
