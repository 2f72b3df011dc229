"""The coverage study in small: what 2,000 worlds show must already show in a few hundred."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from simulators.estimators import DR, IPS, SNIPS, Cells, Per, choice_worlds
from simulators.estimators.cap_worlds import CAP_WORLDS, METRICS, CapWorld, cap_rows, true_epoch
from simulators.estimators.choice_worlds import CHOICE_WORLDS, true_value, world_rows
from simulators.estimators.coverage import Outcome, refused_without_overlap, summary_of

WORLDS = 200
CLUSTERED = replace(CHOICE_WORLDS[-2], users=250, mean_decisions=16.0)  # rows of a user are much alike


def least_hits(worlds: int, coverage: float = 0.94) -> int:
    """Hits that a true coverage falls below once in a thousand such tests."""
    return int(stats.binom.ppf(0.001, worlds, coverage))


@pytest.fixture(scope="module")
def hits() -> dict[str, int]:
    """Intervals that hold the truth, of WORLDS, in clustered worlds."""
    truth, found = true_value(CLUSTERED), dict.fromkeys(("ips", "snips", "dr", "rows"), 0)
    for seed in range(WORLDS):
        rows = world_rows(CLUSTERED, seed)
        for kind in (IPS, SNIPS, DR):
            one = kind(["target"], choice_worlds.METRICS)
            one.update(rows)
            found[one.name] += one.interval("target", "click", Per.decision)[1].covers(truth)
        alone = IPS(["target"], choice_worlds.METRICS)
        alone.update(replace(rows, user=np.arange(len(rows), dtype=np.uint64)))
        found["rows"] += alone.interval("target", "click", Per.decision)[1].covers(truth)
    return found


@pytest.mark.parametrize("name", ["ips", "snips", "dr"])
def test_user_clustered_intervals_cover(hits: dict[str, int], name: str) -> None:
    assert hits[name] >= least_hits(WORLDS)


def test_row_level_intervals_do_not(hits: dict[str, int]) -> None:
    assert hits["rows"] <= 0.9 * WORLDS


def test_cells_cover_the_closed_loop_where_per_decision_weights_miss_it() -> None:
    world = replace(CAP_WORLDS[0], users=400)
    truth, error = true_epoch(world, users=60_000)
    covered, myopic, errors = 0, 0, []
    for seed in range(WORLDS):
        rows = cap_rows(world, seed)
        cells, ips = Cells(["target"], METRICS, cell_p=world.cell_p), IPS(["target"], METRICS)
        cells.update(rows)
        ips.update(rows)
        value, interval = cells.interval("target", "click", Per.decision)
        errors.append(value - truth["click"])
        covered += interval.covers(truth["click"])
        assert error["click"] < interval.half_width / 10
        myopic += ips.interval("target", "click")[1].covers(truth["click"] * world.epochs)
    assert covered >= least_hits(WORLDS)
    assert myopic <= 0.2 * WORLDS
    assert abs(np.mean(errors)) < 4 * np.std(errors) / np.sqrt(WORLDS)


@pytest.mark.parametrize("world", CAP_WORLDS[1:3], ids=lambda world: world.name)
def test_cells_cover_a_threshold_and_quiet_hours_too(world: CapWorld) -> None:
    small, seeds = replace(world, users=300), range(80)
    truth, _ = true_epoch(small, users=60_000)
    covered, errors, myopic = 0, [], []
    for seed in seeds:
        rows = cap_rows(small, seed)
        cells, ips = Cells(["target"], METRICS, cell_p=small.cell_p), IPS(["target"], METRICS)
        cells.update(rows)
        ips.update(rows)
        value, interval = cells.interval("target", "click", Per.decision)
        covered += interval.covers(truth["click"])
        errors.append(value - truth["click"])
        myopic.append(ips.point("target", "click").value / small.epochs - truth["click"])
    assert covered >= least_hits(len(seeds))
    assert abs(np.mean(errors)) < 4 * np.std(errors) / np.sqrt(len(seeds))
    assert abs(np.mean(myopic)) > 4 * np.std(myopic) / np.sqrt(len(seeds))  # it keeps the logged history


def test_no_overlap_is_refused_every_time() -> None:
    assert all(refused_without_overlap(seed) for seed in range(8))


def test_worlds_are_fixed_by_their_seed() -> None:
    for make, world in ((world_rows, CLUSTERED), (cap_rows, CAP_WORLDS[3])):
        one, again, other = (make(world, seed) for seed in (4, 4, 5))  # type: ignore[operator]
        assert one.reward.tobytes() == again.reward.tobytes()
        assert one.reward.tobytes() != other.reward.tobytes()


def test_coverage_is_counted_among_all_and_among_those_not_refused() -> None:
    made = [Outcome("w", seed, "ips", "click", seed < 3, seed > 3, 0.5, 1.0, 2.0) for seed in range(5)]
    (found,) = summary_of(made, by_world=False)
    assert (found.worlds, found.coverage, found.kept, found.coverage_kept) == (5, 0.6, 4, 0.75)
    assert (found.bias_in_half_widths, found.design_effect) == (0.5, 2.0)
