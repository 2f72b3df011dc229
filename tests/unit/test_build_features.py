"""Features as of a time: equal to a plain recount, blind to the future, catching a feature that peeks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.release.build.entity_features import ITEM_SPECS, USER_SPECS, EntityTimelines
from serve_app.release.build.interactions import Interactions
from serve_app.release.build.timeline import DAY_US, NEVER, Timeline
from serve_app.vocabulary import EventType

USERS, ITEMS, HORIZON = 5, 6, 60 * DAY_US


def random_log(seed: int, count: int = 400, late: bool = True) -> Interactions:
    draw = np.random.default_rng(seed)
    at = np.sort(draw.integers(0, HORIZON, count))
    kinds = [
        EventType.view,
        EventType.click,
        EventType.add_to_cart,
        EventType.conversion,
        EventType.seen,
        EventType.delivered,
    ]
    return Interactions(
        user=draw.integers(-1, USERS, count).astype(np.int32),
        item=draw.integers(0, ITEMS, count).astype(np.int32),
        kind=draw.choice(kinds, count).astype(np.int8),
        at=at,
        known_at=at + (draw.integers(0, 3 * DAY_US, count) if late else 0),
        session=draw.integers(1, 50, count).astype(np.uint64),
        position=np.zeros(count, np.int32),
        pieces=draw.integers(1, 9, count),
        minor=draw.integers(1, 99_999, count),
        campaign=np.where(draw.random(count) < 0.2, 9, 0).astype(np.uint64),
    )


def pairs(seed: int, entities: int, count: int = 200) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    draw = np.random.default_rng(seed)
    return draw.integers(0, entities, count).astype(np.int32), draw.integers(0, HORIZON, count)


Featurise = Callable[[Interactions, npt.NDArray[np.int64], npt.NDArray[np.int32]], npt.NDArray[np.float32]]


def item_features(log: Interactions, when: npt.NDArray[np.int64], rows: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
    return EntityTimelines.build(log, ITEMS, USERS).items(rows, when)


def user_features(log: Interactions, when: npt.NDArray[np.int64], rows: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
    return EntityTimelines.build(log, ITEMS, USERS).users(rows, when)


def peeking_features(log: Interactions, when: npt.NDArray[np.int64], rows: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
    """Windows by when things happened, not by when they were received: late events leak back."""
    return item_features(replace(log, known_at=log.at), when, rows)


def future_changes_nothing(featurise: Featurise, entities: int) -> bool:
    """Whether features stay the same bits when everything received at or after the asked time is dropped or scrambled."""
    log, (rows, when) = random_log(1), pairs(2, entities)
    honest = featurise(log, when, rows)
    for row, time in zip(rows[:25], when[:25], strict=True):
        past = log.take(log.known_at < time)
        alone = featurise(past, np.array([time]), np.array([row], np.int32))
        if honest[np.flatnonzero((rows == row) & (when == time))[:1]].tobytes() != alone.tobytes():
            return False
    return True


@pytest.mark.parametrize(("featurise", "entities"), [(item_features, ITEMS), (user_features, USERS)])
def test_events_received_later_change_no_bit_of_an_earlier_feature(featurise: Featurise, entities: int) -> None:
    assert future_changes_nothing(featurise, entities)


def test_the_leakage_test_catches_a_feature_that_peeks() -> None:
    assert not future_changes_nothing(peeking_features, ITEMS)


@given(st.integers(0, 2**32 - 1), st.sampled_from([None, 1, DAY_US, 7 * DAY_US]))
@settings(max_examples=30, deadline=None)
def test_windowed_sums_equal_a_plain_recount(seed: int, window: int | None) -> None:
    log, (rows, when) = random_log(seed, count=80), pairs(seed, ITEMS, 40)
    when[:10] = log.known_at[:10]  # exactly at an event: it is not yet known
    timeline = Timeline.build(log.item, log.known_at, {"pieces": log.pieces}, ITEMS)
    found = timeline.sums(rows, when, {"w": window})["w"]["pieces"]
    last, first = timeline.last(rows, when), timeline.first(rows, when)
    for i, (row, time) in enumerate(zip(rows, when, strict=True)):
        known = (log.item == row) & (log.known_at < time)
        inside = known & ((window is None) | (log.known_at >= time - (window or 0)))
        assert found[i] == log.pieces[inside].sum()
        assert last[i] == (log.known_at[known].max() if known.any() else NEVER)
        assert first[i] == (log.known_at[known].min() if known.any() else NEVER)


def test_every_declared_feature_has_a_value_for_a_busy_entity() -> None:
    log = random_log(3, count=4000, late=False)
    timelines = EntityTimelines.build(log, ITEMS, USERS)
    row, end = np.zeros(1, np.int32), np.array([HORIZON])
    for values, specs in ((timelines.items(row, end), ITEM_SPECS), (timelines.users(row, end), USER_SPECS)):
        assert [spec.name for spec, value in zip(specs, values[0], strict=True) if np.isnan(value)] == []


def test_an_unknown_user_has_no_values_and_an_idle_one_counts_of_zero() -> None:
    timelines = EntityTimelines.build(random_log(1).take(np.zeros(0, np.int64)), ITEMS, USERS)
    values = timelines.users(np.array([-1, 0], np.int32), np.array([5, 5]))
    assert np.isnan(values[0]).all()
    counts = [i for i, spec in enumerate(USER_SPECS) if spec.default == 0.0]
    assert (values[1, counts] == 0).all()
    assert np.isnan(np.delete(values[1], counts)).all()
