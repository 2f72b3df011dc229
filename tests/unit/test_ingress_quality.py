"""The quality factor: overload narrows, rest widens, within bounds and in bounded time."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.ingress.quality import Quality
from serve_app.serving.list_requests import narrowed
from serve_app.settings import QualitySettings

SETTINGS = QualitySettings()
BUDGET_MS = 1_000.0
INTERVAL_S = SETTINGS.interval_ms / 1000
IN_TIME_S = SETTINGS.target_share * BUDGET_MS / 1000
LATE_S = IN_TIME_S * 2
INTERVALS_TO_RECOVER = math.ceil(1 / SETTINGS.increase)

stays = st.lists(st.lists(st.floats(0, 3), max_size=12), max_size=30)


def fed(intervals: list[list[float]], settings: QualitySettings = SETTINGS) -> tuple[Quality, float]:
    """A factor that heard of these stays, interval by interval, and the time at the end of the last."""
    quality, now = Quality(settings, BUDGET_MS), 100.0
    quality.factor(now)
    for one in intervals:
        for stay in one:
            quality.answered(stay, now + INTERVAL_S / 2)
        now += INTERVAL_S
        quality.factor(now, busy=True)
    return quality, now


@given(stays)
def test_the_factor_stays_between_nothing_and_one(intervals: list[list[float]]) -> None:
    quality, now = fed(intervals)
    assert 0 < quality.factor(now) <= 1


@given(st.integers(1, 2_000), st.data(), st.floats(0, 1))
def test_a_narrowed_width_lies_between_the_least_and_the_whole(width: int, data: st.DataObject, quality: float) -> None:
    least = data.draw(st.integers(1, 2_000))
    chosen = narrowed(width, least, quality)
    assert min(least, width) <= chosen <= width
    assert narrowed(width, least, 1.0) == width


@given(st.integers(1, 2_000), st.integers(1, 2_000), st.floats(0, 1), st.floats(0, 1))
def test_less_quality_never_looks_more_widely(width: int, least: int, one: float, other: float) -> None:
    assert narrowed(width, least, min(one, other)) <= narrowed(width, least, max(one, other))


@given(stays, stays)
def test_slower_answers_never_give_a_larger_factor(intervals: list[list[float]], more: list[list[float]]) -> None:
    slower = [
        [stay + extra for stay, extra in zip(own, [*(more[at] if at < len(more) else []), *[0.0] * len(own)], strict=False)]
        for at, own in enumerate(intervals)
    ]
    quick, now = fed(intervals)
    slow, _ = fed(slower)
    assert slow.factor(now, busy=True) <= quick.factor(now, busy=True)


def test_a_late_interval_lowers_by_a_share_and_one_in_time_raises_by_a_step() -> None:
    quality, now = fed([[LATE_S] * 5])
    assert quality.factor(now) == pytest.approx(SETTINGS.decrease)
    quality, now = fed([[LATE_S] * 5, [IN_TIME_S] * 5])
    assert quality.factor(now) == pytest.approx(SETTINGS.decrease + SETTINGS.increase)


def test_a_single_slow_answer_among_many_changes_nothing() -> None:
    quality, now = fed([[LATE_S, *[IN_TIME_S / 10] * 20]])
    assert quality.factor(now) == 1


def test_a_refusal_lowers_the_factor_though_all_others_were_in_time() -> None:
    quality, now = fed([])
    for _ in range(50):
        quality.answered(IN_TIME_S / 10, now)
    quality.refused(now)
    assert quality.factor(now + INTERVAL_S) == pytest.approx(SETTINGS.decrease)


@given(stays)
def test_after_any_overload_it_is_whole_again_in_a_bounded_number_of_intervals_in_time(intervals: list[list[float]]) -> None:
    quality, now = fed(intervals)
    for _ in range(INTERVALS_TO_RECOVER):
        quality.answered(0.0, now)
        now += INTERVAL_S
        quality.factor(now, busy=True)
    assert quality.factor(now) == 1


@given(stays)
def test_rest_alone_makes_it_whole_again_though_nobody_looked_meanwhile(intervals: list[list[float]]) -> None:
    quality, now = fed(intervals)
    assert quality.factor(now + (INTERVALS_TO_RECOVER + 2) * INTERVAL_S) == 1


def test_idle_it_stays_whole() -> None:
    quality = Quality(SETTINGS, BUDGET_MS)
    assert [quality.factor(at * 0.1) for at in range(200)] == [1.0] * 200


def test_silence_of_a_busy_surface_is_no_rest() -> None:
    quality, now = fed([[LATE_S] * 5] * 3)
    low = quality.factor(now, busy=True)
    for _ in range(40):
        now += INTERVAL_S
        assert quality.factor(now, busy=True) == low


@given(stays)
def test_switched_off_it_is_always_whole(intervals: list[list[float]]) -> None:
    quality, now = fed(intervals, QualitySettings(enabled=False))
    assert quality.factor(now) == 1
