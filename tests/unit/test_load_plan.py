"""Plans of load tests: which requests leave when."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.scenarios.errors import LoadError
from loadtests.scenarios.plan import Phase, arrivals, expected_requests, phase_at, phases_of, read_plan

AUDIENCE = Path("audience.json")


def rows(*parts: tuple[float, float, float]) -> tuple[Phase, ...]:
    """Phases of (seconds, low, high)."""
    starts = np.cumsum([0.0, *(seconds for seconds, _, _ in parts)])
    return tuple(Phase(f"p{n}", float(starts[n]), *part) for n, part in enumerate(parts))


multiples = st.floats(0, 5)
shapes = st.lists(st.tuples(st.floats(0.5, 20), multiples, multiples), min_size=1, max_size=4).map(lambda x: rows(*x))


@given(shapes, st.floats(1, 200), st.sampled_from(["poisson", "even"]), st.integers(1, 4))
def test_arrivals_are_ordered_and_within_the_run(phases, rate, kind, workers) -> None:
    for worker in range(workers):
        times = arrivals(phases, rate, kind=kind, worker=worker, workers=workers)
        assert (np.diff(times) >= 0).all()
        assert ((times >= 0) & (times <= phases[-1].end_s + 1e-6)).all()


@given(shapes, st.floats(1, 200), st.integers(1, 5))
def test_even_arrivals_of_all_workers_are_as_many_as_asked_for(phases, rate, workers) -> None:
    counts = [len(arrivals(phases, rate, kind="even", worker=w, workers=workers)) for w in range(workers)]
    assert abs(sum(counts) - expected_requests(phases, rate)) <= workers


def test_poisson_arrivals_follow_a_changing_rate() -> None:
    phases = rows((100, 1, 1), (50, 10, 10), (100, 0, 2))
    times = np.concatenate([arrivals(phases, 40, worker=w, workers=2, seed=3) for w in range(2)])
    counts, _ = np.histogram(times, [0, 100, 150, 200, 250])
    expected = np.array([4_000, 20_000, 1_000, 3_000])
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()
    gaps = np.diff(np.sort(times[times < 100]))
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.1)  # as of a Poisson process


def test_a_seed_and_a_worker_give_the_same_arrivals_and_others_give_others() -> None:
    phases = rows((10, 1, 1))
    again = [arrivals(phases, 50, seed=1, worker=0, workers=2) for _ in range(2)]
    np.testing.assert_array_equal(*again)
    assert not np.array_equal(again[0], arrivals(phases, 50, seed=1, worker=1, workers=2))


def test_a_spike_lies_between_two_halves() -> None:
    plan = read_plan(scenario="spike", rate=60, duration_s=20, factor=10, spike_s=30, audience=AUDIENCE)
    before, spike, after = phases_of(plan)
    assert (before.end_s, spike.start_s, spike.end_s, after.end_s) == (10, 10, 40, 50)
    assert (before.high, spike.high, after.high) == (1, 10, 1)
    assert phase_at(phases_of(plan), 39.9) == spike
    assert phase_at(phases_of(plan), 1e9) == after


def test_a_ramp_ends_at_the_rate() -> None:
    steps = phases_of(read_plan(scenario="ramp", rate=100, duration_s=50, audience=AUDIENCE))
    assert [one.high for one in steps] == pytest.approx([n / 10 for n in range(1, 11)])
    assert expected_requests(steps, 100) == pytest.approx(5 * 10 * 55)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"scenario": "baseline", "audience": AUDIENCE}, "rate"),
        ({"scenario": "baseline", "rate": 1, "users": 1, "audience": AUDIENCE}, "rate"),
        ({"scenario": "baseline", "rate": 1}, "audience"),
        ({"scenario": "baseline", "rate": -1, "audience": AUDIENCE}, "rate"),
        ({"scenario": "replay"}, "trace"),
        ({"scenario": "replay", "trace": Path("t"), "rate": 5}, "speed"),
        ({"scenario": "spike", "users": 5, "audience": AUDIENCE}, "rate"),
        ({"scenario": "baseline", "rate": 1, "audience": AUDIENCE, "rte": 1}, "rte"),
    ],
)
def test_a_plan_that_cannot_run_says_why(said, words) -> None:
    with pytest.raises(LoadError, match=words):
        read_plan(**said)
