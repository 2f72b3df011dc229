"""One bucket group's replay: parity, then every target; its sums written to one file, whole or not at all."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa

from serve_app.errors import DamagedArtifact
from serve_app.log.reader import BucketGroup
from serve_app.policy.compile import CompiledPolicy
from serve_app.policy.document import parse_policy
from simulators.estimators import Suite
from simulators.replay.counts import COUNTS, Window, add_counts, counts_of, divergence
from simulators.replay.course import Course, follow_log, follow_policy
from simulators.replay.estimation import estimation_rows, new_suite
from simulators.replay.parity import Mismatch, Parity, ParityCheck
from simulators.replay.partition import Partition, read_partition
from simulators.replay.realised import Realised, RealisedTrack, as_logged
from simulators.replay.spec import ReplaySpec, compiled

__all__ = ["Shard", "empty_shard", "read_shard", "replay_group", "write_shard"]


@dataclass(frozen=True)
class Shard:
    """Mergeable sums of some bucket groups. requests: logged decisions read, before the window too."""

    suite: Suite
    requests: int = 0
    parity: Parity = field(default_factory=Parity)
    counts: pa.Table = field(default_factory=COUNTS.empty_table)

    def __add__(self, other: Shard) -> Shard:
        counts = add_counts([self.counts, other.counts])
        return Shard(self.suite + other.suite, self.requests + other.requests, self.parity + other.parity, counts)


def empty_shard(spec: ReplaySpec) -> Shard:
    """Nothing yet."""
    return Shard(new_suite([one.name for one in spec.targets], _cells(spec)))


def _cells(spec: ReplaySpec) -> list[list[float]] | None:
    """Probabilities of the cells of the one policy that logged, and of each target (empty: none); None where it has none."""
    found = [parse_policy(orjson.loads(one.document)).cells for one in (*spec.behaviour, *spec.targets)]
    if len(spec.behaviour) != 1 or found[0] is None:
        return None
    return [[one.probability for one in cells.variants] if cells else [] for cells in found]


def replay_group(group: BucketGroup, spec: ReplaySpec) -> Shard:
    """Parity and all targets of one group. Raises InvalidInput where a target cannot be replayed on this log."""
    partition = read_partition(group, start_at=spec.start)
    asked, window = partition.asked, Window(spec.start, spec.end)
    out = empty_shard(spec)
    if not len(asked):
        return out
    heads = tuple(asked.batch.meta["heads"])
    documents = {one.name: one for one in spec.behaviour}
    behaviour = [compiled(documents[revision], heads) for revision in asked.revisions]
    check = ParityCheck(asked)
    follow_log(asked, Course(asked, behaviour, partition.start, partition.failures()), check)
    logged = as_logged(asked)
    parts = [counts_of("logged", asked, logged, window)]
    targets = [compiled(one, heads) for one in spec.targets]
    for target, policy in zip(spec.targets, targets, strict=True):
        done = _target(partition, policy, behaviour, spec)
        parts += [counts_of(target.name, asked, done, window), divergence(target.name, asked, logged, done, window)]
    names = [one.name for one in spec.targets]
    ends = {"attribution_us": spec.attribution_us, "log_end": spec.log_end}
    rows = estimation_rows(partition, names, targets, behaviour, window, **ends)
    out.suite.update(rows)
    return Shard(out.suite, len(asked), check.result(), add_counts(parts))


def _target(partition: Partition, policy: CompiledPolicy, behaviour: Sequence[CompiledPolicy], spec: ReplaySpec) -> Realised:
    """One target's course: from the window's start on logged histories, or from the snapshot on its own."""
    asked, since = partition.asked, np.iinfo(np.int64).min if spec.steady else spec.start
    course = Course(asked, [policy], partition.start, partition.failures())
    course.recall_before(asked, behaviour, since)
    track = RealisedTrack(asked)
    carried = follow_policy(asked.under(policy, behaviour), course, track, since=since)
    return track.result(carried)


def write_shard(path: Path, shard: Shard) -> None:
    """Replace `path` in one step: a zip of arrays, the counts as an Arrow stream among them."""
    meta = {"requests": shard.requests, "parity": asdict(shard.parity)}
    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, COUNTS) as writer:
        writer.write_table(shard.counts)
    arrays = {f"suite/{name}": array for name, array in shard.suite.to_arrays().items()}
    arrays |= {"counts": np.frombuffer(stream.getvalue(), np.uint8), "meta": np.frombuffer(orjson.dumps(meta), np.uint8)}
    aside = path.with_name(f".{path.name}.{os.getpid()}.new")
    with aside.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    os.replace(aside, path)


def read_shard(path: Path, spec: ReplaySpec) -> Shard:
    """DamagedArtifact where it cannot be read."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        meta = orjson.loads(arrays.pop("meta").tobytes())
        counts = pa.ipc.open_stream(arrays.pop("counts").tobytes()).read_all()
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error, pa.ArrowException, KeyError) as error:
        raise DamagedArtifact(f"this part of a replay cannot be read: {error}", field=str(path), hint="delete it") from None
    said = meta["parity"]
    examples = [Mismatch(**one) for one in said.pop("examples")]
    suite = empty_shard(spec).suite.load({name.removeprefix("suite/"): one for name, one in arrays.items()})
    return Shard(suite, meta["requests"], Parity(**said, examples=examples), counts.cast(COUNTS))
