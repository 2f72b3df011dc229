"""One bucket group's replay: parity, then every target; its sums written to one file, whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from serve_app.ledger.columns import NEVER_KNOWN
from serve_app.log.reader import BucketGroup
from serve_app.policy.compile import CompiledPolicy
from simulators.estimators import Suite
from simulators.replay.beginnings import only, uncertain, with_full_histories
from simulators.replay.counts import (
    COUNTS,
    Window,
    add_counts,
    bots_left_out,
    copies_left_out,
    counted,
    counts_of,
    differing,
    divergence,
    left_out_of_trial,
    sends_by_half,
    sends_by_segment,
    set_aside,
)
from simulators.replay.estimation import MAIN, half_of, update_suites
from simulators.replay.estimation_rows import estimation_blocks
from simulators.replay.examples import Example, add_examples, example_users, examples_from
from simulators.replay.memberships import segments_logged
from simulators.replay.opening import behaviour_of, opened
from simulators.replay.opportunities import Opportunities
from simulators.replay.parity import Mismatch, Parity
from simulators.replay.partition import Partition
from simulators.replay.parts import counts_as_bytes, counts_from_bytes, part_arrays, write_part
from simulators.replay.realised import Realised, as_logged
from simulators.replay.roll_out import RollOuts
from simulators.replay.spec import ReplaySpec, compiled
from simulators.replay.stream import stream_policy
from simulators.replay.sums import Sums
from simulators.replay.trials import fill_trial, holdouts_of

__all__ = ["Shard", "empty_shard", "read_shard", "replay_group", "write_shard"]

I64 = npt.NDArray[np.int64]
_BEGINNING = int(np.iinfo(np.int64).min)
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Shard:
    """Mergeable sums of some bucket groups. requests: logged decisions read, before the window too. examples: a few users of
    each target."""

    sums: Sums
    requests: int = 0
    parity: Parity = field(default_factory=Parity)
    counts: pa.Table = field(default_factory=COUNTS.empty_table)
    examples: list[Example] = field(default_factory=list)

    @property
    def suite(self) -> Suite:
        """Of all users' estimates."""
        return self.sums.suites[MAIN]

    def __add__(self, other: Shard) -> Shard:
        counts, examples = add_counts([self.counts, other.counts]), add_examples(self.examples, other.examples)
        return Shard(self.sums + other.sums, self.requests + other.requests, self.parity + other.parity, counts, examples)


def empty_shard(spec: ReplaySpec) -> Shard:
    """Nothing yet."""
    return Shard(Sums.empty(spec))


def replay_group(group: BucketGroup, spec: ReplaySpec, shelf: Path | None = None) -> Shard:
    """Parity of all users, then all targets without the bots. shelf: where packs stand that save reading the log and
    comparing it once more. Raises InvalidInput where a target cannot be replayed on this log."""
    read = opened(group, spec, shelf)
    out = Shard(
        Sums.empty(spec), read.requests, read.parity,
        add_counts([set_aside(read.set_aside), bots_left_out(*read.bots), copies_left_out(read.people.copies)]),
    )  # fmt: skip
    if not len(read.people.asked):
        return out
    behaviour = behaviour_of(read.people.asked, spec)
    people, heads = read.people, read.heads
    if spec.release:
        from simulators.replay.scored_again import scored_again  # models: a second to import

        people, heads = scored_again(people, group, spec)
    return out + _judged(people, read.known, behaviour, heads, spec)


def _judged(
    partition: Partition, known: I64, behaviour: Sequence[CompiledPolicy], heads: tuple[str, ...], spec: ReplaySpec
) -> Shard:
    """Counts, examples, estimates and trials of all targets. known: as `follow_log` returns."""
    asked, window = partition.asked, Window(spec.start, spec.end)
    counts = asked.members(behaviour, spec.segments)
    every = as_logged(asked, counts)
    logged, segments = every.only(counts), segments_logged(behaviour)
    parts, examples = [counts_of("logged", asked, logged, window)], []
    parts += [sends_by_segment("logged", asked, logged, window, segments), _unfinished(asked, window, spec, counts)]
    half = half_of(asked.users) if spec.halves else None
    targets = [compiled(one, heads) for one in spec.targets]
    rolled = RollOuts(partition, spec, counts) if RollOuts.wanted(spec) else None
    if rolled is not None:
        rolled.add(every, _BEGINNING)
    for target, policy in zip(spec.targets, targets, strict=True):
        done = _target(partition, known, policy, behaviour, spec, counts)
        if rolled is not None:
            rolled.add(done, _BEGINNING if spec.steady else spec.start)
        differs = differing(asked, every, done)
        differs, done = differs if counts is None else differs[counts[differs]], done.only(counts)
        parts += [counts_of(target.name, asked, done, window), divergence(target.name, asked, done, differs, window)]
        if spec.estimators and not spec.halves:  # shown in a report alone
            examples += example_users(target.name, asked, logged, done, differs, window)
        parts.append(sends_by_segment(target.name, asked, done, window, segments))
        parts.append(_begun(target.name, partition, known, policy, behaviour, spec, counts))
        if half is not None:
            parts.append(sends_by_half(target.name, asked, done, window, half))
    if half is not None:
        parts.append(sends_by_half("logged", asked, logged, window, half))
    sums = Sums.empty(spec)
    if spec.estimators:
        parts += _outcomes(sums, partition, spec, targets, behaviour)
    if rolled is not None:
        rolled.fill(sums.suites)
    return Shard(sums, counts=add_counts(parts), examples=examples)


