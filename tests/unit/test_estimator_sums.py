"""Sums are exact, merge to the same bytes however a log is cut, and survive a file."""

from __future__ import annotations

import math
import pickle
from functools import reduce
from operator import add

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.errors import DamagedArtifact, InvalidInput
from simulators.estimators import IPS, SNIPS, EstimateSettings, Standing, Suite
from simulators.estimators.exact import LIMBS, add_exactly, as_float, canonical
from tests.unit.estimator_support import FACTORIES, METRICS, POLICIES, columns, rows_of, user_cuts

NUMBERS = st.floats(-1e40, 1e40, allow_nan=False).filter(lambda x: x == 0 or abs(x) > 1e-40)


def exact_sum(values: list[float]) -> np.ndarray:
    limbs = np.zeros((1, LIMBS), np.int64)
    for x in values:
        add_exactly(limbs[0], x)
    canonical(limbs)
    return limbs


@settings(deadline=None)
@given(st.lists(NUMBERS, max_size=30), st.randoms())
def test_a_sum_is_exact_and_its_bytes_do_not_depend_on_the_order(values: list[float], random: object) -> None:
    found = exact_sum(values)
    assert as_float(found[0]) == math.fsum(values)
    shuffled = list(values)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert exact_sum(shuffled).tobytes() == found.tobytes()


def test_what_cancels_leaves_no_trace() -> None:
    assert not exact_sum([1e30, 1.0, -1e30, -1.0]).any()
    assert as_float(exact_sum([1e16, 1.0, 1.0, -1e16])[0]) == 2.0


@pytest.mark.parametrize("name", FACTORIES)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32), cuts=st.lists(st.integers(1, 24), max_size=4), order=st.randoms())
def test_any_split_by_user_merges_to_the_same_bytes(name: str, seed: int, cuts: list[int], order: object) -> None:
    found = columns(seed, 25)
    whole = FACTORIES[name]()
    whole.update(rows_of(found))
    parts = []
    for one in user_cuts(found, cuts):
        part = FACTORIES[name]()
        part.update(rows_of(found, one))
        parts.append(part)
    order.shuffle(parts)  # type: ignore[attr-defined]
    merged = reduce(add, parts)
    assert_same(whole.to_arrays(), merged.to_arrays())


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for key, array in one.items():
        assert array.tobytes() == other[key].tobytes(), key


@pytest.mark.parametrize("name", FACTORIES)
def test_what_is_saved_and_loaded_answers_alike(name: str) -> None:
    estimator = FACTORIES[name]()
    estimator.update(rows_of(columns(3, 40)))
    again = FACTORIES[name]().load({f"p/{key}": array for key, array in estimator.to_arrays().items()}, "p/")
    assert again.interval("bold", "click") == estimator.interval("bold", "click")
    assert_same(again.to_arrays(), estimator.to_arrays())


def test_a_suite_goes_through_a_file(tmp_path: object) -> None:
    def make() -> Suite:
        return Suite([FACTORIES["ips"](), FACTORIES["snips"](), FACTORIES["cells"]()])

    suite = make()
    suite.update(rows_of(columns(4, 60)))
    np.savez(f"{tmp_path}/shard.npz", **suite.to_arrays())
    with np.load(f"{tmp_path}/shard.npz") as arrays:
        again = make().load(dict(arrays))
    assert_same(again.to_arrays(), suite.to_arrays())
    assert_same((again + make()).to_arrays(), suite.to_arrays())


def test_sums_of_other_settings_are_refused() -> None:
    with pytest.raises(InvalidInput, match="settings"):
        IPS(POLICIES, METRICS) + IPS(POLICIES, METRICS[:1])
    with pytest.raises(DamagedArtifact, match="other settings"):
        IPS(POLICIES, METRICS).load(IPS(POLICIES[:1], METRICS).to_arrays())
    with pytest.raises(InvalidInput, match="different estimators"):
        Suite([IPS(POLICIES, METRICS)]) + Suite([SNIPS(POLICIES, METRICS)])


def test_totals_too_large_to_square_are_refused_by_user() -> None:
    found = columns(5, 3)
    found["reward"][2] = 1e30
    with pytest.raises(InvalidInput, match="not finite or above"):
        FACTORIES["ips"]().update(rows_of(found))


def test_a_suite_travels_between_processes() -> None:
    suite = Suite([FACTORIES["snips"](), FACTORIES["cells"](), FACTORIES["switch-dr"]()])
    suite.update(rows_of(columns(6, 30)))
    again = pickle.loads(pickle.dumps(suite))
    assert_same((again + suite).to_arrays(), (suite + again).to_arrays())


def test_a_user_of_ten_thousand_rows_is_one_user() -> None:
    found = columns(7, 300)
    heavy = columns(8, 1, most=1)
    rows = np.zeros(10_000, np.int64)
    heavy = {
        name: {key: column[rows] for key, column in value.items()} if isinstance(value, dict) else value[rows]
        for name, value in heavy.items()
    }
    heavy["user"][:] = 2**50
    heavy["send"][:] = 1
    both = {
        name: {key: np.concatenate([column, heavy[name][key]]) for key, column in value.items()}
        if isinstance(value, dict)
        else np.concatenate([value, heavy[name]])
        for name, value in found.items()
    }
    suite = Suite([FACTORIES["ips"]()])
    suite.update(rows_of(both))
    diagnosed = suite.weights_of("ips", "bold")
    assert diagnosed.users == 301
    assert diagnosed.largest_user > 0.5
    assert diagnosed.ess_users < 10
    assert suite.verdict("ips", "bold", "click", EstimateSettings()).standing == Standing.refused
