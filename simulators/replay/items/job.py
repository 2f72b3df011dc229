"""The replay of lists as a Ray Data job: one task a bucket group, results as files, resumed where it was stopped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from serve_app.errors import InvalidInput
from serve_app.ids import BUCKETS
from serve_app.log.reader import BucketGroup, bucket_groups, read_files
from serve_app.policy.document import PolicyDocument, canonical_json
from serve_app.vocabulary import Surface
from simulators.estimators.outcome_model import OutcomeModel, load_outcome_model
from simulators.replay.items.logged import read_lists
from simulators.replay.items.outcomes import ENOUGH, features_of, fitted, remaining
from simulators.replay.items.releases import scorer_for
from simulators.replay.items.rewards import EVENT_COLUMNS, slot_rewards
from simulators.replay.items.scoring import Scorer
from simulators.replay.items.shard import ListsShard, empty_shard, people_of, read_shard, replay_lists, write_shard
from simulators.replay.items.spec import ListsSpec
from simulators.replay.job import log_end
from simulators.replay.pack_shelf import erased_among
from simulators.replay.parts import Task, group_of, make_missing, part_file, parts_folder, task_of
from simulators.replay.spec import Target, logged_document

__all__ = ["lists_spec", "run_lists"]

_TABLES = ("requests", "candidates", "events")


def lists_spec(
    data: Path,
    targets: Mapping[str, PolicyDocument],
    surfaces: Sequence[str],
    *,
    baseline: PolicyDocument | None = None,
    start: int = -(2**62),
    end: int = 2**62,
    attribution_us: int = 86_400_000_000,
    segments: Sequence[str] = (),
    release: str = "",
    retrieval: bool = False,
    drawings: int = 0,
    if_logged: bool = False,
) -> ListsSpec:
    """A replay of `targets` over the lists in `data`. if_logged: pass over surfaces of which no list is, unless that is all.
    Raises InvalidInput where no list of a surface is logged, and UnknownIdentifier where a policy that made lists is
    neither stored nor given."""
    if retrieval and not release:
        raise InvalidInput("needs the release whose retrieval is to run", field="retrieval", hint="pass --release R")
    logged = _logged(data)
    absent = [name for name in surfaces if not logged.get(Surface[name])]
    if if_logged and len(absent) < len(surfaces):
        surfaces, absent = [one for one in surfaces if one not in absent], []
    if absent:
        here = ", ".join(one.name for one in logged if one != Surface.notification) or "none"
        raise InvalidInput(f"no list of {', '.join(absent)} is logged", field="surface", hint=f"logged are {here}")
    revisions = sorted({one for name in surfaces for one in logged[Surface[name]]})
    behaviour = {one: logged_document(data, one, baseline) for one in revisions}
    return ListsSpec(
        str(data.resolve()), tuple(surfaces),
        tuple(Target(name, canonical_json(one).decode()) for name, one in targets.items()),
        tuple(Target(name, canonical_json(one).decode()) for name, one in behaviour.items()),
        start, end, attribution_us, log_end(data), tuple(segments), release, retrieval, drawings,
    )  # fmt: skip


def run_lists(
    spec: ListsSpec, out: Path, *, progress: Callable[[int, int], None] = lambda *_: None, local: bool = False
) -> ListsShard:
    """Replay every bucket group that `out` does not hold yet; returns the sum of all, in bucket order. local: in this
    process instead of Ray. progress(groups done, groups). Raises what a task raised; what other tasks finished stays."""
    groups = bucket_groups(spec.data, _TABLES)
    folder = _folder(out, spec, groups)
    _fit(spec, groups, folder)
    tasks = [task_of(group) for group in groups if not part_file(folder, group).is_file()]
    make_missing(_task(spec, folder), tasks, len(groups), progress, local=local)
    total = empty_shard(spec)
    for group in groups:
        total = total + read_shard(part_file(folder, group), spec)
    return total


def _logged(data: Path) -> dict[Surface, set[str]]:
    """Revisions that decided, by surface."""
    found: dict[Surface, set[str]] = {}
    for group in bucket_groups(data, ("requests",)):
        for path in group.files["requests"]:
            rows = read_files([path], "requests", columns=("surface", "policy_revision"))
            for surface in pc.unique(rows["surface"]).to_pylist():
                mine = rows.filter(pc.equal(rows["surface"], surface))["policy_revision"]
                found.setdefault(Surface(surface), set()).update(pc.unique(mine).to_pylist())
    return found


def _folder(out: Path, spec: ListsSpec, groups: Sequence[BucketGroup]) -> Path:
    """The folder of this replay's parts."""
    files = [str(Path(path).relative_to(spec.data)) for group in groups for some in group.files.values() for path in some]
    name = spec.digest([*files, erased_among(Path(spec.data), 0, BUCKETS - 1)])
    return parts_folder(out, f"lists-{name}", asdict(spec), groups)


def _task(spec: ListsSpec, folder: Path) -> Callable[[Task], Task]:
    def run(task: Task) -> Task:
        group = group_of(task)
        folders = {name: folder / f"outcome-{name}" for name in spec.surfaces}
        models = {name: _model(str(one)) for name, one in folders.items() if one.is_dir()}
        write_shard(part_file(folder, group), replay_lists(group, spec, models, _scorer(spec)))
        return {"low": group.low}

    return run


@lru_cache(maxsize=8)
def _model(folder: str) -> OutcomeModel:
    return load_outcome_model(Path(folder))


@lru_cache(maxsize=2)
def _scorer(spec: ListsSpec) -> Scorer:
    """One a process: a release is opened once."""
    return scorer_for(spec)


def _fit(spec: ListsSpec, groups: Sequence[BucketGroup], folder: Path) -> None:
    """Outcome models of the surfaces that have none in `folder` yet, on the users of the first groups."""
    for name in spec.surfaces:
        if not (folder / f"outcome-{name}" / "outcome.json").is_file():
            model = _fitted(spec, groups, Surface[name])
            if model is not None:
                model.save(folder / f"outcome-{name}")


def _fitted(spec: ListsSpec, groups: Sequence[BucketGroup], surface: Surface) -> OutcomeModel | None:
    """None where no list is old enough for its rewards: nothing will be estimated."""
    read, slots, heads = [], 0, dict[str, None]()
    for group in groups:
        parts, _ = read_lists(group, [surface])
        events = read_files(group.files.get("events", ()), "events", columns=EVENT_COLUMNS)
        for part in parts:
            old = part.requests["decided_at"] + spec.attribution_us <= spec.log_end
            lists = part.take(old & ~part.fell_back & ~people_of(part, events))
            if len(lists):
                read.append((lists, slot_rewards(lists, events, spec.attribution_us)))
                slots += len(read[-1][1])
                heads |= dict.fromkeys(lists.head_names)
        if slots >= ENOUGH:
            break
    if not slots:
        return None
    users, features, rewards = [], [], []
    for lists, reward in read:
        shown = lists.shown()
        users.append(lists.user[lists.owner[shown]])
        position = lists.candidates["slot"][shown].astype(np.int64)
        features.append(features_of(lists, shown, position, list(heads)))
        rewards.append(remaining(reward, lists.owner[shown]))
    return fitted(np.concatenate(users), np.concatenate(features), np.concatenate(rewards), list(heads))
