"""Bad input: a clear error, or a row left out and counted; never a number made of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from serve_app.errors import InvalidInput
from simulators.estimators import (
    IPS,
    SNIPS,
    Cells,
    Estimated,
    EstimateSettings,
    Refused,
    RejectionReplay,
    Suite,
    checked_rows,
)
from simulators.estimators.shrinkage import ShrunkDR
from simulators.estimators.switch_dr import SwitchDR
from tests.unit.estimator_support import FACTORIES, METRICS, POLICIES, columns, rows_of

FAULTY = [
    ("propensity", np.nan, "propensity_missing"),
    ("propensity", 0.0, "propensity_zero"),
    ("propensity", -0.5, "propensity_zero"),
    ("propensity", 1.5, "propensity_above_one"),
    ("propensity", np.inf, "propensity_above_one"),
    ("target", np.nan, "target_missing"),
    ("target", 1.2, "target_out_of_range"),
    ("target", -0.1, "target_out_of_range"),
    ("reward", np.nan, "reward_missing"),
    ("reward", np.inf, "reward_missing"),
    ("q_target", np.nan, "outcome_model_missing"),
]


@pytest.mark.parametrize(("column", "value", "fault"), FAULTY)
def test_a_faulty_row_is_left_out_and_counted_by_its_fault(column: str, value: float, fault: str) -> None:
    found = columns(1, 30)
    found[column][4] = value
    suite = Suite([FACTORIES["ips"](), FACTORIES["dr"]()])
    suite.update(rows_of(found))
    assert suite.weights_of("ips", "bold").excluded == {fault: 1}
    clean = Suite([FACTORIES["ips"](), FACTORIES["dr"]()])
    clean.update(rows_of(columns(1, 30), np.delete(np.arange(len(found["user"])), 4)))
    assert suite["dr"].interval("bold", "click") == clean["dr"].interval("bold", "click")


@pytest.mark.parametrize(("column", "value", "fault"), FAULTY)
def test_or_it_is_an_error_that_names_it(column: str, value: float, fault: str) -> None:
    found = columns(1, 30)
    found[column][4] = value
    with pytest.raises(InvalidInput, match=fault):
        rows_of(found, on_bad="error")


def test_repeated_rows_count_once() -> None:
    found = columns(2, 20)
    n = len(found["user"])
    twice = np.repeat(np.arange(n), 2)
    rows = rows_of(found, twice, row_id=twice)
    assert len(rows) == n
    assert rows.excluded.sum() == n
    once, again = FACTORIES["snips"](), FACTORIES["snips"]()
    once.update(rows_of(found))
    again.update(rows)
    assert once.interval("bold", "click") == again.interval("bold", "click")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"propensity": np.ones(3)}, "propensity"),
        ({"target": np.ones((4, 2))}, "target"),
        ({"target_send": None}, "target_send"),
        ({"log_rate": np.zeros(5)}, "log_rate"),
        ({"user": np.array([1, 1, 2, 1, 1])}, "user"),
        ({"row_id": np.ones(4)}, "row_id"),
        ({"groups": {"day": np.ones(2)}}, "day"),
    ],
)
def test_columns_that_do_not_fit_are_named(change: dict[str, Any], field: str) -> None:
    good = {
        "user": np.array([1, 1, 2, 2, 3]), "propensity": np.full(5, 0.5), "target": np.full((5, 2), 0.5),
        "reward": np.ones((5, 1)), "send": np.ones(5), "target_send": np.ones((5, 2)),
    }  # fmt: skip
    with pytest.raises(InvalidInput, match=field):
        checked_rows(**{**good, **change})


@pytest.mark.parametrize("name", FACTORIES)
@pytest.mark.parametrize("users", [0, 1])
def test_an_empty_log_and_a_single_user_are_refused_not_crashed(name: str, users: int) -> None:
    suite = Suite([FACTORIES[name]()])
    suite.update(rows_of(columns(3, users, most=1)))
    found = list(suite.estimates())
    assert found
    assert all(isinstance(one, Refused) for one in found)


def test_a_log_where_everything_was_suppressed_is_refused() -> None:
    found = columns(4, 500)
    found["send"][:] = 0
    found["reward"][:] = 0
    suite = Suite([FACTORIES["ips"](), FACTORIES["snips"]()])
    suite.update(rows_of(found))
    for one in suite.estimates():
        assert isinstance(one, Refused)
        assert "could earn" in one.verdict.reasons[0]


def test_many_rows_left_out_refuse_the_estimate() -> None:
    found = columns(5, 5000)
    found["target"] = np.repeat(found["propensity"][:, None], 2, axis=1)
    suite = Suite([FACTORIES["snips"]()])
    suite.update(rows_of(found))
    assert all(isinstance(one, Estimated) for one in suite.estimates())
    found["propensity"] = np.where(np.arange(len(found["user"])) % 10 == 0, np.nan, found["propensity"])
    spoilt = Suite([FACTORIES["snips"]()])
    spoilt.update(rows_of(found))
    assert all("were left out" in " ".join(one.verdict.reasons) for one in spoilt.estimates() if isinstance(one, Refused))
    assert all(isinstance(one, Refused) for one in spoilt.estimates())


def test_an_estimator_says_what_it_needs() -> None:
    bare = checked_rows([1, 2], [0.5, 0.5], [[0.5, 0.5], [0.5, 0.5]], [[1.0, 0.0], [0.0, 0.0]])
    for name in ("dr", "cells", "rips", "iips", "mips", "windowed-ips", "snips by day"):
        with pytest.raises(InvalidInput):
            FACTORIES[name]().update(bare)
    with pytest.raises(InvalidInput, match="1 policies"):
        FACTORIES["ips"]().update(checked_rows([1], [0.5], [0.5], [1.0]))


def test_settings_out_of_range_are_named() -> None:
    for make in (
        lambda: IPS([], METRICS),
        lambda: IPS(["logged"], METRICS),
        lambda: RejectionReplay(POLICIES, METRICS, bound=0.5),
        lambda: Cells(POLICIES, METRICS, cell_p=[0.5, 0.4]),
        lambda: SwitchDR(POLICIES, METRICS, grid=[2.0, 1.0]),
        lambda: Suite([]),
        lambda: Suite([SNIPS(POLICIES, METRICS), SNIPS(POLICIES, METRICS)]),
    ):
        with pytest.raises(InvalidInput):
            make()
    with pytest.raises(ValueError, match="extra"):
        EstimateSettings(levle=0.9)  # type: ignore[call-arg]
    assert issubclass(SwitchDR, ShrunkDR)


def test_a_weight_above_its_declared_bound_is_an_error() -> None:
    rows = checked_rows([1, 2], [0.05, 0.5], [1.0, 0.5], [1.0, 0.0])
    with pytest.raises(InvalidInput, match="bound"):
        RejectionReplay(["t"], ["click"], bound=4).update(rows)


def test_cells_must_hold_the_one_in_force() -> None:
    found = columns(6, 10)
    found["extra"]["cell_probability"][:] = 0.01
    with pytest.raises(InvalidInput, match="no cell gives"):
        FACTORIES["cells"]().update(rows_of(found))


def test_read_only_columns_from_arrow_are_taken_as_they_are() -> None:
    found = columns(7, 50)
    for name in ("user", "propensity", "send"):
        found[name] = pa.array(found[name]).to_numpy()
        assert not found[name].flags.writeable
    read, written = FACTORIES["snips"](), FACTORIES["snips"]()
    read.update(rows_of(found))
    written.update(rows_of(columns(7, 50)))
    assert read.interval("bold", "click") == written.interval("bold", "click")
