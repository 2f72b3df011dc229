"""A sweep: every combination once, chosen on one half of the users and judged on the other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from serve_app.errors import ContradictoryPolicy, InvalidInput
from simulators.estimators import EstimateSettings, VerdictSettings
from simulators.replay.asking import spec_for
from simulators.replay.estimation import HALVES, half_of
from simulators.replay.job import run_replay
from simulators.replay.partition import TABLES_READ, read_partition
from simulators.replay.shard import Shard
from simulators.replay.sweep import Half, Point, SweepPlan, chosen, frontier, grid, load_sweep
from simulators.report.sweep import write_sweep
from simulators.report.tally import Tally
from simulators.world.publish import publish, read_world
from simulators.world.settings import world_settings

PLAN = SweepPlan(settings={"caps.global-3d.limit": [1, 2], "threshold": [0.06, 5.0]}, estimator="snips")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("sweep") / "data"
    publish(world_settings(users=620, items=60, days=5, seed=8), data)
    return data


@pytest.fixture(scope="module")
def result(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Shard:
    spec = spec_for(world, grid(read_world(world)[1], PLAN), halves=True)
    return run_replay(spec, tmp_path_factory.mktemp("out"), local=True)


def test_a_grid_is_every_combination(world: Path) -> None:
    found = grid(read_world(world)[1], PLAN)
    assert next(iter(found)) == "caps.global-3d.limit 1, threshold 0.06"
    assert sorted((one.caps[0].limit, one.threshold) for one in found.values()) == [(1, 0.06), (1, 5.0), (2, 0.06), (2, 5.0)]
    assert all(one.cells is None for one in found.values())


def test_halves_are_all_users_and_no_user_twice(world: Path, result: Shard) -> None:
    from serve_app.log.reader import bucket_groups

    partitions = [read_partition(group) for group in bucket_groups(world, TABLES_READ)]
    sizes = [0, 0]
    for one in partitions:
        for half in half_of(one.without(one.bots()).asked.users).tolist():
            sizes[half] += 1
    tally = Tally(result.counts)
    assert tally.by("logged", "half_users", "half") == dict(enumerate(sizes))
    assert abs(sizes[0] - sizes[1]) < 5 * sum(sizes) ** 0.5
    assert sum(tally.by("logged", "half_sends", "half").values()) == tally.total("logged", "sends")
    assert sum(result.sums.suites[half]["snips"].sums.users for half in HALVES) == result.suite["snips"].sums.users


def test_the_frontier_is_ordered_and_the_impossible_is_refused(result: Shard, tmp_path: Path) -> None:
    strict = frontier(result, PLAN)
    assert chosen(strict, PLAN) is None, "three hundred users are too few for the thresholds in force"
    lenient = EstimateSettings(verdict=VerdictSettings(refuse_ess_below=5, refuse_user_share_above=1))
    points = frontier(result, PLAN, lenient)
    assert len(points) == 4
    sends = [one.choose.sends for one in points]
    assert sends == sorted(sends)
    assert sends[-1] > sends[0]
    best = chosen(points, PLAN)
    assert best is not None
    assert best.best_for_its_sends
    assert best.choose.sends <= best.choose.logged_sends
    content = write_sweep(points, best, PLAN, tmp_path)
    assert content["chosen"] == best.name
    page = (tmp_path / "sweep.html").read_text()
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def _point(name: str, sends: float, difference: float | None) -> Point:
    half = Half(sends, 2.0, difference, difference, difference, "usable" if difference is not None else "refused")
    return Point(name, half, half, True)


def test_the_choice_keeps_to_what_may_be_sent_and_never_takes_a_refused_number() -> None:
    points = [_point("less", 1.0, 0.1), _point("same", 2.0, 0.2), _point("more", 3.0, 0.9), _point("unknown", 1.0, None)]
    assert getattr(chosen(points, PLAN), "name", None) == "same"
    assert getattr(chosen(points, PLAN.model_copy(update={"sends_at_most": 2.0})), "name", None) == "more"
    assert chosen([replace(points[3])], PLAN) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("settings: {}", "sweep.settings"),
        ("settings: {threshold: []}", "sweep.settings.threshold"),
        ("settings: {threshold: [0.1]}\nmetrik: clicks", "sweep.metrik"),
        ("settings: {threshold: [0.1]}\nmetric: opt_ins", "sweep.metric"),
        (f"settings: {{threshold: {list(range(40))}}}", "40 combinations"),
        ("settings: [", "cannot be read"),
    ],
)
def test_a_malformed_file_names_the_key(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    with pytest.raises(InvalidInput, match=said):
        load_sweep(path)


def test_a_path_that_leads_nowhere_is_named(world: Path) -> None:
    with pytest.raises(ContradictoryPolicy, match="no element 'nowhere'"):
        grid(read_world(world)[1], SweepPlan(settings={"caps.nowhere.limit": [1]}))


def test_cells_without_cells_are_refused_by_name(result: Shard) -> None:
    for half in HALVES:
        assert "cells" in result.sums.suites[half].labels
    with pytest.raises(InvalidInput, match="ips"):
        frontier(result, PLAN.model_copy(update={"estimator": "ips"}))
