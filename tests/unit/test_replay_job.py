"""A replay is restartable, repeats to the byte, and says what it cannot do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from serve_app.errors import InvalidInput, UnknownIdentifier
from serve_app.policy.document import PolicyDocument, canonical_json, parse_policy
from simulators.replay import job
from simulators.replay.job import logged_revisions, run_replay
from simulators.replay.shard import Shard, read_shard
from simulators.replay.spec import ReplaySpec, Target, logged_document
from simulators.replay.summary import summary
from simulators.world.publish import publish, read_world
from simulators.world.settings import world_settings

EVER = 2**62


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("replay") / "data"
    publish(world_settings(users=200, items=100, days=9, seed=5), data)
    return data


@pytest.fixture(scope="module")
def behaviour(world: Path) -> PolicyDocument:
    return read_world(world)[1]


def _target(name: str, document: PolicyDocument, **changed: Any) -> Target:
    data = orjson.loads(canonical_json(document)) | changed
    return Target(name, canonical_json(parse_policy(data)).decode())


def _spec(world: Path, behaviour: PolicyDocument, *targets: Target, start: int = -EVER, end: int = EVER) -> ReplaySpec:
    return ReplaySpec(str(world), targets, (_target(behaviour.revision, behaviour),), start, end)


def _caps(document: PolicyDocument, limit: int) -> list[dict[str, Any]]:
    caps = orjson.loads(canonical_json(document))["caps"]
    return [{**one, "limit": min(one["limit"], limit)} for one in caps]


def _numbers(result: Shard, *targets: str) -> dict[str, tuple[str, ...]]:
    return {row[0].strip(): row[1:] for row in summary(result.counts, targets)}


def test_the_logged_policy_changes_nothing_and_a_stricter_one_sends_less(
    world: Path, behaviour: PolicyDocument, tmp_path: Path
) -> None:
    same, strict = _target("same", behaviour), _target("strict", behaviour, caps=_caps(behaviour, 0))
    result = run_replay(_spec(world, behaviour, same, strict), tmp_path, local=True)
    assert result.parity.same == result.parity.requests > 1_500
    numbers = _numbers(result, "same", "strict")
    assert numbers["sends"][0] == numbers["sends"][1] != "0"
    assert numbers["frequency_capped"][0] == numbers["frequency_capped"][1]
    assert numbers["after first divergence"][1] == "0.0%"
    sent_by_transactional_messages_alone = int(numbers["sends"][2].replace(",", ""))
    assert 0 < sent_by_transactional_messages_alone < int(numbers["sends"][0].replace(",", "")) / 2


def test_a_killed_replay_goes_on_where_it_stopped_and_gives_the_same_bytes(
    world: Path, behaviour: PolicyDocument, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = _spec(world, behaviour, _target("strict", behaviour, caps=_caps(behaviour, 1)))
    run_replay(spec, tmp_path / "whole", local=True)
    done: list[int] = []
    honest = job.replay_group

    def dies_at_the_third(group: Any, spec: ReplaySpec, shelf: Path) -> Shard:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(group.low)
        return honest(group, spec, shelf)

    monkeypatch.setattr(job, "replay_group", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        run_replay(spec, tmp_path / "resumed", local=True)
    monkeypatch.setattr(job, "replay_group", lambda group, *rest: done.append(group.low) or honest(group, *rest))
    run_replay(spec, tmp_path / "resumed", local=True)
    assert len(done) == len(set(done)), "no group is replayed twice"
    whole, resumed = (sorted((tmp_path / one).rglob("*.npz")) for one in ("whole", "resumed"))
    assert [one.read_bytes() for one in whole] == [one.read_bytes() for one in resumed]


def test_parts_of_another_policy_are_not_taken_for_this_ones(world: Path, behaviour: PolicyDocument, tmp_path: Path) -> None:
    first = run_replay(_spec(world, behaviour, _target("new", behaviour)), tmp_path, local=True)
    second = run_replay(_spec(world, behaviour, _target("new", behaviour, caps=_caps(behaviour, 0))), tmp_path, local=True)
    assert _numbers(first, "new")["sends"][1] != _numbers(second, "new")["sends"][1]


def test_a_window_counts_what_lies_in_it_and_starts_on_logged_histories(
    world: Path, behaviour: PolicyDocument, tmp_path: Path
) -> None:
    middle = read_world(world)[0].settings.start_us + 5 * 86_400_000_000
    spec = _spec(world, behaviour, _target("same", behaviour), start=middle)
    result = run_replay(spec, tmp_path / "switch", local=True)
    whole = run_replay(replace(spec, start=-EVER), tmp_path / "whole", local=True)
    numbers, all_numbers = _numbers(result, "same"), _numbers(whole, "same")
    assert numbers["sends"][0] == numbers["sends"][1] != all_numbers["sends"][0]
    assert numbers["frequency_capped"][0] == numbers["frequency_capped"][1]


def test_a_head_that_was_not_logged_is_refused_by_name(world: Path, behaviour: PolicyDocument, tmp_path: Path) -> None:
    surfaces = orjson.loads(canonical_json(behaviour))["surfaces"]
    surfaces["notification"]["head_weights"] = {"p_regret": 1.0}
    spec = _spec(world, behaviour, _target("new", behaviour, surfaces=surfaces))
    with pytest.raises(InvalidInput, match=r"p_regret.*not logged"):
        run_replay(spec, tmp_path, local=True)


def test_an_unknown_revision_asks_for_its_document(world: Path) -> None:
    with pytest.raises(UnknownIdentifier, match="--baseline"):
        logged_document(world, "0" * 20, None)


def test_revisions_are_those_that_decided_notifications(world: Path, behaviour: PolicyDocument) -> None:
    assert logged_revisions(world) == [behaviour.revision]


def test_a_log_without_requests_is_refused(tmp_path: Path, behaviour: PolicyDocument) -> None:
    with pytest.raises(InvalidInput, match="log compact"):
        run_replay(_spec(tmp_path / "none", behaviour), tmp_path / "out", local=True)


def test_a_damaged_part_is_named(world: Path, behaviour: PolicyDocument, tmp_path: Path) -> None:
    spec = _spec(world, behaviour, _target("same", behaviour))
    run_replay(spec, tmp_path, local=True)
    part = next(tmp_path.rglob("*.npz"))
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(Exception, match=part.name):
        read_shard(part, spec)
