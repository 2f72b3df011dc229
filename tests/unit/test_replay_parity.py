"""The log, replayed under its own policy, gives itself."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from serve_app.log.reader import bucket_groups
from simulators.replay.course import Course, follow_log, in_waves
from simulators.replay.parity import Parity, ParityCheck
from simulators.replay.partition import TABLES_READ, Partition, read_partition
from simulators.world.driver import world_policy
from simulators.world.publish import publish, read_world
from simulators.world.settings import world_settings
from tests.unit.waves import WaveCourse, follow_policy


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("replay") / "data"
    publish(world_settings(users=250, items=120, days=9, seed=11), data)
    return data


@pytest.fixture(scope="module")
def partitions(world: Path) -> list[Partition]:
    return [read_partition(group) for group in bucket_groups(world, TABLES_READ)]


def _parity(world: Path, partition: Partition) -> Parity:
    policy = world_policy(read_world(world)[1])
    course = Course(partition.asked, [policy], partition.start, partition.failures())
    check = ParityCheck(partition.asked)
    follow_log(partition.asked, course, check)
    return check.result()


def test_every_logged_decision_comes_out_bit_for_bit(world: Path, partitions: list[Partition]) -> None:
    total = sum((_parity(world, one) for one in partitions), Parity())
    assert total.requests > 2_000
    assert total.columns == {}, total.examples
    assert total.same == total.requests


def test_a_changed_log_is_noticed_and_shown(world: Path, partitions: list[Partition]) -> None:
    asked = partitions[0].asked
    row = int(np.flatnonzero(asked.logged["action"] == 1)[0])
    logged = asked.logged["p_none"][row]
    asked.logged["p_none"][row] = np.nextafter(logged, 1.0)
    try:
        found = _parity(world, partitions[0])
    finally:
        asked.logged["p_none"][row] = logged
    assert found.columns == {"p_none": 1}
    assert found.examples[0].request_id == asked.batch.requests["request_id"][row]


def test_the_logs_own_policy_on_its_own_course_asks_and_decides_the_same(world: Path, partitions: list[Partition]) -> None:
    policy = world_policy(read_world(world)[1])
    for one in partitions:
        known = follow_log(one.asked, Course(one.asked, [policy], one.start, one.failures()), ParityCheck(one.asked))
        check = ParityCheck(one.asked)
        course = WaveCourse(one.asked, [policy], one.start, one.failures())
        carried = follow_policy(one.asked, course, check, since=0, known=known)
        assert carried == 0
        assert check.result().same == len(one.asked)


def test_waves_hold_each_user_once_and_all_rows_in_order() -> None:
    users = np.array([0, 0, 0, 2, 5, 5])
    order, bounds = in_waves(users)
    waves = [order[a:b].tolist() for a, b in pairwise(bounds)]
    assert waves == [[0, 3, 4], [1, 5], [2]]
