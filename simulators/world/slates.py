"""Lists shown to the world's people: candidates scored, then drawn by the serving core's selector under a policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch, Ragged
from serve_app.stages.ranking.selector import SelectorInput, select
from serve_app.stages.ranking.settings import ListSettings
from serve_app.vocabulary import Origin, Source, Surface
from simulators.world.draws import logistic
from simulators.world.model import Model
from simulators.world.responses import cart_probability, examination, item_truth, widget_relevance
from simulators.world.scores import ITEM_HEADS, WIDGET_HEADS, item_scores, widget_scores
from simulators.world.settings import DAY_US
from simulators.world.state import WorldState

__all__ = ["Asked", "Slate", "item_slate", "request_columns", "slate_clicks", "widget_slate"]

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
I32 = npt.NDArray[np.int32]
_BOT_RELEVANCE = 0.4
_DEADLINE_US = 200_000


@dataclass(frozen=True, slots=True)
class Asked:
    """n requests of one surface on one day: user rows, instants, ids."""

    surface: Surface
    day: int
    user: I64
    at: I64
    request_id: U64
    root_id: U64


@dataclass(frozen=True, slots=True)
class Slate:
    """A finished batch with the truth beside it: `relevance` f64[m], the chance of a click once examined."""

    batch: Batch
    user: I64
    relevance: F64


def request_columns(model: Model, state: WorldState, asked: Asked, env_seq: int) -> dict[str, Any]:
    """Request columns that do not depend on the surface."""
    n, rows, place = len(asked.user), asked.user, state.place[asked.user]
    recents = state.recents[rows]
    seen = recents >= 0
    offsets = np.concatenate([[0], np.cumsum(seen.sum(axis=1))]).astype(np.int64)
    age = np.maximum(asked.at[:, None] - state.recents_at[rows], 0)[seen] / 1e6
    return {
        "request_id": asked.request_id,
        "root_id": asked.root_id,
        "parent_request_id": np.zeros(n, np.uint64),
        "attempt": np.zeros(n, np.int16),
        "surface": np.full(n, asked.surface, np.int8),
        "origin": np.full(n, Origin.client, np.int8),
        "trigger_event_id": np.zeros(n, np.uint64),
        "decided_at": asked.at,
        "deadline_at": asked.at + _DEADLINE_US,
        "env_seq": np.full(n, env_seq, np.int64),
        "availability_seq": np.full(n, env_seq, np.int64),
        "policy": np.zeros(n, np.int16),
        "user": model.population.user[rows],
        "user_row": rows.astype(np.int32),
        "zone": model.zones[place],
        "region": model.regions[place],
        "recents": Ragged(recents[seen], offsets),
        "recents_age_s": Ragged(age.astype(np.float32), offsets),
        "context_hour": model.clock.local_hour(place, asked.at),
        "context_device": model.population.device[rows],
        "cold": model.population.joined_at[rows] + DAY_US > asked.at,
        "degraded": np.zeros(n, np.uint8),
    }


def item_slate(
    model: Model,
    state: WorldState,
    lists: ListSettings,
    asked: Asked,
    env_seq: int,
    candidates: tuple[I32, npt.NDArray[np.uint32], I64],
    anchor: I32 | None = None,
) -> Slate:
    """Gateway or related items: score the candidates (items, sources, offsets) and draw the slots."""
    item, sources, offsets = candidates
    owner = np.repeat(np.arange(len(asked.user)), np.diff(offsets))
    rows = asked.user[owner]
    response = model.settings.response
    truth = item_truth(model.population, model.items, response, rows, item.astype(np.int64))
    cart = cart_probability(response, truth)
    heads = item_scores(response, model.draws, truth, cart, model.population.user[rows], model.items.item[item])
    category = model.categories[model.items.category[item]]
    columns = {"item": item, "sources": sources, "category": category}
    identity = model.items.item[item]
    batch = _drawn(model, state, lists, asked, env_seq, (offsets, identity, category), columns, heads, ITEM_HEADS, anchor)
    relevance = np.where(model.population.bot[rows], _BOT_RELEVANCE, truth.relevance)
    return Slate(batch, asked.user, relevance)


def widget_slate(model: Model, state: WorldState, lists: ListSettings, asked: Asked, env_seq: int) -> Slate:
    """The order of the page's rows: every widget is a candidate."""
    n, width = len(asked.user), len(model.widgets)
    widget = np.tile(np.arange(width, dtype=np.int32), n)
    rows = np.repeat(asked.user, width)
    logit = widget_relevance(model.population, model.widgets, model.settings.response, rows, widget.astype(np.int64))
    identity = model.widgets.widget[widget]
    heads = widget_scores(model.settings.response, model.draws, logit, model.population.user[rows], identity)
    offsets = np.arange(n + 1, dtype=np.int64) * width
    columns = {"widget": widget, "sources": np.full(n * width, Source.given, np.uint32)}
    none = np.zeros(n * width, np.uint64)
    batch = _drawn(model, state, lists, asked, env_seq, (offsets, identity, none), columns, heads, WIDGET_HEADS, None)
    return Slate(batch, asked.user, np.where(model.population.bot[rows], _BOT_RELEVANCE, logistic(logit)))


