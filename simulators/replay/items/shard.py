"""One bucket group's lists: parity, what every target would have shown, estimates; written to one file, whole or absent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from serve_app.log.reader import BucketGroup, read_files
from serve_app.policy.compile import CompiledPolicy
from serve_app.vocabulary import EventType, Surface
from simulators.estimators import Suite
from simulators.estimators.outcome_model import OutcomeModel
from simulators.replay.counts import COUNTS, Window, add_counts
from simulators.replay.items.changes import changes_of, counted, logged_counts
from simulators.replay.items.estimates import Columns, looked_at, new_suites, slot_columns, update_suites
from simulators.replay.items.logged import Lists, Unsampled, gathered, read_lists
from simulators.replay.items.making import Made, as_logged, under
from simulators.replay.items.parity import parity_of
from simulators.replay.items.rewards import EVENT_COLUMNS, slot_rewards
from simulators.replay.items.scoring import Scorer
from simulators.replay.items.spec import ListsSpec, compiled_for
from simulators.replay.memberships import members_of
from simulators.replay.parity import Mismatch, Parity
from simulators.replay.parts import counts_as_bytes, counts_from_bytes, part_arrays, write_part

__all__ = ["ListsShard", "SurfaceSums", "empty_shard", "people_of", "read_shard", "replay_lists", "write_shard"]

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class SurfaceSums:
    """Of one surface: mergeable sums of some bucket groups."""

    suites: dict[str, Suite]
    parity: Parity = field(default_factory=Parity)
    counts: pa.Table = field(default_factory=COUNTS.empty_table)

    def __add__(self, other: SurfaceSums) -> SurfaceSums:
        suites = {name: one + other.suites[name] for name, one in self.suites.items()}
        return SurfaceSums(suites, self.parity + other.parity, add_counts([self.counts, other.counts]))


@dataclass(frozen=True)
class ListsShard:
    """Sums by surface."""

    surfaces: dict[str, SurfaceSums]

    def __add__(self, other: ListsShard) -> ListsShard:
        return ListsShard({name: one + other.surfaces[name] for name, one in self.surfaces.items()})


def empty_shard(spec: ListsSpec) -> ListsShard:
    """Nothing yet."""
    names = [one.name for one in spec.targets]
    return ListsShard({surface: SurfaceSums(new_suites(names, spec.drawings)) for surface in spec.surfaces})


def replay_lists(group: BucketGroup, spec: ListsSpec, models: Mapping[str, OutcomeModel], scorer: Scorer) -> ListsShard:
    """Parity of all lists, then all targets without the bots. models: of outcomes, by surface; none
    where nothing can be estimated. Raises InvalidInput where a
    target cannot be replayed on this log."""
    surfaces = [Surface[name] for name in spec.surfaces]
    parts, unsampled = read_lists(group, surfaces, features=scorer.reads_features, asked=scorer.reads_requests)
    events = read_files(group.files.get("events", ()), "events", columns=EVENT_COLUMNS)
    out = {}
    for surface in surfaces:
        mine = [one for one in parts if one.surface == surface]
        out[surface.name] = _surface(mine, unsampled[surface], events, spec, models, scorer)
    return ListsShard(out)


def _surface(
    parts: Sequence[Lists], unsampled: Unsampled, events: pa.Table, spec: ListsSpec, models: Mapping[str, OutcomeModel],
    scorer: Scorer,
) -> SurfaceSums:  # fmt: skip
    suites = new_suites([one.name for one in spec.targets], spec.drawings)
    counts = [counted("lists_unsampled", {0: unsampled.lists}), counted("slots_unsampled", {0: unsampled.slots})]
    parity, columns = Parity(), []
    for part in parts:
        ranked = part.take(~part.fell_back)
        counts.append(counted("fell_back", {0: len(part) - len(ranked)}))
        if len(ranked):
            one = _Ranked.of(ranked, spec, scorer)
            parity = parity + parity_of(one.lists, one.behaviour)
            counts += one.counts(events, spec)
            model = models.get(part.surface.name)
            columns += one.columns(events, spec, model) if model is not None else []
    update_suites(suites, columns)
    return SurfaceSums(suites, parity, add_counts(counts))


@dataclass(frozen=True)
class _Ranked:
    """Lists that a policy made, as it made them, and as each target would."""

    lists: Lists
    behaviour: Made
    targets: dict[str, Made]
    policies: Sequence[CompiledPolicy]
    notes: Mapping[str, int]

    @classmethod
    def of(cls, lists: Lists, spec: ListsSpec, scorer: Scorer) -> _Ranked:
        """Parts are not taken apart after this."""
        surface = lists.surface.name
        documents = {one.name: one for one in spec.behaviour}
        policies = [compiled_for(documents[name], surface, lists.head_names) for name in lists.revisions]

        def compiled(heads: Sequence[str]) -> dict[str, CompiledPolicy]:
            return {one.name: compiled_for(one, surface, heads) for one in spec.targets}

        scored = scorer.score(lists, policies, compiled)
        targets = {name: under(one.lists, one.policy, scorer.vectors, one.allowed) for name, one in scored.targets.items()}
        return cls(scored.lists, as_logged(scored.lists, policies, scorer.vectors), targets, policies, scored.notes)

    def members(self, segments: Sequence[str]) -> Bools:
        """bool[n]: lists of users in one of `segments` when they were made; none named: everybody."""
        bits, since = (self.lists.requests[name] for name in ("segments", "segments_at"))
        found = members_of(self.lists.policy, bits, since, self.policies, segments)
        return np.ones(len(self.lists), np.bool_) if found is None else found

    def counts(self, events: pa.Table, spec: ListsSpec) -> list[pa.Table]:
        """Of the lists in the window, without bots."""
        lists, bots = self.lists, people_of(self.lists, events)
        inside = Window(spec.start, spec.end).holds(lists.requests["decided_at"])
        rows = np.flatnonzero(inside & ~bots & self.members(spec.segments))
        some = lists.take(rows)
        parts = [logged_counts(some), counted("lists_read", {0: len(some)})]
        parts += [counted("lists_of_bots", {0: int((inside & bots).sum())})]
        parts += [counted(name, {0: value}) for name, value in self.notes.items()]
        return parts + [changes_of(name, some, made.of(rows).select().slot) for name, made in self.targets.items()]

    def columns(self, events: pa.Table, spec: ListsSpec, model: OutcomeModel) -> list[Columns]:
        """For the estimators: lists of the window that are old enough for their rewards to be complete."""
        lists, at = self.lists, self.lists.requests["decided_at"]
        rows = np.flatnonzero(
            Window(spec.start, spec.end).holds(at) & (at + spec.attribution_us <= spec.log_end)
            & ~people_of(lists, events) & self.members(spec.segments)
        )  # fmt: skip
        some, behaviour = lists.take(rows), self.behaviour.of(rows)
        targets = [behaviour, *(one.of(rows) for one in self.targets.values())]
        reward = slot_rewards(some, events, spec.attribution_us)
        looked = looked_at(some, behaviour, targets, model, model.features[1:])
        return [slot_columns(some, looked, reward, (behaviour, targets, spec.drawings))]


def people_of(lists: Lists, events: pa.Table) -> Bools:
    """bool[n]: lists of users that any event of the log calls a bot."""
    told = gathered(events.filter(pc.equal(events["type"], int(EventType.bot))), "user")
    return np.isin(lists.logged_user, told[told != 0])


def write_shard(path: Path, shard: ListsShard) -> None:
    """Replace `path` in one step."""
    arrays: dict[str, npt.NDArray[np.generic]] = {}
    parity = {name: asdict(one.parity) for name, one in shard.surfaces.items()}
    arrays["parity"] = np.frombuffer(orjson.dumps(parity), np.uint8)
    for name, one in shard.surfaces.items():
        arrays[f"{name}/counts"] = counts_as_bytes(one.counts)
        for kind, suite in one.suites.items():
            arrays |= {f"{name}/{kind}/{key}": values for key, values in suite.to_arrays().items()}
    write_part(path, arrays)


def read_shard(path: Path, spec: ListsSpec) -> ListsShard:
    """DamagedArtifact where it cannot be read."""
    with part_arrays(path) as arrays:
        said = orjson.loads(arrays["parity"].tobytes())
        return ListsShard({name: _read_surface(name, one, arrays, said[name]) for name, one in _empty(spec).items()})


def _empty(spec: ListsSpec) -> dict[str, SurfaceSums]:
    return empty_shard(spec).surfaces


def _read_surface(
    name: str, empty: SurfaceSums, arrays: Mapping[str, npt.NDArray[np.generic]], said: dict[str, object]
) -> SurfaceSums:
    counts = counts_from_bytes(arrays[f"{name}/counts"])
    examples = [Mismatch(**one) for one in said.pop("examples")]  # type: ignore[attr-defined]
    suites = {
        kind: suite.load({key.removeprefix(f"{name}/{kind}/"): a for key, a in arrays.items() if f"{name}/{kind}/" in key})
        for kind, suite in empty.suites.items()
    }
    return SurfaceSums(suites, Parity(**said, examples=examples), counts)  # type: ignore[arg-type]
