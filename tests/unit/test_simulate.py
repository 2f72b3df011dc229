"""The closed loop: equal policies differ by exactly nothing, a cap of nothing leaves the messages that caps do not bind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from typer.testing import CliRunner

from hindcast.cli import _register, app
from serve_app.log.reader import read_log
from serve_app.policy.document import PolicyDocument, canonical_json, load_policy, parse_policy
from serve_app.vocabulary import EventType, MessageClass, Surface
from simulators.replay.closed_loop import METRICS, lived, simulate, with_fatigue
from simulators.world.driver import World, world_policy
from simulators.world.publish import BEHAVIOUR, publish
from simulators.world.settings import WorldSettings, world_settings


@pytest.fixture(scope="module")
def settings() -> WorldSettings:
    return world_settings(users=150, items=80, days=6, seed=3)


@pytest.fixture(scope="module")
def behaviour() -> PolicyDocument:
    return load_policy(BEHAVIOUR)


def capped(document: PolicyDocument, limit: int) -> PolicyDocument:
    body: dict[str, Any] = orjson.loads(canonical_json(document))
    caps = [{**one, "limit": limit} for one in body["caps"]]
    return parse_policy({**body, "caps": caps, "cells": None})


def test_the_same_policy_differs_by_exactly_nothing(settings: WorldSettings, behaviour: PolicyDocument) -> None:
    again = parse_policy({**orjson.loads(canonical_json(behaviour)), "name": "under another name"})
    found = simulate(settings, behaviour, {"again": again}, days=6, fatigue=(0.0, 1.0))
    assert len(found.differences) == 2 * len(METRICS)
    assert {(one.difference, one.low, one.high) for one in found.differences} == {(0.0, 0.0, 0.0)}
    assert found.differences[0].baseline > 1


def test_a_cap_of_nothing_leaves_transactional_messages(settings: WorldSettings, behaviour: PolicyDocument) -> None:
    world, sent = World(settings), []
    for day in world.run(world_policy(capped(behaviour, 0))):
        for one in day.decided:
            sent += world.model.campaigns.message_class[one.sent.campaign[one.granted]].tolist()
    assert set(sent) == {int(MessageClass.transactional)}
    found = simulate(settings, behaviour, {"none": capped(behaviour, 0)}, days=6, fatigue=(1.0,))
    sends = found.differences[0]
    assert sends.metric == "sends"
    assert sends.high < 0
    assert sends.value * found.users <= len(sent)


def test_fewer_days_and_other_people(settings: WorldSettings, behaviour: PolicyDocument) -> None:
    calls: list[int] = []
    short = lived(World(settings), behaviour, 2, progress=lambda: calls.append(1))
    assert len(calls) == 2
    whole = lived(World(settings), behaviour, 6)
    assert (short <= whole).all()
    tired = lived(World(with_fatigue(settings, 5.0)), behaviour, 6)
    assert not np.array_equal(tired, whole)


def test_the_totals_are_those_of_the_worlds_log(settings: WorldSettings, behaviour: PolicyDocument, tmp_path: Path) -> None:
    publish(settings, tmp_path / "w")
    world = World(settings)
    people = set(world.model.population.user[~world.model.population.bot].tolist())
    total = lived(world, behaviour, settings.days).sum(axis=0)
    decisions = read_log(tmp_path / "w", "decisions").to_pandas()
    sends = decisions[(decisions.surface == int(Surface.notification)) & decisions.granted & (decisions.slot >= 0)]
    sends = sends[(sends.campaign != 0) & sends.user.isin(people)]
    assert total[0] == len(sends[sends.chosen_idx >= 0])
    events = read_log(tmp_path / "w", "events").to_pandas().drop_duplicates("event_id")
    events = events[events.user.isin(people)]
    assert total[2] == (events.type == int(EventType.conversion)).sum()
    assert total[3] == pytest.approx(events[events.type == int(EventType.conversion)].amount.sum())
    assert total[4] == (events.type == int(EventType.opt_out)).sum()
    assert total[1] == ((events.type == int(EventType.click)) & events.campaign.fillna(0).ne(0)).sum()


def test_the_command_says_model_and_writes_what_it_found(
    settings: WorldSettings, behaviour: PolicyDocument, tmp_path: Path
) -> None:
    publish(settings, tmp_path / "w")
    (tmp_path / "none.json").write_bytes(canonical_json(capped(behaviour, 0)))
    _register()
    command = ["simulate", "--data", str(tmp_path / "w"), "--policy", str(tmp_path / "none.json"), "--days", "2"]
    done = CliRunner().invoke(app, [*command, "--fatigue", "1", "--out", str(tmp_path / "found.json")])
    assert done.exit_code == 0, done.output
    assert "MODEL" in done.output
    written = json.loads((tmp_path / "found.json").read_text())
    assert (written["kind"], written["days"]) == ("model", 2)
    assert {one["metric"] for one in written["differences"]} == set(METRICS)
