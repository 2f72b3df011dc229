"""One bucket group's replay: parity, then every target; its sums written to one file, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from serve_app.errors import DamagedArtifact
from serve_app.log.reader import BucketGroup
from serve_app.policy.compile import CompiledPolicy
from simulators.replay.counts import COUNTS, Window, add_counts, counts_of, divergence
from simulators.replay.course import Course, follow_log, follow_policy
from simulators.replay.parity import Mismatch, Parity, ParityCheck
from simulators.replay.partition import Partition, read_partition
from simulators.replay.realised import Realised, RealisedTrack, as_logged
from simulators.replay.spec import ReplaySpec, compiled

__all__ = ["Shard", "read_shard", "replay_group", "write_shard"]

_META = b"hindcast.shard"


@dataclass(frozen=True)
class Shard:
    """Mergeable sums of some bucket groups. requests: logged decisions read, before the window too."""

    requests: int = 0
    parity: Parity = field(default_factory=Parity)
    counts: pa.Table = field(default_factory=COUNTS.empty_table)

    def __add__(self, other: Shard) -> Shard:
        counts = add_counts([self.counts, other.counts])
        return Shard(self.requests + other.requests, self.parity + other.parity, counts)


def replay_group(group: BucketGroup, spec: ReplaySpec) -> Shard:
    """Parity and all targets of one group. Raises InvalidInput where a target cannot be replayed on this log."""
    partition = read_partition(group, start_at=spec.start)
    asked, window = partition.asked, Window(spec.start, spec.end)
    if not len(asked):
        return Shard()
    heads = tuple(asked.batch.meta["heads"])
    documents = {one.name: one for one in spec.behaviour}
    behaviour = [compiled(documents[revision], heads) for revision in asked.revisions]
    check = ParityCheck(asked)
    follow_log(asked, Course(asked, behaviour, partition.start, partition.failures()), check)
    logged = as_logged(asked)
    parts = [counts_of("logged", asked, logged, window)]
    for target in spec.targets:
        done = _target(partition, compiled(target, heads), behaviour, spec)
        parts += [counts_of(target.name, asked, done, window), divergence(target.name, asked, logged, done, window)]
    return Shard(len(asked), check.result(), add_counts(parts))


def _target(partition: Partition, policy: CompiledPolicy, behaviour: Sequence[CompiledPolicy], spec: ReplaySpec) -> Realised:
    """One target's course: from the window's start on logged histories, or from the snapshot on its own."""
    asked, since = partition.asked, np.iinfo(np.int64).min if spec.steady else spec.start
    course = Course(asked, [policy], partition.start, partition.failures())
    course.recall(asked, behaviour, until=since)
    track = RealisedTrack(asked)
    carried = follow_policy(asked.under(policy, behaviour), course, track, since=since)
    return track.result(carried)


def write_shard(path: Path, shard: Shard) -> None:
    """Replace `path` in one step."""
    meta = {"requests": shard.requests, "parity": asdict(shard.parity)}
    table = shard.counts.replace_schema_metadata({_META: orjson.dumps(meta)})
    aside = path.with_name(f".{path.name}.{os.getpid()}.new")
    pq.write_table(table, aside, compression="zstd")
    os.replace(aside, path)


def read_shard(path: Path) -> Shard:
    """DamagedArtifact where it cannot be read."""
    try:
        table = pq.read_table(path)
        meta = orjson.loads(table.schema.metadata[_META])
    except (OSError, pa.ArrowException, KeyError, TypeError, orjson.JSONDecodeError) as error:
        raise DamagedArtifact(f"this part of a replay cannot be read: {error}", field=str(path), hint="delete it") from None
    said = meta["parity"]
    examples = [Mismatch(**one) for one in said.pop("examples")]
    return Shard(meta["requests"], Parity(**said, examples=examples), table.replace_schema_metadata(None).cast(COUNTS))