def _outcomes(
    sums: Sums,
    partition: Partition,
    spec: ReplaySpec,
    targets: Sequence[CompiledPolicy],
    behaviour: Sequence[CompiledPolicy],
) -> list[pa.Table]:
    """Fill estimates and trials; returns counts of who could not be taken."""
    window, parts = Window(spec.start, spec.end), list[pa.Table]()
    for rows in estimation_blocks(partition, spec, targets, behaviour):
        update_suites(sums.suites, rows)
    ends = {"outcome_us": spec.outcome_us, "log_start": spec.log_start, "log_end": spec.log_end}
    for holdout in holdouts_of([one.document for one in spec.behaviour]):
        trial = sums.trials[holdout.name]
        left, sums.samples[holdout.name] = fill_trial(
            trial, partition, holdout, behaviour, window, segments=spec.segments, **ends, heads=spec.heads
        )
        parts.append(left_out_of_trial(holdout.key, left))
    return parts


def _target(
    partition: Partition, known: I64, policy: CompiledPolicy, behaviour: Sequence[CompiledPolicy], spec: ReplaySpec,
    counts: Bools | None,
) -> Realised:  # fmt: skip
    """One target's course: from the window's start on logged histories, or from the snapshot on its own. counts: see
    `stream_policy`."""
    asked, since = partition.asked.scored(), np.iinfo(np.int64).min if spec.steady else spec.start
    failures = partition.failures()
    return stream_policy(asked, policy, behaviour, partition.start, failures, since=since, known=known, counts=counts)


def _unfinished(asked: Opportunities, window: Window, spec: ReplaySpec, counts: Bools | None) -> pa.Table:
    """How many decisions are too young at the log's end for their rewards to be in."""
    at = asked.batch.requests["decided_at"]
    young = window.holds(at) & (at + spec.attribution_us > spec.log_end)
    return counted("logged", {"unfinished": int((young if counts is None else young & counts).sum())})


def _begun(
    name: str,
    partition: Partition,
    known: I64,
    policy: CompiledPolicy,
    behaviour: Sequence[CompiledPolicy],
    spec: ReplaySpec,
    counts: Bools | None,
) -> pa.Table:
    """Of users whose rules look back to before the log: what they are sent, had they had no history then, or a full one."""
    asked, window = partition.asked, Window(spec.start, spec.end)
    if (partition.known_since == NEVER_KNOWN).all():
        return COUNTS.empty_table()
    inside = window.holds(asked.batch.requests["decided_at"])
    inside = inside if counts is None else inside & counts
    unsure = inside & uncertain(asked, partition.known_since, [policy.longest_window_us])
    users = np.bincount(asked.owner[unsure], minlength=len(asked.users)) > 0
    if not users.any():
        return COUNTS.empty_table()
    some, mine = only(partition, users), known[users[asked.owner]]
    theirs = None if counts is None else counts[users[asked.owner]]
    sends = {}
    for text, one in (("empty", some), ("full", with_full_histories(some, policy))):
        done = _target(one, mine, policy, behaviour, spec, theirs).only(theirs)
        sends[f"sends_if_{text}"] = int(window.holds(done.at[done.send_decision]).sum())
    return counted(name, {"users_uncertain": int(users.sum()), "decisions_uncertain": int(unsure.sum()), **sends})


def write_shard(path: Path, shard: Shard) -> None:
    """Replace `path` in one step."""
    examples = [one.plain() for one in shard.examples]
    meta = {"requests": shard.requests, "parity": asdict(shard.parity), "examples": examples}
    own = {"counts": counts_as_bytes(shard.counts), "meta": np.frombuffer(orjson.dumps(meta), np.uint8)}
    write_part(path, shard.sums.to_arrays() | own)


def read_shard(path: Path, spec: ReplaySpec) -> Shard:
    """DamagedArtifact where it cannot be read."""
    with part_arrays(path) as arrays:
        meta, counts = orjson.loads(arrays.pop("meta").tobytes()), counts_from_bytes(arrays.pop("counts"))
    said = meta["parity"]
    mismatches = [Mismatch(**one) for one in said.pop("examples")]
    sums, parity = Sums.empty(spec).load(arrays), Parity(**said, examples=mismatches)
    return Shard(sums, meta["requests"], parity, counts, examples_from(meta["examples"]))