def _drawn(
    model: Model,
    state: WorldState,
    lists: ListSettings,
    asked: Asked,
    env_seq: int,
    keys: tuple[I64, U64, U64],
    columns: dict[str, Any],
    heads: npt.NDArray[np.float32],
    names: tuple[str, ...],
    anchor: I32 | None,
) -> Batch:
    """The batch with heads, value, slot and p_slot set by the core. keys: offsets, identity, category."""
    offsets, identity, category = keys
    n = len(asked.user)
    slots = np.minimum(np.diff(offsets), model.settings.slate_slots).astype(np.int32)
    value = weighted_sum(heads, names, lists)
    given = SelectorInput(
        offsets=offsets,
        request_id=asked.request_id,
        slots=slots,
        setting=np.zeros(n, np.int32),
        identity=identity,
        category=category,
        value=value,
        allowed=np.ones(len(value), np.bool_),
    )
    chosen = select(given, [lists])
    requests = request_columns(model, state, asked, env_seq) | {
        "width": np.full(n, model.settings.slate_candidates, np.int32),
        "slots": slots,
        "log_rate": np.full(n, model.settings.slate_log_rate),
    }
    if anchor is not None:
        requests["anchor"] = anchor
    batch = Batch.of_requests(**requests)
    batch = batch.with_candidates(offsets, **columns, heads=heads, value=value, slot=chosen.slot, p_slot=chosen.p_slot)
    batch.meta["heads"] = names
    return batch


def slate_clicks(model: Model, slate: Slate, day: int) -> I64:
    """Candidate positions clicked: the slot is examined and the candidate relevant (position-based model). Noise is keyed by
    (user, day, surface, slot) and (user, day, surface, candidate), so another order of the same list meets the same."""
    cand = slate.batch.candidates
    shown = np.flatnonzero(cand["slot"] >= 0)
    owner = slate.batch.owner[shown]
    who, surface = slate.batch.requests["user"][owner], slate.batch.requests["surface"][owner]
    thing = (cand["item"] if "item" in cand else cand["widget"])[shown]
    look = model.draws.uniform("slate.look", who, day, surface, cand["slot"][shown])
    like = model.draws.uniform("slate.like", who, day, surface, thing)
    examined = look < examination(cand["slot"][shown], model.settings.response)
    clicked: I64 = shown[examined & (like < slate.relevance[shown])]
    return clicked


def weighted_sum(heads: npt.NDArray[np.float32], names: tuple[str, ...], lists: ListSettings) -> F64:
    """f64[m]: sum of weight * head in the order of `names`; elementwise, so the bits do not depend on m."""
    weights = dict(lists.weights)
    value = np.zeros(len(heads))
    for column, name in enumerate(names):
        value = value + weights.get(name, 0.0) * heads[:, column].astype(np.float64)
    return value
