"""What happens in people's lives whatever the shop does: consents given and withdrawn, channels switched on again, moves."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from serve_app.vocabulary import Channel, EventType
from simulators.world.happenings import happenings
from simulators.world.model import Model
from simulators.world.places import PLACES
from simulators.world.settings import DAY_US
from simulators.world.state import WorldState

__all__ = ["NOTES", "Upheaval", "upheave"]

I64 = npt.NDArray[np.int64]

_GIVES_AD, _WITHDRAWS_AD, _GIVES_NIGHT, _OPTS_IN, _MOVES = 0.003, 0.0005, 0.001, 0.01, 0.0008
# Texts of the events' `attributes`; HAPPENING.note indexes them.
NOTES = (
    json.dumps({"consent": "advertising", "given": True}),
    json.dumps({"consent": "advertising", "given": False}),
    json.dumps({"consent": "night", "given": True}),
    *(json.dumps({"zone": place.zone, "region": place.region}) for place in PLACES),
)


@dataclass(frozen=True, slots=True)
class Upheaval:
    """State after the day's changes, rows of the users whose ledger state changed, and the events that tell of it."""

    state: WorldState
    changed: I64
    events: list[npt.NDArray[np.void]]


def upheave(model: Model, state: WorldState, day: int) -> Upheaval:
    """All changes happen at the start of the day (UTC)."""
    at = model.settings.start_us + day * DAY_US + 1
    here = model.population.joined_day < day
    who = model.population.user
    draw = {name: model.draws.uniform(f"life.{name}", who, day) for name in ("ad", "night", "opt_in", "move")}
    gives = here & (state.consent_ad_at == 0) & (draw["ad"] < _GIVES_AD)
    takes = here & (state.consent_ad_at > 0) & (draw["ad"] < _WITHDRAWS_AD)
    night = here & (state.consent_night_at == 0) & (state.consent_ad_at > 0) & ~takes & (draw["night"] < _GIVES_NIGHT)
    back = here & (state.opted_out != 0) & (draw["opt_in"] < _OPTS_IN)
    moves = here & (draw["move"] < _MOVES)
    place = np.where(moves, model.draws.below("life.place", len(PLACES), model.population.user, day), state.place)
    place = place.astype(np.int16)
    moves &= place != state.place
    after = replace(
        state,
        consent_ad_at=np.where(gives, at, np.where(takes, 0, state.consent_ad_at)),
        consent_night_at=np.where(night, at, np.where(takes, 0, state.consent_night_at)),
        opted_out=np.where(back, 0, state.opted_out).astype(np.uint16),
        place=place,
    )
    events = [_consent(rows, at, note) for note, rows in enumerate((gives, takes, night))]
    for channel in Channel:
        had = back & (state.opted_out >> np.uint16(channel) & np.uint16(1) != 0)
        rows = np.flatnonzero(had)
        events.append(happenings(len(rows), type=EventType.opt_in, user=rows, ts=at, channel=int(channel)))
    moved = np.flatnonzero(moves)
    events.append(happenings(len(moved), type=EventType.zone, user=moved, ts=at, note=3 + place[moved]))
    return Upheaval(after, np.flatnonzero(gives | takes | night | back | moves), events)


def _consent(rows: npt.NDArray[np.bool_], at: int, note: int) -> npt.NDArray[np.void]:
    found = np.flatnonzero(rows)
    return happenings(len(found), type=EventType.consent, user=found, ts=at, note=note)
