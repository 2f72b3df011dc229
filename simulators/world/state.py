"""What changes in a user over time, and how: fatigue, engagement, satiation, recent items. No policy, no clock, no I/O."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from simulators.world.population import Population
from simulators.world.settings import ResponseSettings

__all__ = [
    "RECENTS",
    "WorldState",
    "age_a_day",
    "initial_state",
    "note_clicks",
    "note_opt_outs",
    "note_orders",
    "note_sends",
    "note_views",
]

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

RECENTS = 8


@dataclass(frozen=True, slots=True)
class WorldState:
    """State of n users. Latent: fatigue (grows with sends), engagement (grows with clicks on them), satiation (grows with
    orders), all f64[n]. Known to the shop: place, consents, channel bits, recent items (i32[n, RECENTS], -1 padded on the
    left, newest last) with their times. Functions below return a new state and leave the old one alone."""

    fatigue: F64
    engagement: F64
    satiation: F64
    place: npt.NDArray[np.int16]
    consent_ad_at: I64
    consent_night_at: I64
    opted_out: npt.NDArray[np.uint16]
    recents: npt.NDArray[np.int32]
    recents_at: I64


def initial_state(population: Population) -> WorldState:
    """Before the first day."""
    n = len(population)
    return WorldState(
        np.zeros(n),
        np.zeros(n),
        np.zeros(n),
        population.place.copy(),
        population.consent_ad_at.copy(),
        population.consent_night_at.copy(),
        population.opted_out.copy(),
        np.full((n, RECENTS), -1, np.int32),
        np.zeros((n, RECENTS), np.int64),
    )


def age_a_day(state: WorldState, response: ResponseSettings) -> WorldState:
    """Half-lives at work for one day."""
    return replace(
        state,
        fatigue=state.fatigue * 0.5 ** (1 / response.fatigue_half_life_days),
        engagement=state.engagement * 0.5 ** (1 / response.engagement_half_life_days),
        satiation=state.satiation * 0.5 ** (1 / response.satiation_half_life_days),
    )


def note_sends(state: WorldState, response: ResponseSettings, rows: I64, message_class: npt.NDArray[np.int8]) -> WorldState:
    """Fatigue after sends to `rows` (may repeat), by message class."""
    gain = np.asarray(response.fatigue_per_send)[message_class]
    return replace(state, fatigue=_added(state.fatigue, rows, gain))


def note_clicks(state: WorldState, response: ResponseSettings, rows: I64) -> WorldState:
    """Engagement after clicks on notifications."""
    return replace(state, engagement=_added(state.engagement, rows, np.full(len(rows), response.engagement_per_click)))


def note_orders(state: WorldState, response: ResponseSettings, rows: I64) -> WorldState:
    """Satiation after orders: whoever just bought buys less for a while, so a conversion may only be one moved forward."""
    return replace(state, satiation=_added(state.satiation, rows, np.full(len(rows), response.satiation_per_order)))


def note_views(state: WorldState, rows: I64, items: npt.NDArray[np.int32], at: I64) -> WorldState:
    """Recent items after views; views of one user must stand in order of time. Rows may repeat."""
    recents, recents_at = state.recents.copy(), state.recents_at.copy()
    rank_from_end = _rank_from_end(rows)
    keep = rank_from_end < RECENTS
    users, counts = np.unique(rows[keep], return_counts=True)
    shift = np.zeros(len(recents), np.int64)
    shift[users] = counts
    source = np.minimum(np.arange(RECENTS)[None, :] + shift[users, None], RECENTS - 1)
    recents[users] = np.take_along_axis(recents[users], source, axis=1)
    recents_at[users] = np.take_along_axis(recents_at[users], source, axis=1)
    recents[rows[keep], RECENTS - 1 - rank_from_end[keep]] = items[keep]
    recents_at[rows[keep], RECENTS - 1 - rank_from_end[keep]] = at[keep]
    return replace(state, recents=recents, recents_at=recents_at)


def _rank_from_end(rows: I64) -> I64:
    """How many later entries of the same user follow each entry. Order within a user is kept."""
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    last = np.searchsorted(ordered, ordered, side="right") - 1
    rank = np.empty(len(rows), np.int64)
    rank[order] = last - np.arange(len(rows))
    return rank


def _added(values: F64, rows: I64, gain: F64) -> F64:
    out = values.copy()
    np.add.at(out, rows, gain)
    return out


def note_opt_outs(state: WorldState, rows: I64, channel: npt.NDArray[np.int8]) -> WorldState:
    """Channels switched off by `rows` (may repeat)."""
    opted_out = state.opted_out.copy()
    np.bitwise_or.at(opted_out, rows, np.left_shift(np.uint16(1), channel.astype(np.uint16)))
    return replace(state, opted_out=opted_out)
