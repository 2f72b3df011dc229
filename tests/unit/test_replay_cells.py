"""Targets that no cell of the log could imitate, and such as are one, in a replay's estimates by cells."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
import pytest

from serve_app.log.reader import bucket_groups
from serve_app.policy.document import PolicyDocument, canonical_json, load_policy, parse_policy
from simulators.estimators import EstimateSettings, Rows
from simulators.estimators.verdicts import Standing, Verdict, judge
from simulators.replay.asking import spec_for
from simulators.replay.estimation import MAIN, new_suites, update_suites
from simulators.replay.estimation_rows import estimation_rows
from simulators.replay.opening import behaviour_of
from simulators.replay.partition import TABLES_READ, Partition, read_partition
from simulators.replay.spec import ReplaySpec, compiled
from simulators.world.publish import BEHAVIOUR, publish, read_world
from simulators.world.settings import world_settings

Found = tuple[ReplaySpec, Rows, Partition]
LIMITS = {cap.id: cap.limit for cap in load_policy(BEHAVIOUR).caps}


def _target(body: dict[str, Any], limits: dict[str, int], **settings: Any) -> PolicyDocument:
    caps = [{**one, "limit": limits.get(one["id"], one["limit"])} for one in body["caps"]]
    return parse_policy({**body, "caps": caps, "cells": None, **settings})


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    data = tmp_path_factory.mktemp("cells") / "data"
    publish(world_settings(users=250, items=80, days=8, seed=31), data, policy=load_policy(BEHAVIOUR))
    body = orjson.loads(canonical_json(read_world(data)[1]))
    drawn = [
        {"id": "base", "probability": 0.5},
        {"id": "loose", "probability": 0.5, "overrides": {"caps.global-3d.limit": 3}},
    ]
    targets = {
        "base": _target(body, {}),
        "loose": _target(body, {"global-3d": 3}),
        "picky": _target(body, {}, threshold=0.15),
        "two of them": _target(body, {}, cells=body["cells"] | {"variants": drawn}),
        "far": _target(body, dict.fromkeys(LIMITS, 50)),
        "far or base": _target(
            body, {}, cells=body["cells"]
            | {"variants": [drawn[0], {"id": "far", "probability": 0.5, "overrides": {
                f"caps.{name}.limit": 50 for name in LIMITS}}]},
        ),
    }  # fmt: skip
    spec = spec_for(data, targets, estimators=("snips", "cells"))
    partition = read_partition(bucket_groups(data, TABLES_READ)[0])
    return spec, _rows(partition, spec), partition


def _rows(partition: Partition, spec: ReplaySpec) -> Rows:
    targets = [compiled(one, spec.heads) for one in spec.targets]
    return estimation_rows(partition, spec, targets, behaviour_of(partition.asked, spec))


def _verdicts(found: Found) -> dict[str, tuple[float, Verdict]]:
    spec, rows, _ = found
    suites = new_suites(spec)
    update_suites(suites, rows)
    diagnostics = suites[MAIN]["cells"].diagnostics
    assert diagnostics is not None
    every = {name: diagnostics.of(p) for p, name in enumerate(diagnostics.policies)}
    return {name: (one.unsupported, judge(one, EstimateSettings().verdict)) for name, one in every.items()}


def test_a_target_that_is_a_cell_or_draws_some_of_them_loses_nothing(found: Found) -> None:
    verdicts = _verdicts(found)
    for name in (next(iter(verdicts)), "base", "loose", "picky", "two of them"):
        share, verdict = verdicts[name]
        assert share == 0.0
        assert not any("could not be logged" in one for one in verdict.reasons), name


def test_a_target_with_limits_no_cell_has_is_refused_for_what_no_cell_could_do(found: Found) -> None:
    verdicts = _verdicts(found)
    for name in ("far", "far or base"):
        share, verdict = verdicts[name]
        assert verdict.standing is Standing.refused
        assert f"{share:.2%} of the target's choices could not be logged" in verdict.reasons
    assert verdicts["far or base"][0] == pytest.approx(verdicts["far"][0] / 2)


def test_mass_beyond_the_cells_is_less_than_beyond_the_one_in_force(found: Found) -> None:
    spec, rows, _ = found
    place = 1 + [one.name for one in spec.targets].index("loose")
    assert rows.unsupported[:, place].sum() > 0.0 == rows.extra["cell_unsupported"][:, place].sum()
    far = 1 + [one.name for one in spec.targets].index("far")
    assert (rows.extra["cell_unsupported"][:, far] <= rows.unsupported[:, far] + 1e-12).all()


def test_scores_of_another_release_that_are_the_logged_ones_lose_the_same(found: Found) -> None:
    spec, rows, partition = found
    batch = partition.asked.batch
    again = partition.with_asked(replace(partition.asked, rescored=(batch.meta["heads"], batch.candidates["heads"])))
    twice = _rows(again, spec)
    for name in ("cell_probability", "cell_unsupported", "cells of far or base", "unsupported of far or base"):
        assert twice.extra[name].tobytes() == rows.extra[name].tobytes(), name
