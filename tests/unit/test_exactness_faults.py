"""What stands ready for kills: skewed clocks for tests only, boards that take over."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from serve_app import clock
from serve_app.errors import HindcastError, InvalidInput, LedgerUnavailable, NotReady, OutcomeUnknown
from serve_app.ingress.problems import problem_of
from serve_app.serving.board import Board, Report
from serve_app.serving.lost import own_error, undecided
from serve_app.settings import EXPENDABLE, load_settings

SKEW = {"clock_skew_ms": [0, 2_000]}


def test_clocks_are_not_skewed_on_a_data_folder_that_somebody_needs(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="for tests only"):
        load_settings(data=tmp_path, testing=SKEW)


def test_clocks_are_not_skewed_where_strangers_can_reach_the_server(tmp_path: Path) -> None:
    (tmp_path / EXPENDABLE).touch()
    with pytest.raises(InvalidInput, match="on loopback"):
        load_settings(data=tmp_path, testing=SKEW, http={"host": "0.0.0.0"}, security={"keys_file": tmp_path / "keys"})
    assert load_settings(data=tmp_path, testing=SKEW).testing.clock_skew_ms == (0, 2_000)


def test_no_capacity_is_set_on_a_data_folder_that_somebody_needs(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="for tests only") as refused:
        load_settings(data=tmp_path, testing={"capacity_per_s": 60})
    assert refused.value.field == "testing.capacity_per_s"
    (tmp_path / EXPENDABLE).touch()
    assert load_settings(data=tmp_path, testing={"capacity_per_s": 60}).testing.capacity_per_s == 60


def test_clocks_run_true_unless_told_otherwise(tmp_path: Path) -> None:
    assert load_settings(data=tmp_path).testing.clock_skew_ms == ()
    assert abs(clock.now_us() - time.time_ns() // 1000) < 1_000_000


def test_a_skewed_clock_is_off_by_the_skew() -> None:
    try:
        clock.set_clock_skew(7_200_000_000)
        assert abs(clock.now_us() - time.time_ns() // 1000 - 7_200_000_000) < 1_000_000
    finally:
        clock.set_clock_skew(0)


def report(policy: str) -> Report:
    held = {"release": frozenset({"r"}), "policy": frozenset({policy})}
    return Report("one", "ingress", 1, True, held, {"release": "r", "policy": policy}, held, {})  # type: ignore[arg-type]


async def test_a_board_that_takes_over_is_heard_by_followers_of_the_one_before() -> None:
    old = Board("r", "p1", epoch=1_000)
    seen = (await old.poll(report("p1"), 0)).epoch
    new = Board("r", "p2", epoch=2_000)
    orders = await new.poll(report("p1"), seen, wait_s=0.0)
    assert orders.epoch != seen
    assert orders.current["policy"] == "p2"


@pytest.mark.parametrize(("committing", "kind"), [(True, OutcomeUnknown), (False, LedgerUnavailable)])
def test_a_decision_whose_process_died_is_an_unknown_outcome_unless_it_was_a_dry_run(
    committing: bool, kind: type[HindcastError]
) -> None:
    told = undecided(ConnectionError("gone"), committing=committing)
    assert type(told) is kind
    assert problem_of(told).problem.status == 503


def test_what_a_replica_says_in_our_words_is_passed_on() -> None:
    wrapped = RuntimeError("wrapped by the way here")
    wrapped.__cause__ = NotReady("not yet")
    assert own_error(wrapped) is wrapped.__cause__
    assert own_error(RuntimeError("of somebody else")) is None
