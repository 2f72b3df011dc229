"""The whole path against the truth: is what a replay says of a policy what happens when the policy is in force?

``python -m simulators.replay.honesty``: each seed makes a world of fresh people twice, under the policy that explores and
under the target, with equal people and equal noise. The first log is replayed under the target; the second is what the
target brings, counted by the same rules. The estimator named beforehand for such changes, `cells`, must hold the truth as
often as it says. Beside it stand the estimators that weigh each decision by itself, which keep the logged history and so
answer another question: how far off that is, is shown.

The window is one epoch of the cells, from the worlds' first moment, so that the target's epoch begins as the log's did: with
nobody tired. The truth is the mean over all seeds.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from functools import reduce
from operator import add
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from serve_app.log.reader import bucket_groups
from serve_app.policy.document import PolicyDocument, load_policy
from serve_app.policy.overrides import EXPERIMENT_ROOTS, apply_overrides
from simulators.estimators import LOGGED, EstimateSettings, Standing, Suite
from simulators.replay.asking import spec_for
from simulators.replay.partition import TABLES_READ
from simulators.replay.shard import Shard, empty_shard, replay_group
from simulators.replay.spec import ReplaySpec
from simulators.world.publish import BEHAVIOUR, publish
from simulators.world.settings import WorldSettings

__all__ = ["ESTIMATORS", "METRICS", "TARGETS", "Claim", "Held", "claims_of", "held"]

TARGETS: Mapping[str, Mapping[str, Any]] = {
    "cap 2 to 1": {"caps.global-3d.limit": 1},
    "cap 2 to 3": {"caps.global-3d.limit": 3},
    "threshold up": {"threshold": 0.15},
}
"""What is changed, one by one; each is one of the cells of the world's policy."""
ESTIMATORS = ("cells", "ips", "snips")
"""The first is the one named beforehand."""
METRICS = ("sends", "clicks", "reward")
_EPOCH_DAYS, _DAY_US = 7, 86_400_000_000
_START = date(2026, 10, 15)  # epochs of a week begin on Thursdays
_SETTINGS = EstimateSettings()
_WORTH = (("clicks", 1.0), ("opt_outs", -8.0))


@dataclass(frozen=True, slots=True)
class Claim:
    """What a replay said of a target in one world, a user: value and interval; happened: in the target's own world."""

    target: str
    estimator: str
    metric: str
    seed: int
    value: float
    low: float
    high: float
    refused: bool
    happened: float
    logged: float


@dataclass(frozen=True, slots=True)
class Held:
    """Over worlds: the truth (mean of what happened) with its standard error, the mean claim with its own, and the share of
    the intervals not refused that held the truth. logged: the mean under the policy that logged."""

    target: str
    estimator: str
    metric: str
    worlds: int
    logged: float
    truth: float
    truth_error: float
    claimed: float
    claimed_error: float
    coverage: float
    not_refused: int


def settings_of(seed: int, users: int) -> WorldSettings:
    """One epoch, and a day more for its last decisions to bear fruit."""
    return WorldSettings(users=users, items=100, days=_EPOCH_DAYS + 1, seed=seed, start=_START, blocks_per_day=4)


def claims_of(seed: int, users: int, targets: Mapping[str, Mapping[str, Any]] = TARGETS) -> list[Claim]:
    """Of one seed's worlds."""
    behaviour, settings = load_policy(BEHAVIOUR), settings_of(seed, users)
    documents = {
        name: apply_overrides(behaviour, changed, field="honesty", roots=EXPERIMENT_ROOTS)
        for name, changed in targets.items()
    }
    said = _replayed(settings, behaviour, documents)
    found = []
    for name, document in documents.items():
        happened = _replayed(settings, document, {"itself": document})
        for label in ESTIMATORS:
            for metric in METRICS:
                value, interval = said[label].interval(name, metric)
                refused = said.verdict(label, name, metric, _SETTINGS).standing is Standing.refused
                truth, logged = happened["snips"].point(LOGGED, metric).value, said["snips"].point(LOGGED, metric).value
                found.append(Claim(name, label, metric, seed, value, interval.low, interval.high, refused, truth, logged))
    return found


def _replayed(settings: WorldSettings, policy: PolicyDocument, targets: Mapping[str, PolicyDocument]) -> Suite:
    """The suite of a replay of a world's log, made for it and removed again. Decisions of the first epoch alone."""
    with tempfile.TemporaryDirectory(prefix="hindcast-honesty-") as folder:
        data = Path(folder) / "data"
        publish(settings, data, policy=policy)
        end = settings.start_us + _EPOCH_DAYS * _DAY_US
        spec = spec_for(data, targets, baseline=policy, end=end, estimators=("ips", "snips", "cells"), reward=_WORTH)
        spec = replace(spec, breakdowns=())
        return _whole(spec).suite


def _whole(spec: ReplaySpec) -> Shard:
    groups = bucket_groups(Path(spec.data), TABLES_READ)
    return reduce(add, (replay_group(group, spec) for group in groups), empty_shard(spec))


def held(claims: Sequence[Claim]) -> list[Held]:
    """Claims against the truth, by target, estimator and metric."""
    groups: dict[tuple[str, str, str], list[Claim]] = {}
    for one in claims:
        groups.setdefault((one.target, one.estimator, one.metric), []).append(one)
    return [_held(key, found) for key, found in groups.items()]


def _held(key: tuple[str, str, str], found: Sequence[Claim]) -> Held:
    happened, claimed = np.array([one.happened for one in found]), np.array([one.value for one in found])
    truth, n = float(happened.mean()), len(found)
    errors = (float(one.std(ddof=1) / np.sqrt(n)) if n > 1 else float("inf") for one in (happened, claimed))
    covered = [one.low <= truth <= one.high for one in found if not one.refused]
    logged = float(np.mean([one.logged for one in found]))
    truth_error, claimed_error = errors
    share = float(np.mean(covered)) if covered else float("nan")
    return Held(*key, n, logged, truth, truth_error, float(claimed.mean()), claimed_error, share, len(covered))


def _table(found: Sequence[Held]) -> Table:
    table = Table("target", "metric", "estimator", "logged", "truth", "claimed", "not refused", "of them held it")
    for one in sorted(found, key=lambda one: (one.target, one.metric)):
        table.add_row(
            one.target, one.metric, one.estimator, f"{one.logged:.4g}", f"{one.truth:.4g} ± {1.96 * one.truth_error:.2g}",
            f"{one.claimed:.4g} ± {1.96 * one.claimed_error:.2g}", str(one.not_refused), f"{one.coverage:.0%}",
        )  # fmt: skip
    return table


def main(
    worlds: Annotated[int, typer.Option(min=2, help="seeds are 1 to this")] = 40,
    users: Annotated[int, typer.Option(min=50, help="people in each")] = 1_500,
    out: Annotated[Path, typer.Option(help="results, JSON")] = Path("bench-results/honesty.json"),
) -> None:
    """Replays of a world's log under other policies, against the worlds where those were in force."""
    start, console = time.perf_counter(), Console()
    claims = [one for seed in track(range(1, worlds + 1), "worlds") for one in claims_of(seed, users)]
    found = held(claims)
    console.print(_table(found))
    out.parent.mkdir(parents=True, exist_ok=True)
    said = {"worlds": worlds, "users": users, "seconds": time.perf_counter() - start}
    out.write_text(json.dumps({**said, "held": [asdict(one) for one in found], "claims": [asdict(one) for one in claims]}))
    console.print(f"{said['seconds']:.0f} s; results in {out}")


if __name__ == "__main__":
    typer.run(main)
