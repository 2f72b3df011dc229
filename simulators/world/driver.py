"""The closed loop: days in which a policy acts on the world's people and the people answer.

The people (`population`, `state`, `responses`, `browsing`) know nothing of policies, and every send is decided by the
serving core. `World(settings).run(policy)` yields one `Day` after the other: `hindcast world` writes them as a log, a
simulation adds up what it needs from them. Any compiled policy will do, and all of them meet the same noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from serve_app.ledger.memory import MemoryLedger
from serve_app.ledger.protocol import LedgerSettings
from serve_app.policy.compile import CompiledPolicy, compile_policy
from serve_app.policy.document import PolicyDocument
from serve_app.vocabulary import EventType, Surface
from simulators.world.environment import Environment, environment_of
from simulators.world.happenings import HAPPENING, event_ids, happenings, joined
from simulators.world.items import ItemPopularity
from simulators.world.model import Model, build_model
from simulators.world.opportunities import OPPORTUNITY, audience, order_messages, reminders, second_chances
from simulators.world.scores import HEADS
from simulators.world.sends import Core, Decided, Reaction, decide_sends, ledger_state, react
from simulators.world.settings import DAY_US, MINUTE_US, SECOND_US, WorldSettings
from simulators.world.shopping import shop
from simulators.world.slates import Slate
from simulators.world.state import (
    WorldState,
    age_a_day,
    initial_state,
    note_clicks,
    note_opt_outs,
    note_orders,
    note_sends,
    note_views,
)
from simulators.world.upheaval import upheave

__all__ = ["Day", "Run", "World", "world_policy"]

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Rows = npt.NDArray[np.void]

_PASSES = 4  # a deferral may end within the step of time that made it; so often it is decided within that step


def world_policy(document: PolicyDocument) -> CompiledPolicy:
    """The document compiled for the heads the world's scoring model provides."""
    return compile_policy(document, heads=HEADS)


@dataclass(slots=True)
class Day:
    """What one day left. slates and decided hold finished batches with their truth; events are HAPPENING rows ordered by
    user and time, some of them after midnight; p_active f64[n] is each user's true chance to have opened the app."""

    day: int
    env_seq: int
    slates: list[Slate] = field(default_factory=list)
    decided: list[Decided] = field(default_factory=list)
    events: Rows = field(default_factory=lambda: np.empty(0, HAPPENING))
    p_active: F64 = field(default_factory=lambda: np.zeros(0))


class World:
    """Users, items and campaigns of one seed. `run` may be called any number of times; runs share nothing but noise."""

    def __init__(self, settings: WorldSettings) -> None:
        self.settings = settings
        self.model = build_model(settings)

    def environment(self, policy: CompiledPolicy) -> Environment:
        """What happens to the shop while `policy` is in force."""
        return environment_of(self.model, policy.revision)

    def start(self, policy: CompiledPolicy) -> Run:
        """A run at the eve of the first day."""
        return Run(self.model, policy)

    def run(self, policy: CompiledPolicy, days: int | None = None) -> Iterator[Day]:
        """The first `days` days (default: all) under `policy`, one at a time."""
        run = self.start(policy)
        for _ in range(self.settings.days if days is None else min(days, self.settings.days)):
            yield run.step()


