"""Refusals leave at a pace, and never later than promised."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.ingress.refusing import RefusalPace


def test_few_refusals_are_told_at_once() -> None:
    pace = RefusalPace(per_s=100, most_s=0.5)
    assert [pace.delay_s(n * 0.02) for n in range(50)] == [0.0] * 50


def test_callers_that_ask_again_at_once_are_slowed_to_the_pace() -> None:
    pace, callers = RefusalPace(per_s=100, most_s=0.5), [0.0] * 20
    told = 0
    while (now := min(callers)) < 10.0:
        callers[callers.index(now)] = now + pace.delay_s(now) + 1e-4
        told += 1
    assert told == pytest.approx(1_000, rel=0.05)


@given(st.lists(st.floats(0, 0.01), min_size=1, max_size=300), st.floats(1, 1e4), st.floats(0, 2))
def test_nobody_waits_longer_than_promised_and_nobody_overtakes(gaps: list[float], per_s: float, most_s: float) -> None:
    pace, now, last = RefusalPace(per_s, most_s), 0.0, 0.0
    for gap in gaps:
        now += gap
        delay = pace.delay_s(now)
        assert 0 <= delay <= most_s
        assert now + delay >= last - 1e-9
        last = now + delay


def test_after_a_rest_the_first_is_told_at_once_again() -> None:
    pace = RefusalPace(per_s=10, most_s=1.0)
    assert max(pace.delay_s(0.0) for _ in range(100)) == pytest.approx(1.0)
    assert pace.delay_s(2.1) == 0.0
