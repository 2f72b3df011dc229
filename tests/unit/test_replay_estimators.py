"""A replay's own estimators: the outcome model, the weighted reward, windows of attribution, segments, roll-out."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from serve_app.batch import Batch, Columns
from serve_app.columns import REQUEST_COLUMNS
from serve_app.errors import InvalidInput
from serve_app.log.reader import bucket_groups
from serve_app.policy.document import canonical_json, load_policy, parse_policy
from simulators.estimators import Estimated, EstimateSettings, Per, Standing, VerdictSettings
from simulators.replay.analytic import first_sends
from simulators.replay.asking import estimators_named, spec_for
from simulators.replay.estimation import MAIN, metrics_of, segments_of
from simulators.replay.estimation_rows import _all_codes, estimation_blocks, estimation_rows
from simulators.replay.opening import behaviour_of
from simulators.replay.outcome_features import FeaturePlan, recent_sends
from simulators.replay.outcomes import NEEDS_MODEL, Predicted, with_outcome_model
from simulators.replay.partition import TABLES_READ, Partition, read_partition
from simulators.replay.rewards import METRICS, attributed, attributed_within, reward_of, reward_weights
from simulators.replay.roll_out import ASSUMED, ROLL_OUT
from simulators.replay.shard import Shard, empty_shard, read_shard, replay_group, write_shard
from simulators.replay.spec import CONTROL, FULL, QUICK, ReplaySpec, Target, compiled
from simulators.report.details import numbers
from simulators.world.publish import BEHAVIOUR, publish, read_world
from simulators.world.settings import world_settings

HOUR_US = 3_600_000_000


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("estimators") / "data"
    publish(world_settings(users=300, items=100, days=8, seed=29), data, policy=load_policy(BEHAVIOUR))
    return data


@pytest.fixture(scope="module")
def partition(world: Path) -> Partition:
    return read_partition(bucket_groups(world, TABLES_READ)[0])


@pytest.fixture(scope="module")
def spec(world: Path, tmp_path_factory: pytest.TempPathFactory) -> ReplaySpec:
    behaviour = read_world(world)[1]
    body: dict[str, Any] = orjson.loads(canonical_json(behaviour))
    strict = parse_policy({**body, "caps": [{**one, "limit": 1} for one in body["caps"]], "cells": None})
    same = parse_policy({**body, "cells": None})
    asked = spec_for(world, {"strict": strict, "same": same}, estimators=FULL)
    return with_outcome_model(asked, tmp_path_factory.mktemp("out"))


@pytest.fixture(scope="module")
def whole(world: Path, spec: ReplaySpec) -> Shard:
    return sum((replay_group(group, spec) for group in bucket_groups(world, TABLES_READ)), empty_shard(spec))


def test_rewards_within_several_windows_are_those_of_each(partition: Partition) -> None:
    windows = [HOUR_US, 24 * HOUR_US, 100 * HOUR_US]
    together = attributed_within(partition.asked, partition.events, windows)
    for place, window in enumerate(windows):
        assert (together[:, place] == attributed(partition.asked, partition.events, window)).all()
    assert (np.diff(together, axis=1) >= 0).all()
    assert together[:, 0, 1].sum() < together[:, 1, 1].sum()


def test_blocks_of_users_hold_the_rows_of_all(partition: Partition, spec: ReplaySpec) -> None:
    policies = [compiled(one, spec.heads) for one in spec.targets], behaviour_of(partition.asked, spec)
    blocks = list(estimation_blocks(partition, spec, *policies, most=100))
    whole = vars(estimation_rows(partition, spec, *policies))
    assert len(blocks) > 3
    assert not any(one.user[-1] == other.user[0] for one, other in pairwise(blocks))
    for name in ("user", "propensity", "target", "reward", "send", "target_send", "unsupported", "q_logged", "q_target"):
        assert (np.concatenate([vars(one)[name] for one in blocks]) == whole[name]).all(), name
    for kind in ("groups", "extra"):
        assert whole[kind]
        for name, values in whole[kind].items():
            assert (np.concatenate([vars(one)[kind][name] for one in blocks]) == values).all(), name


def test_the_reward_is_the_weighted_sum_of_the_others(whole: Shard, spec: ReplaySpec) -> None:
    weights, suite = dict(spec.reward), whole.sums.suites[MAIN]
    assert weights == {"clicks": 1.0, "conversions": 4.0, "opt_outs": -8.0}
    for label in ("ips", "snips", "dr", "cells"):
        parts = sum(weight * suite[label].point("strict", name).value for name, weight in weights.items())
        assert suite[label].point("strict", "reward").value == pytest.approx(parts, rel=1e-9)


def test_weights_of_the_reward_are_read_and_wrong_ones_named() -> None:
    assert reward_weights("click=1, conversion=20,opt_out=-50") == (
        ("clicks", 1.0),
        ("conversions", 20.0),
        ("opt_outs", -50.0),
    )
    assert dict(reward_of(load_policy(BEHAVIOUR))) == {"clicks": 1.0, "conversions": 4.0, "opt_outs": -8.0}
    for text in ("joy=1", "click", "click=x", "click=1,clicks=2", "click=inf"):
        with pytest.raises(InvalidInput, match="reward"):
            reward_weights(text)


def test_estimators_are_named_and_snips_is_always_there() -> None:
    assert estimators_named("quick") == QUICK
    assert estimators_named("full") == FULL
    assert estimators_named("dr,ips") == ("snips", "dr", "ips")
    with pytest.raises(InvalidInput, match="no estimator 'best'"):
        estimators_named("best")


def test_dr_knows_sends_exactly_and_agrees_with_ips_within_both_intervals(whole: Shard) -> None:
    suite = whole.sums.suites[MAIN]
    known = suite["snips"].point("strict", "sends").value
    assert suite["dr"].point("strict", "sends").value == pytest.approx(known, rel=1e-9)
    for metric in ("clicks", "reward"):
        dr, ips = (suite[label].interval("strict", metric)[1] for label in ("dr", "ips"))
        assert dr.low < ips.high
        assert ips.low < dr.high


def test_the_model_is_saved_once_and_named_by_its_checksum(world: Path, spec: ReplaySpec, tmp_path: Path) -> None:
    asked = replace(spec, outcome=None)
    first = with_outcome_model(asked, tmp_path)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert with_outcome_model(asked, tmp_path) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == stamps
    assert first.outcome is not None
    assert spec.outcome is not None
    assert first.outcome.checksum == spec.outcome.checksum
    other = replace(first, outcome=replace(first.outcome, checksum="0" * 64))
    assert first.digest([]) != other.digest([])
    assert with_outcome_model(replace(asked, estimators=QUICK), tmp_path).outcome is None


def test_a_log_without_sends_is_replayed_without_a_model(world: Path, spec: ReplaySpec, tmp_path: Path) -> None:
    nothing = with_outcome_model(replace(spec, outcome=None, start=spec.log_end, end=spec.log_end + 1), tmp_path)
    assert nothing.outcome is None
    assert not NEEDS_MODEL & set(nothing.estimators)


def test_history_features_are_those_of_a_loop(partition: Partition) -> None:
    asked, found = partition.asked, recent_sends(partition.asked, partition.start)
    at, day = asked.batch.requests["decided_at"], 24 * HOUR_US
    sent = asked.logged["granted"] & np.isin(np.arange(len(asked)), asked.batch.owner[asked.logged_candidates["slot"] >= 0])
    sent_rows = np.flatnonzero(sent)
    for row in sent_rows[:: max(len(sent_rows) // 25, 1)]:
        user = asked.owner[row]
        entries = partition.start.entries[partition.start.offsets[user] : partition.start.offsets[user + 1]]
        before = [*entries["at"][entries["holdout"] == 0], *at[:row][sent[:row] & (asked.owner[:row] == user)]]
        expected = [sum(one > at[row] - days * day for one in before) for days in (1, 3, 7)]
        assert found[row, :3].tolist() == expected


def test_a_plan_is_what_its_names_say() -> None:
    plan = FeaturePlan(("p_click", "uplift"), (3, 2**63), (5,))
    assert FeaturePlan.of(plan.names) == plan


def test_predictions_do_not_depend_on_how_many_are_made_together(partition: Partition, spec: ReplaySpec) -> None:
    assert spec.outcome is not None
    predicted, places = Predicted(partition, spec.outcome), np.arange(60)
    together = predicted.of(places)
    alone = np.concatenate([predicted.of(places[k : k + 1]) for k in places])
    assert together.tobytes() == alone.tobytes()
    assert (together[:, METRICS.index("sends")] == 1).all()


def test_segments_are_users_parts_of_the_whole(whole: Shard, spec: ReplaySpec) -> None:
    suite = whole.sums.suites[MAIN]
    labels = [one for one in suite.labels if one.startswith("ips by segment")]
    assert labels == [f"ips by segment {one}" for one in segments_of(spec)]
    for label in labels:
        totals = [suite[label]._moments(group) for group in range(2)]
        whole_total = suite["ips"].sums.moments().total
        place, other = suite[label]._place["reward.1.1"], suite["ips"]._place["reward.1.1"]
        assert sum(one[0].total[place] for one in totals) == pytest.approx(whole_total[other], rel=1e-12)


def test_members_of_a_segment_are_those_the_log_names(partition: Partition, spec: ReplaySpec) -> None:
    body = orjson.loads(spec.behaviour[0].document)
    defined = [{"id": one, "where": {"kind": "bucket", "salt": one, "percent": 50}} for one in ("even", "odd")]
    document = canonical_json(parse_policy(body | {"segments": defined})).decode()
    asked = partition.asked
    known = replace(spec, behaviour=tuple(Target(one, document) for one in asked.revisions))
    assert segments_of(known) == ("even", "odd")
    assert segments_of(replace(known, behaviour=(*known.behaviour, spec.behaviour[0]))) == ()
    member = asked.batch.requests["user"] & np.uint64(1) == 1
    own = {"segments": member.astype(np.uint64) << np.uint64(1)}
    columns = Columns(len(asked), REQUEST_COLUMNS, dict(asked.batch.requests) | own)
    batch = Batch(columns, asked.batch.candidates, asked.batch.offsets, asked.batch.meta)
    asked = replace(asked, batch=batch)
    codes = _all_codes(asked, known, first_sends(asked))
    assert (codes["segment odd"] == np.where(member, 0, 1)).all()
    assert (codes["segment even"] == 1).all()


def test_the_bootstrap_agrees_with_the_linearised_interval(whole: Shard) -> None:
    snips = whole.sums.suites[MAIN]["snips"]
    linear, resampled = snips.interval("strict", "clicks")[1], snips.bootstrap("strict", "clicks")
    assert resampled.standard_error == pytest.approx(linear.standard_error, rel=0.35)


def test_windowed_weights_and_roll_outs_are_never_usable(whole: Shard) -> None:
    suite = whole.sums.suites[MAIN]
    windowed = [label for label in suite.labels if label.startswith("windowed-ips")]
    assert windowed == ["windowed-ips 24 h", "windowed-ips 48 h"]
    for one in (*suite.estimates(control=CONTROL), *whole.sums.suites[ROLL_OUT].estimates(control=CONTROL)):
        if one.subject.estimator in (*windowed, ROLL_OUT):
            assert one.verdict.standing is not Standing.usable


def test_a_policy_that_sends_alike_rolls_out_alike_whatever_is_assumed(whole: Shard) -> None:
    suite = whole.sums.suites[ROLL_OUT]
    for effect in ASSUMED:
        logged, same = (suite["roll-out"].point(name, f"clicks if tiring {effect:g}").value for name in ("logged", CONTROL))
        assert logged == same


def test_fewer_sends_bring_more_each_where_people_are_assumed_to_tire(whole: Shard) -> None:
    suite = whole.sums.suites[ROLL_OUT]
    found = [suite["roll-out"].point("strict", f"clicks if tiring {effect:g}").value for effect in ASSUMED]
    assert found == sorted(found)
    assert found[0] < found[-1]
    one = next(one for one in suite.estimates(control=CONTROL) if isinstance(one, Estimated))
    assert "assumed: tiring 0" in one.notes


def test_all_of_it_goes_through_a_shard_file(whole: Shard, spec: ReplaySpec, tmp_path: Path) -> None:
    write_shard(tmp_path / "part.npz", whole)
    again = read_shard(tmp_path / "part.npz", spec)
    assert again.sums.suites[MAIN].labels == whole.sums.suites[MAIN].labels
    for label in whole.sums.suites[MAIN].labels:
        one, other = (shard.sums.suites[MAIN][label].to_arrays() for shard in (whole, again))
        assert all(one[name].tobytes() == other[name].tobytes() for name in one)
    assert again.sums.suites[MAIN]["dr"].interval("strict", "clicks", Per.send) == whole.suite["dr"].interval(
        "strict", "clicks", Per.send
    )
    assert metrics_of(spec)[-1] == "reward"


def test_other_intervals_stand_beside_the_default(whole: Shard) -> None:
    snips = whole.suite["snips"]
    lenient = EstimateSettings(verdict=VerdictSettings(refuse_ess_below=1, refuse_mean_weight_beyond=1e9))
    every = [one for one in whole.suite.estimates(lenient, control=CONTROL) if isinstance(one, Estimated)]
    found = [one for one in every if one.subject.estimator == "snips" and one.subject.versus is not None]
    shown = [numbers(one, whole.suite) for one in found if one.subject.policy == "strict"]
    assert shown
    assert all(row["anytime_high"] - row["anytime_low"] >= row["high"] - row["low"] for row in shown)
    assert all(row["bootstrap_low"] <= row["bootstrap_high"] for row in shown)
    kinds = [snips.interval("strict", "clicks")[1], snips.bootstrap("strict", "clicks"), snips.anytime("strict", "clicks")]
    assert [one.kind for one in kinds] == ["user-clustered", "user Poisson bootstrap", "anytime"]
    bounded = whole.suite["ips"].bernstein("strict", "clicks", 0.0, 500.0)
    assert bounded.kind == "empirical Bernstein"
