"""Replays on packs give what replays on the log give, and packs go when what they follow from does."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest

from serve_app.errors import DamagedArtifact
from serve_app.ids import bucket_of
from serve_app.log.erasure import erase_user
from serve_app.log.forgetting import forget
from serve_app.log.reader import bucket_groups
from serve_app.policy.document import canonical_json, parse_policy
from simulators.replay import pack_shelf
from simulators.replay.asking import spec_for
from simulators.replay.course import Course, follow_log
from simulators.replay.job import run_replay
from simulators.replay.opening import behaviour_of, opened
from simulators.replay.pack import ONLY_COMPARED, pack_of, read_pack
from simulators.replay.pack_shelf import PACKS, shelf_of, split
from simulators.replay.parity import ParityCheck
from simulators.replay.partition import TABLES_READ, Partition, read_partition
from simulators.replay.spec import ReplaySpec
from simulators.world.publish import publish, read_world
from simulators.world.settings import world_settings


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("packed") / "data"
    publish(world_settings(users=160, items=80, days=8, seed=23), data)
    return data


@pytest.fixture
def world(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "data")
    return tmp_path / "data"


def _spec(world: Path) -> ReplaySpec:
    behaviour = read_world(world)[1]
    plain = orjson.loads(canonical_json(behaviour))
    plain["caps"][0]["limit"] = 1
    return spec_for(world, {"strict": parse_policy(plain)})


def _parts(out: Path) -> list[bytes]:
    return [one.read_bytes() for one in sorted(out.rglob("*.npz"))]


def _packs(world: Path) -> list[Path]:
    return sorted((world / PACKS).glob("buckets-*"))


def test_a_partition_comes_back_from_its_pack(made: Path, tmp_path: Path) -> None:
    for number, group in enumerate(bucket_groups(made, TABLES_READ)):
        one = read_partition(group)
        one = one.without(one.bots())
        known = np.arange(len(one.asked)) % 3
        pack_of(one, known, tmp_path / str(number), {})
        back = read_pack(tmp_path / str(number))
        for mine, theirs in (
            (one.asked.batch.requests, back.asked.batch.requests),
            (one.asked.batch.candidates, back.asked.batch.candidates),
            (one.asked.logged, back.asked.logged),
            ({k: v for k, v in one.asked.logged_candidates.items() if k not in ONLY_COMPARED}, back.asked.logged_candidates),
        ):
            assert set(mine) == set(theirs)
            assert all(mine[name].dtype == theirs[name].dtype for name in mine)
            assert [name for name in mine if mine[name].tobytes() != theirs[name].tobytes()] == []
        assert one.start.entries.tobytes() == back.start.entries.tobytes()
        for name in ("users", "begins", "owner", "item_hashes", "set_aside"):
            assert np.array_equal(getattr(one.asked, name), getattr(back.asked, name)), name
        assert np.array_equal(back.known, known)
        assert np.array_equal(one.known_since, back.known_since)
        assert one.events.equals(back.events)
        for mine, theirs in zip(one.failed(), back.failed(), strict=True):
            assert np.array_equal(mine, theirs)


def test_the_first_replay_packs_and_the_second_gives_the_same_bytes(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = _spec(world)
    first = run_replay(spec, tmp_path / "first", local=True)
    assert first.parity.same == first.parity.requests > 1_000
    assert len(_packs(world)) == 4
    monkeypatch.setattr("simulators.replay.opening.read_partition", _not_again)
    again = run_replay(spec, tmp_path / "again", local=True)
    assert _parts(tmp_path / "again") == _parts(tmp_path / "first")
    assert again.parity == first.parity


def _not_again(*_: object, **__: object) -> Partition:
    raise AssertionError("the log is read once")


def test_the_stage_reproduces_a_pack_as_it_does_the_log(world: Path, tmp_path: Path) -> None:
    spec = _spec(world)
    run_replay(spec, tmp_path, local=True)
    for one in map(read_pack, _packs(world)):
        check = ParityCheck(one.asked)
        course = Course(one.asked, behaviour_of(one.asked, spec), one.start, one.failures())
        assert np.array_equal(follow_log(one.asked, course, check), one.known)
        assert check.result().columns == {}


def test_large_groups_are_cut_and_the_counts_stay(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = _spec(world)
    whole = run_replay(spec, tmp_path / "whole", local=True)
    monkeypatch.setattr(pack_shelf, "_DECISIONS", 150)
    groups = split(world, bucket_groups(world, TABLES_READ))
    assert len(groups) > 8
    assert sorted(b for one in groups for b in range(one.low, one.high + 1)) == list(range(4_096))
    cut = run_replay(spec, tmp_path / "cut", local=True)
    assert cut.counts.equals(whole.counts)
    assert cut.requests == whole.requests


def test_a_damaged_pack_is_made_anew_and_said(world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spec = _spec(world)
    run_replay(spec, tmp_path / "first", local=True)
    harmed = _packs(world)[1] / "requests.parquet"
    harmed.write_bytes(harmed.read_bytes()[:-9])
    with caplog.at_level(logging.WARNING):
        run_replay(spec, tmp_path / "again", local=True)
    assert str(harmed) in caplog.text
    assert _parts(tmp_path / "again") == _parts(tmp_path / "first")
    read_pack(_packs(world)[1])


def test_a_pack_of_another_format_is_none(world: Path, tmp_path: Path) -> None:
    run_replay(_spec(world), tmp_path, local=True)
    manifest = _packs(world)[0] / "pack.json"
    manifest.write_bytes(orjson.dumps(orjson.loads(manifest.read_bytes()) | {"format": 0}))
    with pytest.raises(DamagedArtifact, match="format 0"):
        read_pack(manifest.parent)


def test_erased_users_are_in_no_pack(world: Path, tmp_path: Path) -> None:
    spec = _spec(world)
    run_replay(spec, tmp_path / "first", local=True)
    before = _packs(world)
    user = int(read_pack(before[2]).asked.users[0])
    erase_user(world, user, 2**62)
    forget(world, groups=4)
    left = _packs(world)
    assert [one for one in before if one not in left] == [before[2]]
    run_replay(spec, tmp_path / "again", local=True)
    holders = [one for one in map(read_pack, _packs(world)) if one.said["low"] <= bucket_of(user) <= one.said["high"]]
    assert len(holders) == 1
    assert user not in holders[0].asked.users
    assert user not in holders[0].events["user"].to_pylist()
    assert len(_packs(world)) == 4, "packs of what is no longer so are removed"


def test_a_pack_made_before_an_erasure_is_not_used_even_where_nothing_removed_it(world: Path, tmp_path: Path) -> None:
    spec = _spec(world)
    group = split(world, bucket_groups(world, TABLES_READ))[0]
    shelf = shelf_of(world, tmp_path)
    user = int(opened(group, spec, shelf).people.asked.users[0])
    erase_user(world, user, 2**62)
    assert user not in opened(group, spec, shelf).people.asked.users


def test_another_start_needs_another_pack_and_leaves_the_first(world: Path, tmp_path: Path) -> None:
    spec = _spec(world)
    run_replay(spec, tmp_path / "a", local=True)
    run_replay(replace(spec, start=spec.log_start + 4 * 86_400_000_000), tmp_path / "b", local=True)
    assert len(_packs(world)) == 8