class Run:
    """One policy's course through a world: state, ledger, what is still to come."""

    def __init__(self, model: Model, policy: CompiledPolicy) -> None:
        self.model = model
        self.policy = policy
        self.state: WorldState = initial_state(model.population)
        self.ledger = MemoryLedger(LedgerSettings(keep_records=False))
        self.ledger.set_history_horizon(policy.longest_window_us)
        self.day = -1
        self._core = Core(policy, self.ledger)
        self._lists = {one: policy.list_settings(one) for one in (Surface.gateway, Surface.related, Surface.widgets)}
        self._environment = environment_of(model, policy.revision)
        self._waiting = np.empty(0, OPPORTUNITY)  # requests of later times
        self._leaving = np.empty(0, HAPPENING)  # opt-outs that have not reached the ledger
        self._last_decided = np.zeros(len(model.population), np.int64)
        self._tell_ledger(np.flatnonzero(model.population.joined_day < 0))

    def step(self) -> Day:
        """Live the next day."""
        self.day += 1
        model, state = self.model, self.state if self.day == 0 else age_a_day(self.state, self.model.settings.response)
        out = Day(self.day, int(self._environment.last[self.day]))
        change = upheave(model, state, self.day)
        self.state = change.state
        self._tell_ledger(np.union1d(change.changed, np.flatnonzero(model.population.joined_day == self.day)))
        shopping = shop(model, self.state, self._lists, self.day, out.env_seq)
        out.slates, out.p_active = shopping.slates, shopping.p_active
        events = change.events + shopping.events + [self._flag_bots()]
        orders = _conversions(shopping.events)
        self._wait(audience(model, self.state, self.day), reminders(model, self.state, self.day), self._messages(orders))
        events += self._send(out)
        out.events = joined(events)
        self._remember(out.events)
        return out

    def _tell_ledger(self, rows: I64) -> None:
        if len(rows):
            self.ledger.put_users(self.model.population.user[rows], ledger_state(self.model, self.state, rows))

    def _messages(self, orders: Rows) -> Rows:
        users = self.model.population.user[orders["user"]]
        return order_messages(self.model, orders, event_ids(self.model.draws, orders, users))

    def _flag_bots(self) -> Rows:
        """Bots are found out on their third day in the log, by an event that says so."""
        people = self.model.population
        found = np.flatnonzero(people.bot & (np.maximum(people.joined_day, 0) + 2 == self.day))
        noon = self.model.settings.start_us + self.day * DAY_US + DAY_US // 2
        return happenings(len(found), type=EventType.bot, user=found, ts=noon)

    def _wait(self, *requests: Rows) -> None:
        self._waiting = np.concatenate([self._waiting, *requests])

    def _send(self, out: Day) -> list[Rows]:
        """All send decisions of the day, in steps of time, each seeing what the last one did."""
        blocks = self.model.settings.blocks_per_day
        start, events = self.model.settings.start_us + self.day * DAY_US, []
        for block in range(blocks):
            end = start + (block + 1) * DAY_US // blocks
            self._apply_opt_outs(end - DAY_US // blocks)
            for _ in range(_PASSES):
                due = self._waiting["at"] < end
                asked, self._waiting = self._waiting[due], self._waiting[~due]
                if len(asked) == 0:
                    break
                decided = self._decide(asked, out.env_seq)
                out.decided.append(decided)
                events += self._answer(decided)
        return events

    def _decide(self, asked: Rows, env_seq: int) -> Decided:
        """In order of time; a user's clock never runs backwards against what was decided before."""
        asked["at"] = np.maximum(asked["at"], self._last_decided[asked["user"]] + SECOND_US)
        asked = asked[np.lexsort((asked["request_id"], asked["at"]))]
        decided = decide_sends(self.model, self.state, self._core, asked, self.day, env_seq)
        np.maximum.at(self._last_decided, asked["user"], asked["at"])
        deferred = decided.until > 0
        self._wait(second_chances(self.model, asked[deferred], decided.until[deferred]))
        return decided

    def _answer(self, decided: Decided) -> list[Rows]:
        """People react; refunds, fatigue, engagement and opt-outs follow."""
        reaction = react(self.model, decided)
        rows, response = decided.sent.user[decided.granted], self.model.settings.response
        kinds = self.model.campaigns.message_class[decided.sent.campaign[decided.granted]]
        self.state = note_sends(self.state, response, rows, kinds)
        self.state = note_clicks(self.state, response, rows[reaction.click])
        self._refund(reaction)
        bought = self._purchases(decided, reaction)
        self._wait(self._messages(bought[bought["type"] == EventType.conversion]))
        leaving = reaction.events[reaction.events["type"] == EventType.opt_out]
        self._leaving = np.concatenate([self._leaving, leaving])
        return [reaction.events, bought]

    def _refund(self, reaction: Reaction) -> None:
        failed = reaction.events[reaction.events["type"] == EventType.delivery_failed]
        users = self.model.population.user[failed["user"]]
        for user, request, slot in zip(users.tolist(), failed["request_id"].tolist(), failed["slot"].tolist(), strict=True):
            self.ledger.refund(user, request, slot)

    def _purchases(self, decided: Decided, reaction: Reaction) -> Rows:
        """A click opens the campaign's item, or one of its category's; a conversion orders it five minutes later."""
        clicked = reaction.clicks
        at = decided.granted[reaction.click]
        campaign, user = decided.sent.campaign[at], decided.sent.user[at]
        popular = ItemPopularity(self.model.items, self.model.items.demand(self.day))
        u = self.model.draws.uniform("send.item", self.model.population.user[user], clicked["request_id"])
        some = popular.within(self.model.campaigns.category[campaign], u)
        item = np.where(self.model.campaigns.item[campaign] >= 0, self.model.campaigns.item[campaign], some)
        keep = {name: clicked[name] for name in ("user", "request_id", "slot", "campaign", "channel")}
        view = happenings(len(at), **keep, type=EventType.view, item=item, ts=clicked["ts"] + SECOND_US)
        order = happenings(
            len(at),
            **keep,
            type=EventType.conversion,
            item=item,
            ts=clicked["ts"] + 5 * MINUTE_US,
            quantity=1,
            amount=self.model.items.price[item],
        )
        return np.concatenate([view, order[reaction.convert[reaction.click]]])

    def _apply_opt_outs(self, now: int) -> None:
        """Opt-outs reach the ledger at the first step of time after they happen."""
        due = self._leaving["ts"] <= now
        leaving, self._leaving = self._leaving[due], self._leaving[~due]
        if len(leaving):
            self.state = note_opt_outs(self.state, leaving["user"].astype(np.int64), leaving["channel"])
            self._tell_ledger(np.unique(leaving["user"]).astype(np.int64))

    def _remember(self, events: Rows) -> None:
        """Recent items and satiation, for the days to come."""
        seen = events[events["type"] == EventType.view]
        bought = events[events["type"] == EventType.conversion]
        self.state = note_views(self.state, seen["user"].astype(np.int64), seen["item"], seen["ts"])
        self.state = note_orders(self.state, self.model.settings.response, bought["user"].astype(np.int64))


def _conversions(events: list[Rows]) -> Rows:
    every = np.concatenate([np.empty(0, HAPPENING), *events])
    return every[every["type"] == EventType.conversion]
