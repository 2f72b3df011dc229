"""The pace of answers, and what it means for those under way and those who wait."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.ingress.pace import Pace


def paced(gaps: list[tuple[float, int]]) -> tuple[Pace, float]:
    """A pace that saw, with requests always waiting, answers after these gaps (seconds, how many)."""
    pace, now = Pace(), 10.0
    pace.waiting(now, True)
    for gap, requests in gaps:
        now += gap
        pace.answered(requests, gap, now)
    return pace, now


def test_nothing_is_known_until_requests_have_waited() -> None:
    pace = Pace()
    pace.answered(100, 0.1, 1.0)
    assert (pace.per_s(1.0), pace.room(0.25, 1.0), pace.wait_s(1_000, 1.0)) == (None, math.inf, 0.0)


@given(st.floats(0.001, 0.5), st.integers(1, 64))
def test_an_even_pace_is_found_within_some_seconds(gap: float, requests: int) -> None:
    pace, now = paced([(gap, requests)] * math.ceil(6 / gap))
    assert pace.per_s(now) == pytest.approx(requests / gap, rel=0.05)


def test_a_single_slow_answer_is_no_pace() -> None:
    pace, now = paced([(0.3, 1)])
    assert pace.wait_s(3, now) < 0.2


@given(st.lists(st.tuples(st.floats(0.0005, 2), st.integers(1, 64)), min_size=1, max_size=50), st.floats(0.01, 5))
def test_a_few_requests_may_always_be_under_way(gaps: list[tuple[float, int]], within: float) -> None:
    pace, now = paced(gaps)
    assert pace.room(within, now) >= 4


@given(st.lists(st.tuples(st.floats(0.0005, 2), st.integers(1, 64)), min_size=1, max_size=50), st.integers(0, 500))
def test_more_ahead_is_a_longer_wait(gaps: list[tuple[float, int]], ahead: int) -> None:
    pace, now = paced(gaps)
    assert pace.wait_s(ahead, now) < pace.wait_s(ahead + 1, now)


def test_time_without_anybody_waiting_does_not_count() -> None:
    pace, now = paced([(0.1, 10)] * 10)
    pace.waiting(now, False)
    pace.answered(1, 0.1, now + 3)
    pace.waiting(now + 3, True)
    pace.answered(10, 0.1, now + 3.1)
    assert pace.per_s(now + 3.1) == pytest.approx(100, rel=0.05)


def test_a_pace_of_long_ago_is_forgotten() -> None:
    pace, now = paced([(1.0, 1)] * 3)
    pace.waiting(now, False)
    assert pace.per_s(now + 1) is not None
    assert pace.per_s(now + 6) is None
