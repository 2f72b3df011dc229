"""A log that begins in the middle: with a ledger snapshot it comes out again, without one it says what it cannot know."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from serve_app.log.reader import bucket_groups, log_days
from simulators.replay.asking import spec_for
from simulators.replay.beginnings import only, uncertain, with_full_histories
from simulators.replay.job import log_start
from simulators.replay.partition import TABLES_READ, read_partition
from simulators.replay.shard import Shard, empty_shard, replay_group
from simulators.replay.spec import compiled
from simulators.report.content import content_of
from simulators.report.tally import Tally
from simulators.world.publish import publish, read_world
from simulators.world.settings import world_settings

DAY_US = 86_400_000_000


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("begins") / "data"
    publish(world_settings(users=220, items=80, days=10, seed=41), data)
    return data


def cut(world: Path, to: Path, day: int, *, snapshots: bool) -> Path:
    """The log from its day number `day` on."""
    shutil.copytree(world, to)
    listing = to / "log" / "snapshot.json"
    said = json.loads(listing.read_text())
    first = log_days(world, "requests")[day]
    dated = ("candidates", "decisions", "events", "requests", "watermark", "ledger_snapshot")
    said["files"] = [
        one
        for one in said["files"]
        if (one["table"] not in dated or one["day"] >= first) and (snapshots or one["table"] != "ledger_snapshot")
    ]
    listing.write_text(json.dumps(said))
    return to


def replayed(data: Path, start: int | None = None) -> tuple[Shard, Tally]:
    documents = {"same": read_world(data)[1]}
    spec = spec_for(data, documents) if start is None else spec_for(data, documents, start=start)
    found = sum((replay_group(group, spec) for group in bucket_groups(data, TABLES_READ)), empty_shard(spec))
    return found, Tally(found.counts)


def test_a_snapshot_at_the_first_day_stands_for_what_was_before(world: Path, tmp_path: Path) -> None:
    found, tally = replayed(cut(world, tmp_path / "cut", 7, snapshots=True))
    assert found.parity.same == found.parity.requests == found.requests > 300
    assert found.parity.unsure == 0
    assert tally.total("same", "sends") == tally.total("logged", "sends")
    assert tally.total("same", "users_uncertain") == 0


def test_without_one_users_are_flagged_kept_out_of_parity_and_bounded(world: Path, tmp_path: Path) -> None:
    data = cut(world, tmp_path / "cut", 4, snapshots=False)
    found, tally = replayed(data)
    assert found.parity.same == found.parity.requests < found.requests
    assert found.parity.unsure == found.requests - found.parity.requests > 10
    flagged = tally.total("same", "users_uncertain")
    assert 50 < flagged <= tally.total("logged", "users")
    empty, full = (tally.total("same", f"sends_if_{one}") for one in ("empty", "full"))
    others = tally.total("same", "sends") - empty
    assert full + others < tally.total("logged", "sends") < empty + others, "what happened lies between"
    whole, _ = replayed(world, start=log_start(data))
    assert Tally(whole.counts).total("logged", "sends") == tally.total("logged", "sends")


def test_the_report_tells_both_ends(world: Path, tmp_path: Path) -> None:
    data = cut(world, tmp_path / "cut", 4, snapshots=False)
    spec = spec_for(data, {"same": read_world(data)[1]})
    found = sum((replay_group(group, spec) for group in bucket_groups(data, TABLES_READ)), empty_shard(spec))
    content = content_of(found, spec, names={})
    start = content["volume"][1]["start"]
    assert start["sends_if_full"] < start["sends_if_empty"]
    assert content["left_out"]["parity_unsure"] == found.parity.unsure
    assert content["verdict"]["outcome"] == "kept"


def test_full_histories_stop_every_capped_message_of_the_first_window(world: Path) -> None:
    spec = spec_for(world, {"same": read_world(world)[1]})
    partition = read_partition(bucket_groups(world, TABLES_READ)[0])
    policy = compiled(spec.targets[0], spec.heads)
    some = np.zeros(len(partition.asked.users), np.bool_)
    some[::3] = True
    fewer = only(partition, some)
    assert np.array_equal(fewer.asked.users, partition.asked.users[some])
    first = int(fewer.asked.batch.requests["decided_at"].min())
    fewer.known_since[:] = first - 1
    full = with_full_histories(fewer, policy)
    counts = np.diff(full.start.offsets)
    assert (counts > 0).all()
    for user in range(len(counts)):
        mine = full.start.entries[full.start.offsets[user] : full.start.offsets[user + 1]]
        assert (np.diff(mine["at"]) >= 0).all()
        assert (mine["at"] == first - 1).sum() > max(cap.limit for cap in policy.document.caps)


def test_uncertain_decisions_are_those_whose_window_is_longer_than_the_history(world: Path) -> None:
    asked = read_partition(bucket_groups(world, TABLES_READ)[0]).asked
    at = asked.batch.requests["decided_at"]
    known = np.full(len(asked.users), int(at.min()) + DAY_US)
    flagged = uncertain(asked, known, [3 * DAY_US])
    assert np.array_equal(flagged, at < known[0] + 3 * DAY_US)
    assert not uncertain(asked, np.full(len(asked.users), np.iinfo(np.int64).min), [3 * DAY_US]).any()
