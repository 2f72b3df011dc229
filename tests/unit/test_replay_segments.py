"""`--segment`: whose decisions count, by the memberships that were logged; histories hold everybody's all the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest

from serve_app.batch import Batch, Columns
from serve_app.columns import REQUEST_COLUMNS
from serve_app.errors import InvalidInput
from serve_app.log.reader import bucket_groups
from serve_app.policy.compile import CompiledPolicy
from serve_app.policy.document import canonical_json, parse_policy
from serve_app.vocabulary import Action
from simulators.replay import shard
from simulators.replay.course import Course, follow_log
from simulators.replay.memberships import members_of
from simulators.replay.parity import ParityCheck
from simulators.replay.partition import TABLES_READ, Partition, read_partition
from simulators.replay.spec import ReplaySpec, Target, compiled
from simulators.report.tally import Tally
from simulators.world.publish import publish, read_world
from simulators.world.settings import world_settings

EVER = 2**62
DEFINED = [{"id": "odd", "where": {"kind": "bucket", "salt": "v", "percent": 50}}]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("segments") / "data"
    publish(world_settings(users=320, items=80, days=8, seed=5), data)
    return data


def _policy(world: Path, name: str, **changed: object) -> Target:
    body = orjson.loads(canonical_json(read_world(world)[1])) | {"segments": DEFINED} | changed
    return Target(name, canonical_json(parse_policy(body)).decode())


def _partition(world: Path) -> Partition:
    """As if every other user, and each in the second half of the log alone, were known to be in the segment."""
    found = read_partition(bucket_groups(world, TABLES_READ)[0])
    asked = found.asked
    requests, at = asked.batch.requests, asked.batch.requests["decided_at"]
    member = (requests["user"] & np.uint64(1) == 1) & (at > np.median(at))
    own = {"segments": member.astype(np.uint64), "segments_at": np.ones(len(asked), np.int64)}
    columns = Columns(len(asked), REQUEST_COLUMNS, dict(requests) | own)
    batch = Batch(columns, asked.batch.candidates, asked.batch.offsets, asked.batch.meta)
    return replace(found, asked=replace(asked, batch=batch))


def _judged(world: Path, segments: tuple[str, ...]) -> tuple[Partition, Tally]:
    partition, logged = _partition(world), _policy(world, "logged")
    spec = ReplaySpec(
        str(world), (_policy(world, "same"), _policy(world, "none", caps=[], cells=None)), (logged,), -EVER, EVER,
        segments=segments, estimators=("ips", "snips"),
    )  # fmt: skip
    heads = tuple(partition.asked.batch.meta["heads"])
    behaviour: list[CompiledPolicy] = [compiled(logged, heads)]
    course = Course(partition.asked, behaviour, partition.start, partition.failures())
    known = follow_log(partition.asked, course, ParityCheck(partition.asked))
    return partition, Tally(shard._judged(partition, known, behaviour, heads, spec).counts)


def test_only_members_count_and_everything_else_is_as_without(world: Path) -> None:
    partition, found = _judged(world, ("odd",))
    asked = partition.asked
    member = asked.batch.requests["segments"] == 1
    sent = member & (asked.logged["action"] == Action.send) & asked.logged["granted"]
    assert found.total("logged", "decisions", "action") == member.sum() > 100
    assert found.total("logged", "users") == len(np.unique(asked.owner[member]))
    assert found.total("logged", "sends") == found.total("same", "sends") == sent.sum() > 0
    assert found.total("logged", "candidates", "reason") == member[asked.batch.owner].sum()
    assert found.total("same", "candidates", "reason") == member[asked.batch.owner].sum()
    assert found.total("same", "users_diverged") == 0


def test_histories_hold_what_members_were_sent_before_they_were_members(world: Path) -> None:
    _, members = _judged(world, ("odd",))
    _, everybody = _judged(world, ())
    assert members.by("same", "decisions", "reason") == members.by("logged", "decisions", "reason")
    assert 0 < members.total("none", "sends") < everybody.total("none", "sends")


def test_what_is_not_known_is_said(world: Path) -> None:
    policy = compiled(_policy(world, "logged"), ("p_click", "p_convert", "p_optout", "uplift"))
    pinned, bits, never = np.zeros(2, np.int16), np.zeros(2, np.uint64), np.zeros(2, np.int64)
    with pytest.raises(InvalidInput, match="known: odd"):
        members_of(pinned, bits, never + 1, [policy], ["even"])
    with pytest.raises(InvalidInput, match=r"odd was not logged.*segment refresh"):
        members_of(pinned, bits, never, [policy], ["odd"])
    assert members_of(pinned, bits, never, [policy], []) is None
