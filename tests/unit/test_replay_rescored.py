"""Targets weigh the scores of another release, heads the log never had among them; the policy that logged keeps its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest

from serve_app.log.reader import bucket_groups
from serve_app.policy.document import canonical_json, parse_policy
from serve_app.vocabulary import Reason
from simulators.replay import shard
from simulators.replay.course import Course, follow_log
from simulators.replay.parity import ParityCheck
from simulators.replay.partition import TABLES_READ, read_partition
from simulators.replay.spec import ReplaySpec, Target, compiled
from simulators.report.tally import Tally
from simulators.world.publish import publish, read_world
from simulators.world.settings import world_settings

EVER = 2**62


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("rescored") / "data"
    publish(world_settings(users=120, items=80, days=5, seed=5), data)
    return data


def _reasons(world: Path, score: float) -> dict[int, int]:
    """Of a target that weighs `p_new` alone, which every candidate has at this score."""
    body = orjson.loads(canonical_json(read_world(world)[1]))
    logged = Target("logged", canonical_json(read_world(world)[1]).decode())
    surfaces = {**body["surfaces"], "notification": {**body["surfaces"]["notification"], "head_weights": {"p_new": 1.0}}}
    new = parse_policy(body | {"surfaces": surfaces, "threshold": 0.5, "cells": None})
    spec = ReplaySpec(
        str(world), (Target("new", canonical_json(new).decode()),), (logged,), -EVER, EVER, estimators=("ips", "snips")
    )
    partition = read_partition(bucket_groups(world, TABLES_READ)[0])
    asked = partition.asked
    behaviour = [compiled(logged, tuple(asked.batch.meta["heads"]))]
    course = Course(asked, behaviour, partition.start, partition.failures())
    known = follow_log(asked, course, ParityCheck(asked))
    scores = np.full((asked.batch.candidates.rows, 1), score, np.float32)
    people = partition.with_asked(replace(asked, rescored=(("p_new",), scores)))
    return Tally(shard._judged(people, known, behaviour, ("p_new",), spec).counts).by("new", "decisions", "reason")


def test_a_head_that_was_never_logged_decides(world: Path) -> None:
    good, bad = _reasons(world, 0.9), _reasons(world, 0.1)
    assert good.get(Reason.below_threshold, 0) == 0
    assert bad[Reason.below_threshold] > 50
    assert good[Reason.chosen] > bad[Reason.chosen]


def test_what_the_release_does_not_score_is_not_sent(world: Path) -> None:
    found = _reasons(world, float("nan"))
    assert found[Reason.not_scored] > 50
    assert found.get(Reason.below_threshold, 0) == 0
