"""A sweep: many settings of one policy over the same log, the frontier between volume and what it brings.

::

    settings: {caps.global-3d.limit: [1, 2, 3], threshold: [0.03, 0.06, 0.12]}
    metric: clicks            # what a send is for
    estimator: snips          # cells where caps are varied and the log has cells
    sends_at_most: 1.0        # times the log's: what may be chosen

The best of many looks better than it is. So the choice is made on one half of the users, by a hash, and what it is worth is
said from the other half. It goes by the lower end of each interval, so that a setting of which little is known does not win
by luck.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serve_app.errors import InvalidInput
from serve_app.policy.document import PolicyDocument
from serve_app.policy.overrides import EXPERIMENT_ROOTS, apply_overrides
from simulators.estimators import Estimated, Per, Suite
from simulators.estimators.settings import EstimateSettings
from simulators.replay.estimation import HALVES
from simulators.replay.shard import Shard
from simulators.replay.spec import CONTROL

__all__ = ["Point", "SweepPlan", "chosen", "frontier", "grid", "load_sweep"]

_MOST = 32


class SweepPlan(BaseModel):
    """What to try, and what to choose by. Paths are those of a policy's experiments and cells."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    settings: dict[str, list[Any]] = Field(min_length=1)
    metric: Literal["clicks", "conversions", "revenue"] = "clicks"
    estimator: Literal["snips", "cells"] = "snips"
    sends_at_most: float = Field(1.0, gt=0, le=100)


@dataclass(frozen=True, slots=True)
class Half:
    """Of one half of the users, a user: sends, counted; the metric's paired difference from the log with its interval. None:
    refused."""

    sends: float
    logged_sends: float
    difference: float | None
    low: float | None
    high: float | None
    standing: str


@dataclass(frozen=True, slots=True)
class Point:
    """One setting. best_for_its_sends: no other sends as little and brings as much for sure (lower ends of intervals), on
    the half that chooses."""

    name: str
    choose: Half
    judge: Half
    best_for_its_sends: bool


def load_sweep(path: Path) -> SweepPlan:
    """Read a YAML or JSON file. InvalidInput names the key and the fix."""
    try:
        data = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path.name} cannot be read: {error}", field="sweep") from None
    try:
        plan = SweepPlan.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in ("sweep", *first["loc"]))
        raise InvalidInput(first["msg"], field=where, hint="settings: {threshold: [0.03, 0.06]}") from None
    size = 1
    for name, values in plan.settings.items():
        if not values:
            raise InvalidInput("name one value at least", field=f"sweep.settings.{name}")
        size *= len(values)
    if size > _MOST:
        raise InvalidInput(
            f"{size} combinations", field="sweep.settings", hint=f"{_MOST} at most: try fewer values at a time"
        )
    return plan


def grid(base: PolicyDocument, plan: SweepPlan) -> dict[str, PolicyDocument]:
    """Every combination as a policy, without experiments and cells of its own. Raises ContradictoryPolicy for a path that
    leads nowhere or a value out of bounds."""
    out = {}
    for values in product(*plan.settings.values()):
        overrides = dict(zip(plan.settings, values, strict=True))
        name = ", ".join(f"{path} {value}" for path, value in overrides.items())
        out[name] = apply_overrides(base, overrides, field="sweep.settings", roots=EXPERIMENT_ROOTS)
    return out


def frontier(result: Shard, plan: SweepPlan, settings: EstimateSettings | None = None) -> list[Point]:
    """Every setting, by sends. Raises InvalidInput where the wanted estimator did not run."""
    settings = settings or EstimateSettings()
    if plan.estimator not in result.sums.suites[HALVES[0]].labels:
        hint = "cells need a log written under one policy with cells; name snips"
        raise InvalidInput(f"no estimator {plan.estimator!r} ran", field="sweep.estimator", hint=hint)
    volume = _sends(result)
    choose, judge = (_halves(result.sums.suites[half], k, plan, settings, volume) for k, half in enumerate(HALVES))
    points = []
    for name, one in choose.items():
        beaten = one.low is None or any(_beats(other, one) for other in choose.values())
        points.append(Point(name, one, judge[name], not beaten))
    return sorted(points, key=lambda point: (point.choose.sends, point.name))


def _beats(other: Half, one: Half) -> bool:
    if other.low is None or one.low is None:
        return False
    as_good = other.sends <= one.sends and other.low >= one.low
    return as_good and (other.sends < one.sends or other.low > one.low)


def chosen(points: Sequence[Point], plan: SweepPlan) -> Point | None:
    """What brings most for sure on the half that chooses, among what may be sent; None where all of that is refused."""
    allowed = [
        one
        for one in points
        if one.choose.low is not None and one.choose.sends <= plan.sends_at_most * one.choose.logged_sends
    ]
    return max(allowed, key=lambda one: (one.choose.low or 0.0, -one.choose.sends), default=None)


def _sends(result: Shard) -> dict[tuple[str, int], float]:
    """Sends a user by (policy, half)."""
    sums: dict[tuple[str, str, int], int] = {}
    for row in result.counts.to_pylist():
        if row["dimension"] == "half":
            key = row["measure"], row["policy"], row["key"]
            sums[key] = sums.get(key, 0) + row["value"]
    return {
        (policy, half): sums.get(("half_sends", policy, half), 0) / users
        for (measure, policy, half), users in sums.items()
        if measure == "half_users"
    }


def _halves(
    suite: Suite, half: int, plan: SweepPlan, settings: EstimateSettings, volume: Mapping[tuple[str, int], float]
) -> dict[str, Half]:
    out = {}
    for one in suite.estimates(settings, per=(Per.user,), control=CONTROL):
        said = one.subject
        wanted = (said.estimator, said.metric) == (plan.estimator, plan.metric)
        if not wanted or said.versus is None or said.policy == CONTROL:
            continue
        numbers: tuple[float | None, float | None, float | None] = (None, None, None)
        if isinstance(one, Estimated) and one.interval is not None:
            numbers = one.value, one.interval.low, one.interval.high
        sends, logged = volume.get((said.policy, half), 0.0), volume.get(("logged", half), 0.0)
        out[said.policy] = Half(sends, logged, *numbers, one.verdict.standing.value)
    return out
