"""The world's people, items and responses: pure functions of seed, state and action."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.vocabulary import MessageClass
from simulators.world.draws import Draws, cumulative_pick, row_pick
from simulators.world.items import ItemPopularity, build_items
from simulators.world.model import Model, build_model
from simulators.world.population import build_population
from simulators.world.responses import (
    activity_probability,
    examination,
    send_outcome,
    send_truth,
)
from simulators.world.settings import DAY_US, HOUR_US, WorldSettings
from simulators.world.state import RECENTS, WorldState, initial_state, note_sends, note_views


@pytest.fixture(scope="module")
def model() -> Model:
    return build_model(WorldSettings(users=2_000, items=300, days=14))


def _truth(model: Model, state: WorldState, campaign: int = 6):
    users = np.arange(len(model.population))
    channel = np.zeros(len(users), np.int8)
    hour = np.full(len(users), 12, np.int8)
    campaigns = np.full(len(users), campaign)
    return send_truth(model.population, model.campaigns, state, model.settings.response, users, campaigns, channel, hour)


def test_a_user_is_the_same_person_in_a_larger_world_of_the_same_seed() -> None:
    small, large = (WorldSettings(users=n, items=50) for n in (100, 1_000))
    few, many = build_population(small, Draws(7)), build_population(large, Draws(7))
    rows = np.array([many.user_id.index(one) for one in few.user_id])
    for name in ("user", "place", "taste", "activity", "irritability", "consent_ad_at", "reachable"):
        assert np.array_equal(getattr(few, name), getattr(many, name)[rows]), name


def test_another_seed_is_another_world() -> None:
    settings = WorldSettings(users=200, items=50)
    one, other = build_population(settings, Draws(1)), build_population(settings, Draws(2))
    assert not np.array_equal(one.taste, other.taste)
    assert not np.array_equal(build_items(settings, Draws(1)).price, build_items(settings, Draws(2)).price)


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=8), st.floats(0.001, 0.999))
def test_both_pickers_agree(weights: list[float], u: float) -> None:
    one = cumulative_pick(weights, np.array([u]))
    other = row_pick(np.array([weights]), np.array([u]))
    assert one.tolist() == other.tolist()
    assert 0 <= one[0] < len(weights)


def test_items_of_a_category_are_drawn_by_demand() -> None:
    items = build_items(WorldSettings(users=10, items=240, days=5), Draws(3))
    demand = items.demand(0)
    popular = ItemPopularity(items, demand)
    u = (np.arange(60_000) + 0.5) / 60_000
    found = popular.within(np.full(len(u), 2, np.int16), u)
    assert (items.category[found] == 2).all()
    low, high = items.category_start[2], items.category_start[3]
    share = np.bincount(found, minlength=len(items))[low:high] / len(u)
    assert share == pytest.approx(demand[low:high] / demand[low:high].sum(), abs=1e-4)


def test_nothing_sold_out_or_not_launched_is_in_demand() -> None:
    items = build_items(WorldSettings(users=10, items=2_000, days=20), Draws(3))
    for day in (0, 10, 19):
        assert ((items.demand(day) > 0) == items.available(day)).all()
    assert not items.available(0).all()


def test_probabilities_nest_and_stay_in_bounds(model: Model) -> None:
    truth = _truth(model, initial_state(model.population))
    reach = (1 - truth.fail) * truth.seen
    assert (truth.convert > 0).all()
    assert (truth.convert <= truth.click).all()
    assert (truth.click + truth.dismiss <= reach + 1e-12).all()
    assert (truth.optout <= reach).all()


def test_outcomes_come_as_often_as_their_probabilities_say(model: Model) -> None:
    truth = _truth(model, initial_state(model.population))
    users = model.population.user
    campaign, push = np.full(len(users), 5, np.uint64), np.zeros(len(users), np.int8)
    days = 60
    counts = dict.fromkeys(("fail", "click", "convert", "dismiss"), 0)
    for day in range(days):
        outcome = send_outcome(model.draws, truth, users, np.full(len(users), day), campaign, push)
        assert not (outcome.convert & ~outcome.click).any()
        assert not (outcome.click & (outcome.dismiss | ~outcome.seen)).any()
        for name in counts:
            counts[name] += int(getattr(outcome, name).sum())
    for name, count in counts.items():
        p = np.broadcast_to(getattr(truth, name), len(users))
        expected, sd = days * p.sum(), np.sqrt(days * (p * (1 - p)).sum())
        assert abs(count - expected) < 5 * sd, name


def test_fatigue_grows_with_sends_lowers_clicks_and_raises_opt_outs(model: Model) -> None:
    fresh = initial_state(model.population)
    everyone = np.arange(len(model.population))
    tired = note_sends(fresh, model.settings.response, everyone, np.full(len(everyone), MessageClass.advertising, np.int8))
    assert (fresh.fatigue == 0).all()
    before, after = _truth(model, fresh), _truth(model, tired)
    assert (after.click < before.click).all()
    assert (after.optout > before.optout).all()
    weekday = np.zeros(len(everyone), np.bool_)
    rested = activity_probability(model.population, fresh, model.settings.response, weekday)
    assert (activity_probability(model.population, tired, model.settings.response, weekday) < rested).all()


def test_the_outcome_of_one_send_is_the_same_whatever_else_is_sent(model: Model) -> None:
    truth = _truth(model, initial_state(model.population))
    users, n = model.population.user, len(model.population)
    key = (np.full(n, 3), np.full(n, 9, np.uint64), np.zeros(n, np.int8))
    alone = send_outcome(model.draws, truth, users, *key)
    rows = np.arange(0, n, 7)
    some = replace(truth, **{name: getattr(truth, name)[rows] for name in truth.__dataclass_fields__})
    part = send_outcome(model.draws, some, users[rows], *(one[rows] for one in key))
    assert np.array_equal(alone.bits()[rows], part.bits())


def test_later_slots_are_examined_less(model: Model) -> None:
    p = examination(np.arange(8, dtype=np.int32), model.settings.response)
    assert p[0] == 1
    assert (np.diff(p) < 0).all()


def test_recent_items_are_the_newest_oldest_first() -> None:
    population = build_population(WorldSettings(users=5, items=10), Draws(1))
    state = initial_state(population)
    rows = np.array([1] * 10 + [3, 3])
    state = note_views(state, rows, np.arange(12, dtype=np.int32), np.arange(12))
    assert state.recents[1].tolist() == list(range(10 - RECENTS, 10))
    assert state.recents[3].tolist() == [-1] * (RECENTS - 2) + [10, 11]
    state = note_views(state, np.array([1]), np.array([99], np.int32), np.array([50]))
    assert state.recents[1].tolist() == [*range(10 - RECENTS + 1, 10), 99]
    assert state.recents_at[1][-1] == 50


def test_wall_clocks_follow_daylight_saving(model: Model) -> None:
    new_york = np.array([2], np.int16)
    start = model.settings.start_us
    before, after = start + 12 * DAY_US + 12 * HOUR_US, start + 13 * DAY_US + 12 * HOUR_US  # clocks go back on 2026-11-01
    assert model.clock.local_hour(new_york, np.array([before])).tolist() == [8]
    assert model.clock.local_hour(new_york, np.array([after])).tolist() == [7]
    at = model.clock.at_local_hour(new_york, start + 5 * DAY_US, np.array([20.5]))
    assert model.clock.local_hour(new_york, at).tolist() == [20]


def test_every_advertising_text_begins_with_the_label(model: Model) -> None:
    advertising = model.campaigns.of_class(MessageClass.advertising)
    assert len(advertising) > 10
    assert all(model.campaigns.text[row].startswith("(광고)") for row in advertising)
