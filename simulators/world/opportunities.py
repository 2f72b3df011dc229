"""Occasions to send: campaign audiences, messages that an order or a restock triggers, deferrals that come due."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from serve_app.vocabulary import Origin
from simulators.world.model import Model
from simulators.world.settings import DAY_US, HOUR_US, SECOND_US
from simulators.world.state import WorldState

__all__ = ["OPPORTUNITY", "WIDTH", "audience", "opportunities", "order_messages", "reminders", "second_chances"]

I64 = npt.NDArray[np.int64]
Rows = npt.NDArray[np.void]

WIDTH = 4  # candidates (campaign, channel) at most
# One request for a send decision. user: row. campaign, channel: -1 where there is no candidate.
OPPORTUNITY = np.dtype(
    [
        ("at", "i8"),
        ("request_id", "u8"),
        ("root_id", "u8"),
        ("parent_id", "u8"),
        ("trigger", "u8"),
        ("user", "i4"),
        ("attempt", "i2"),
        ("origin", "i1"),
        ("campaign", "i2", (WIDTH,)),
        ("channel", "i1", (WIDTH,)),
    ]
)


def opportunities(rows: int) -> Rows:
    """`rows` empty requests."""
    out = np.zeros(rows, OPPORTUNITY)
    out["campaign"], out["channel"] = -1, -1
    return out


def audience(model: Model, state: WorldState, day: int) -> Rows:
    """One request a day for `audience_rate` of the users: three running campaigns, the first of them on two channels.

    Four in five come at about the hour the user is awake and shopping, the others at any hour, night included."""
    settings, draws, people = model.settings, model.draws, model.population
    start = settings.start_us + day * DAY_US
    running = model.campaigns.running(start + DAY_US // 2)
    running = running[running >= 4]  # the first four are triggered, never broadcast
    asked = draws.uniform("audience.asked", people.user, day) < settings.audience_rate
    rows = np.flatnonzero((people.joined_day < day) & asked)
    if len(running) == 0 or len(rows) == 0:
        return opportunities(0)
    who = people.user[rows]
    awake = np.clip(people.hour[rows] - 2 + 2.0 * draws.normal("audience.hour", who, day), 8.5, 20.5)
    any_hour = 24 * draws.uniform("audience.any_hour", who, day)
    hour = np.where(draws.uniform("audience.when", who, day) < 0.8, awake, any_hour)
    out = opportunities(len(rows))
    out["user"], out["origin"] = rows, Origin.audience
    out["at"] = model.clock.at_local_hour(state.place[rows], start, hour)
    out["request_id"] = out["root_id"] = draws.bits("request.audience", who, day)
    picks = _three_of(len(running), draws.bits("audience.campaigns", who, day))
    out["campaign"][:, :3] = running[picks]
    out["campaign"][:, 3] = out["campaign"][:, 0]
    out["channel"] = _channels(model, out, day)
    return _without_repeats(out)


def _three_of(count: int, bits: npt.NDArray[np.uint64]) -> I64:
    """i64[n, 3]: a random start and two random steps round a circle of `count`."""
    first = bits % np.uint64(count)
    step = np.uint64(1) + (bits >> np.uint64(16)) % np.uint64(max(count - 1, 1))
    second = (first + step) % np.uint64(count)
    more = np.uint64(1) + (bits >> np.uint64(32)) % np.uint64(max(count - 1, 1))
    third = (first + more) % np.uint64(count)
    return np.stack([first, second, third], axis=1).astype(np.int64)


def _channels(model: Model, out: Rows, day: int) -> npt.NDArray[np.int8]:
    """A channel of each campaign; the fourth candidate takes the next one of the first's."""
    who = model.population.user[out["user"]][:, None]
    pick = model.draws.below("audience.channel", 3, who, day, np.arange(3)[None, :])
    pick = np.concatenate([pick, pick[:, :1] + 1], axis=1) % 3
    table = model.campaigns.channel_table[np.maximum(out["campaign"], 0)]
    chosen: npt.NDArray[np.int8] = np.take_along_axis(table, pick[:, :, None], axis=2)[:, :, 0]
    return chosen


def _without_repeats(out: Rows) -> Rows:
    """Drop a candidate that repeats an earlier one of its request; move the others to the front."""
    key = out["campaign"].astype(np.int64) * 16 + out["channel"]
    for late in range(1, WIDTH):
        for early in range(late):
            repeat = (key[:, late] == key[:, early]) & (out["campaign"][:, late] >= 0)
            out["campaign"][repeat, late] = -1
    order = np.argsort(out["campaign"] < 0, axis=1, kind="stable")
    out["campaign"] = np.take_along_axis(out["campaign"], order, axis=1)
    out["channel"] = np.take_along_axis(out["channel"], order, axis=1)
    return out


def order_messages(model: Model, orders: Rows, event_id: npt.NDArray[np.uint64]) -> Rows:
    """Transactional messages after conversion events: the receipt at once, "shipped" about twenty hours later."""
    draws, who = model.draws, model.population.user[orders["user"]]
    receipt = _triggered(model, orders["user"], orders["ts"] + 5 * SECOND_US, event_id, 0)
    hours = (16 + 8 * draws.uniform("message.shipped", who, event_id)) * HOUR_US
    shipped = _triggered(model, orders["user"], orders["ts"] + hours.astype(np.int64), event_id, 1)
    return np.concatenate([receipt, shipped])


def reminders(model: Model, state: WorldState, day: int) -> Rows:
    """Informational messages: back in stock for those who looked at the item, expiring points for one user in a hundred."""
    people, start = model.population, model.settings.start_us + day * DAY_US
    back = np.append(model.items.restock_day == day, False)  # the last entry answers for "no item"
    waiting = np.flatnonzero(back[state.recents].any(axis=1) & (people.joined_day < day))
    points = (model.draws.uniform("message.points", people.user, day) < 0.01) & (people.joined_day < day)
    parts = []
    for rows, campaign in ((waiting, 2), (np.flatnonzero(points), 3)):
        hour = 9 + 11 * model.draws.uniform("message.hour", people.user[rows], day, campaign)
        at = model.clock.at_local_hour(state.place[rows], start, hour)
        trigger = np.zeros(len(rows), np.uint64)
        parts.append(_triggered(model, rows, at, trigger, campaign, day))
    return np.concatenate(parts)


def _triggered(model: Model, user: I64, at: I64, trigger: npt.NDArray[np.uint64], campaign: int, day: int = 0) -> Rows:
    """One candidate per channel of `campaign`."""
    out = opportunities(len(user))
    out["user"], out["at"], out["trigger"], out["origin"] = user, at, trigger, Origin.client
    ids = model.draws.bits("request.triggered", model.population.user[user], trigger, campaign, day)
    out["request_id"] = out["root_id"] = ids
    for column, channel in enumerate(model.campaigns.channels[campaign][:WIDTH]):
        out["campaign"][:, column], out["channel"][:, column] = campaign, int(channel)
    return out


def second_chances(model: Model, deferred: Rows, until: I64) -> Rows:
    """The requests that come of deferrals: same candidates, one attempt later, at `until`."""
    out = deferred.copy()
    out["parent_id"], out["at"], out["origin"] = deferred["request_id"], until, Origin.deferral
    out["attempt"] = deferred["attempt"] + 1
    out["request_id"] = model.draws.bits("request.deferral", deferred["root_id"], out["attempt"])
    return out
