"""Bots, example users, breakdowns, attribution windows and holdouts of a replay, against what the log itself says."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd
import pyarrow.compute as pc
import pytest

from serve_app.errors import DamagedArtifact, InvalidInput
from serve_app.log.reader import bucket_groups, read_log
from serve_app.policy.document import PolicyDocument, canonical_json, load_policy, parse_policy
from serve_app.vocabulary import Action, EventType, Surface
from simulators.estimators import Per
from simulators.replay.asking import spec_for
from simulators.replay.estimation import WINDOWS
from simulators.replay.examples import add_examples, examples_from
from simulators.replay.partition import TABLES_READ
from simulators.replay.shard import Shard, empty_shard, read_shard, replay_group, write_shard
from simulators.replay.spec import CONTROL, ReplaySpec
from simulators.replay.trials import holdouts_of
from simulators.report.content import content_of
from simulators.report.simulated import load_simulated
from simulators.report.tally import Tally
from simulators.report.write import write_report
from simulators.world.publish import BEHAVIOUR, publish, read_world
from simulators.world.settings import world_settings

DAY_US = 86_400_000_000


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("details") / "data"
    settings = world_settings(users=260, items=100, days=8, seed=23).model_copy(update={"bot_share": 0.08})
    body = load_policy(BEHAVIOUR).model_dump(mode="json")
    body["holdouts"][0]["percent"] = 30.0
    publish(settings, data, policy=parse_policy(body))
    return data


@pytest.fixture(scope="module")
def behaviour(world: Path) -> PolicyDocument:
    return read_world(world)[1]


def stricter(document: PolicyDocument) -> PolicyDocument:
    body: dict[str, Any] = orjson.loads(canonical_json(document))
    return parse_policy({**body, "caps": [{**one, "limit": 1} for one in body["caps"]], "cells": None})


@pytest.fixture(scope="module")
def spec(world: Path, behaviour: PolicyDocument) -> ReplaySpec:
    return spec_for(world, {"strict": stricter(behaviour), "same": behaviour}, outcome_us=3 * DAY_US)


@pytest.fixture(scope="module")
def shards(world: Path, spec: ReplaySpec) -> list[Shard]:
    return [replay_group(group, spec) for group in bucket_groups(world, TABLES_READ)]


@pytest.fixture(scope="module")
def whole(spec: ReplaySpec, shards: list[Shard]) -> Shard:
    return sum(shards, empty_shard(spec))


def asked_users(world: Path) -> set[int]:
    rows = read_log(world, "requests", columns=["user", "surface"])
    return set(rows.filter(pc.equal(rows["surface"], int(Surface.notification)))["user"].to_pylist())


def bots(world: Path) -> set[int]:
    rows = read_log(world, "events", columns=["user", "type"])
    return set(rows.filter(pc.equal(rows["type"], int(EventType.bot)))["user"].to_pylist())


def test_bots_stand_in_no_count_and_in_parity(world: Path, whole: Shard) -> None:
    tally, known = Tally(whole.counts), bots(world) & asked_users(world)
    assert len(known) > 5
    assert tally.total("logged", "bots") == len(known)
    assert tally.total("logged", "users") == len(asked_users(world)) - len(known) == tally.total("same", "users")
    assert whole.parity.same == whole.parity.requests
    assert tally.total("logged", "decisions", "reason") + tally.total("logged", "decisions_of_bots") == whole.requests
    assert known.isdisjoint(one.user for one in whole.examples)


def test_examples_are_the_same_however_the_log_is_cut(shards: list[Shard], whole: Shard, tmp_path: Path) -> None:
    assert len(shards) > 1
    backwards: list[Any] = []
    for one in reversed(shards):
        backwards = add_examples(backwards, one.examples)
    assert backwards == whole.examples
    assert examples_from([one.plain() for one in whole.examples]) == whole.examples


def test_an_example_shows_a_whole_day_with_a_difference(world: Path, whole: Shard) -> None:
    shown = [one for one in whole.examples if one.policy == "strict"]
    assert len(shown) == 6
    assert not [one for one in whole.examples if one.policy == "same"], "nothing changed under the log's own policy"
    requests = read_log(world, "requests", columns=["user", "surface", "decided_at"]).to_pandas()
    for one in shown:
        assert any(moment.logged != moment.target for moment in one.moments)
        assert len({moment.local // DAY_US for moment in one.moments}) == 1
        offset = (one.moments[0].local - one.moments[0].at + 500_000) // 1_000_000 * 1_000_000
        own = requests[(requests.user == one.user) & (requests.surface == int(Surface.notification))].decided_at
        that_day = own[(own + offset) // DAY_US == one.moments[0].local // DAY_US]
        assert sorted(moment.at for moment in one.moments if moment.logged) == sorted(that_day)


def test_a_part_survives_its_file(spec: ReplaySpec, shards: list[Shard], tmp_path: Path) -> None:
    write_shard(tmp_path / "part.npz", shards[0])
    again = read_shard(tmp_path / "part.npz", spec)
    assert again.examples == shards[0].examples
    for name, one in shards[0].sums.to_arrays().items():
        assert np.array_equal(one, again.sums.to_arrays()[name]), name


@pytest.mark.parametrize("by", ["channel", "category", "campaign", "day"])
def test_the_parts_of_a_breakdown_add_up_to_the_whole(whole: Shard, by: str) -> None:
    suite = whole.suite
    parts = suite[f"ips by {by}"]
    assert parts.grouping is not None
    total = sum(parts.point("strict", "clicks", group=i).value for i in range(len(parts.grouping.labels)))
    assert total == pytest.approx(suite["ips"].point("strict", "clicks").value, rel=1e-9)


def test_shorter_windows_hold_no_more_and_the_whole_one_is_the_replays_own(whole: Shard) -> None:
    windows = whole.sums.suites[WINDOWS]["snips"]
    clicks = [windows.point("logged", f"clicks within {share}", Per.user).value for share in ("W/4", "W/2", "W")]
    assert clicks == sorted(clicks)
    assert clicks[-1] == whole.suite["snips"].point("logged", "clicks").value > 0


def _expected_trial(world: Path, key: str, spec: ReplaySpec) -> pd.DataFrame:
    """Users of the global holdout by a few lines of pandas: arm, trigger, conversions and revenue in three days."""
    rows = read_log(world, "candidates").to_pandas()
    would = rows[((rows.slot >= 0) | rows.ghost) & (rows.message_class > 0)]
    if key == "global-5":
        would = would[(would.holdout <= 0) | ~would.ghost]
    first = would.sort_values(["user", "order", "ts", "idx"]).groupby("user").first()
    first = first[first.ghost_first & ~first.index.isin(bots(world))]
    first = first[first.ts + 3 * DAY_US <= spec.log_end]
    events = read_log(world, "events").to_pandas()
    bought = events[events.type == int(EventType.conversion)].merge(first[["ts"]], left_on="user", right_index=True)
    bought = bought[(bought.ts_x >= bought.ts_y) & (bought.ts_x < bought.ts_y + 3 * DAY_US)]
    first["conversions"] = bought.groupby("user").size().reindex(first.index).fillna(0)
    first["revenue"] = bought.groupby("user").amount.sum().reindex(first.index).fillna(0)
    return first


def test_incrementality_is_what_pandas_finds(world: Path, whole: Shard, spec: ReplaySpec) -> None:
    trial, expected = whole.sums.trials["global-5"], _expected_trial(world, "global-5", spec)
    held = expected.ghost
    assert trial.users() == {"held out": int(held.sum()), "sent": int((~held).sum())}
    assert held.sum() > 20
    for name in ("conversions", "revenue"):
        difference = expected[name][~held].mean() - expected[name][held].mean()
        assert trial.effect("sent", name).value == pytest.approx(difference, rel=1e-9, abs=1e-12)
    assert trial.effect("sent", "sends").value > 0
    assert trial.sample_ratio([0.3, 0.7]).matches


def test_a_holdout_whose_share_changed_is_no_trial(behaviour: PolicyDocument) -> None:
    body: dict[str, Any] = orjson.loads(canonical_json(behaviour))
    body["holdouts"][0]["percent"] = 10.0
    texts = [canonical_json(one).decode() for one in (behaviour, parse_policy(body))]
    assert [one.name for one in holdouts_of(texts[:1])] == ["campaign-ad-004", "global-5"]
    assert [one.name for one in holdouts_of(texts)] == ["campaign-ad-004"]


def test_the_content_is_plain_and_says_what_would_help(whole: Shard, spec: ReplaySpec) -> None:
    content = content_of(whole, spec, names={})
    orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    rows = [one for one in content["outcomes"] if one["policy"] == "strict"]
    assert rows
    for one in rows:
        assert ("difference" in one) == (one["standing"] != "refused")
        assert "difference" not in one or one["detectable"] > 0
    assert any("days" in one["plan"] for one in rows)
    assert {one["by"] for one in content["outcomes_by"]} == {"channel", "day", "campaign", "category"}
    first = content["examples"][0]["moments"][0]
    assert first["logged"]["action"] in {one.name for one in Action}
    assert {one["holdout"] for one in content["incrementality"]} == {"campaign-ad-004", "global-5"}


def test_the_page_shows_every_section_and_needs_no_network(whole: Shard, spec: ReplaySpec, tmp_path: Path) -> None:
    content = write_report(whole, spec, tmp_path, {}, allow_mismatch=False)
    page = (tmp_path / "report.html").read_text()
    for heading in ("attribution window", "won and lost", "What messages cause", "Users whose day changed", "Left out"):
        assert heading in page, heading
    assert "http" not in page.replace("http://www.w3.org", "")
    users = read_log(world_of(spec), "users").to_pandas()
    assert {one["user"] for one in content["examples"]} <= set(users.user_id)
    assert json.loads((tmp_path / "report.json").read_bytes()) == json.loads(orjson.dumps(content))


def world_of(spec: ReplaySpec) -> Path:
    return Path(spec.data)


def test_a_window_of_the_log_bounds_days_and_examples(world: Path, spec: ReplaySpec) -> None:
    start = spec.log_start + 4 * DAY_US
    later = replace(spec_for(world, {}, start=start), targets=spec.targets)
    (days,) = [one.keys for one in later.breakdowns if one.name == "day"]
    assert min(days) * DAY_US == start
    found = sum((replay_group(group, later) for group in bucket_groups(world, TABLES_READ)), empty_shard(later))
    assert all(moment.at >= start - DAY_US for one in found.examples for moment in one.moments)
    assert asdict(later)["start"] == start
    assert CONTROL not in Tally(found.counts).days("strict", "sends")


def test_every_link_of_the_page_leads_somewhere_and_nothing_is_loaded(
    whole: Shard, spec: ReplaySpec, tmp_path: Path
) -> None:
    write_report(whole, spec, tmp_path, {}, allow_mismatch=False, command="hindcast replay --policy strict.yaml --out DIR")
    page = (tmp_path / "report.html").read_text()
    targets = set(re.findall(r'href="#([^"]+)"', page))
    assert len(targets) > 6
    assert targets <= set(re.findall(r' id="([^"]+)"', page))
    assert not re.findall(r"<script|<link|<img|src=|@import|url\((?!#)", page)
    assert len(page) < 3_000_000
    assert "hindcast replay --policy strict.yaml" in page


def test_the_same_replay_gives_the_same_bytes(whole: Shard, spec: ReplaySpec, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_report(whole, spec, tmp_path / name, {}, allow_mismatch=False)
    for name in ("report.html", "report.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_what_is_refused_is_in_neither_file(whole: Shard, spec: ReplaySpec, tmp_path: Path) -> None:
    content = write_report(whole, spec, tmp_path, {}, allow_mismatch=False)
    refused = [one for one in content["outcomes"] if one["standing"] == "refused" and one["policy"] == "strict"]
    assert refused
    for one in refused:
        suite = whole.suite[one["estimator"]]
        own, logged = (suite.point(name, one["metric"], Per(one["per"])).value for name in ("strict", "logged"))
        number = own - logged
        if one["metric"] == "sends" or not np.isfinite(number) or number == 0:
            continue
        for name in ("report.html", "report.json"):
            assert repr(number) not in (tmp_path / name).read_text()
    for found in content["headline"].values():
        for one in found.values():
            assert ("difference" in one) == (one["standing"] != "refused")


def test_the_json_is_documented(whole: Shard, spec: ReplaySpec) -> None:
    content = content_of(whole, spec, names={})
    said = (Path(__file__).parents[2] / "docs" / "replay-report.md").read_text()
    assert f'"version": {content["schema"]["version"]}' in said
    rows = "\n".join(line.split("|")[1] for line in said.splitlines() if line.startswith("| `"))
    assert {name for name in content if f"`{name}`" not in rows} == set()


def test_a_simulation_is_shown_and_called_a_model(whole: Shard, spec: ReplaySpec, tmp_path: Path) -> None:
    numbers = {"fatigue": 1.0, "value": 0.5, "baseline": 1.0, "difference": -0.5, "low": -0.6, "high": -0.4}
    row = {"policy": "strict", "metric": "clicks", **numbers}
    file = tmp_path / "model.json"
    file.write_bytes(orjson.dumps({"kind": "model", "users": 10, "days": 3, "differences": [row, {**row, "policy": "x"}]}))
    found = load_simulated(file, ["strict", "same"])
    assert [one["policy"] for one in found["differences"]] == ["strict"]
    write_report(whole, spec, tmp_path, {}, allow_mismatch=False, simulated=found)
    page = (tmp_path / "report.html").read_text()
    assert "a model, not a measurement" in page
    assert "−500" in page
    with pytest.raises(InvalidInput, match="strict, x"):
        load_simulated(file, ["other"])
    file.write_text("{}")
    with pytest.raises(DamagedArtifact, match="simulate --out"):
        load_simulated(file, ["strict"])
