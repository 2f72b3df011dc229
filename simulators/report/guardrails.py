"""Guardrails: bounds on what a policy may change or reach, judged on 95 % intervals, so that a CI job can act on a replay.

::

    opt_out_rate: {max_increase: {relative: 0.01}}                      # of the log's own
    sends: {max_increase: {relative: 0.0}, max_decrease: {relative: 0.10}}
    revenue: {max_decrease: {absolute: 0.5}, estimator: cells}          # in the measure's own unit
    click_rate: {min: 0.05}                                             # of the policy itself, wherever the log stands

`max_increase` and `max_decrease` bound the paired difference (policy - log); `min` and `max` bound the policy's own value.
A bound is kept where the whole interval lies inside, broken where all of it lies outside, inconclusive where it straddles,
refused where there is no number. Volumes (`sends`, `reach`) are counted and have no width. Without `estimator`, the one that
suits what the policy changes is taken (`headline.preferred`), before any number is looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from serve_app.errors import InvalidInput
from simulators.estimators import LOGGED, Estimate, Estimated, Per, Suite
from simulators.estimators.settings import EstimateSettings
from simulators.replay.spec import CONTROL

__all__ = ["METRICS", "VOLUMES", "Found", "Guardrail", "Outcome", "judge_guardrails", "load_guardrails", "placed", "worst"]

METRICS: Mapping[str, tuple[str, Per]] = {
    "clicks": ("clicks", Per.user),
    "conversions": ("conversions", Per.user),
    "revenue": ("revenue", Per.user),
    "opt_outs": ("opt_outs", Per.user),
    "reward": ("reward", Per.user),
    "click_rate": ("clicks", Per.send),
    "conversion_rate": ("conversions", Per.send),
    "opt_out_rate": ("opt_outs", Per.send),
    "revenue_per_send": ("revenue", Per.send),
}
"""Guardrails' names of what is estimated: a user, or a send."""

VOLUMES = {"sends": "sends a user", "reach": "share of users who are sent anything"}
"""What is counted on the policy's own course."""


class Outcome(IntEnum):
    """Of one guardrail, or of all. The number is the exit code."""

    kept = 0
    broken = 10
    inconclusive = 11
    refused = 12
    parity = 13


_WORST_FIRST = (Outcome.broken, Outcome.parity, Outcome.refused, Outcome.inconclusive, Outcome.kept)


class _Bound(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    relative: float | None = Field(default=None, ge=0, le=10)
    absolute: float | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _one(self) -> _Bound:
        if (self.relative is None) == (self.absolute is None):
            raise ValueError("give either relative or absolute")
        return self

    def size(self, logged: float) -> float:
        """In the metric's own unit."""
        return self.absolute if self.absolute is not None else (self.relative or 0.0) * abs(logged)


class Guardrail(BaseModel):
    """How far one metric may move from the log's, and what the policy's own value must reach. estimator: empty for the one
    that suits the policy's changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_increase: _Bound | None = None
    max_decrease: _Bound | None = None
    min: float | None = Field(default=None, allow_inf_nan=False)
    max: float | None = Field(default=None, allow_inf_nan=False)
    estimator: str = ""

    @model_validator(mode="after")
    def _bounded(self) -> Guardrail:
        if not (self.bounds_change or self.bounds_level):
            raise ValueError("give max_increase, max_decrease, min or max")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError("min is above max")
        return self

    @property
    def bounds_change(self) -> bool:
        """Of the difference from the log?"""
        return self.max_increase is not None or self.max_decrease is not None

    @property
    def bounds_level(self) -> bool:
        """Of the policy's own value?"""
        return self.min is not None or self.max is not None


class Found(BaseModel):
    """One guardrail's verdict on one policy. of: `change`, the difference policy - logged, or `level`, the policy's own
    value. low, high: of that; absent where refused. estimator: `counted` for volumes; standing: how far to trust it."""

    metric: str
    policy: str
    of: str
    outcome: Outcome
    low: float | None
    high: float | None
    allowed_low: float | None
    allowed_high: float | None
    logged: float | None
    estimator: str
    standing: str
    why: str


def load_guardrails(path: Path) -> dict[str, Guardrail]:
    """Read a YAML or JSON file. InvalidInput names the metric or key and the fix."""
    try:
        data = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path.name} cannot be read: {error}", field="guardrails") from None
    if not isinstance(data, dict) or not data:
        raise InvalidInput(
            f"{path.name} holds no guardrails", field="guardrails", hint="metric: {max_increase: {relative: 0.01}}"
        )
    return {str(name): _rail(str(name), one) for name, one in data.items()}


def _rail(name: str, said: object) -> Guardrail:
    known = ", ".join((*VOLUMES, *METRICS))
    if name not in VOLUMES and name not in METRICS:
        raise InvalidInput(f"no metric {name!r}", field=f"guardrails.{name}", hint=f"one of {known}")
    try:
        rail = Guardrail.model_validate(said)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in ("guardrails", name, *first["loc"]))
        hint = f"keys are {', '.join(Guardrail.model_fields)}; bounds of change are {{relative: 0.01}} or {{absolute: 2}}"
        raise InvalidInput(first["msg"], field=where, hint=hint) from None
    if rail.estimator and name in VOLUMES:
        raise InvalidInput(f"{name} is counted, not estimated", field=f"guardrails.{name}.estimator", hint="leave it out")
    return rail


@dataclass(frozen=True, slots=True)
class _Number:
    """Of one target: change and level as (low, high), None where refused; what the log has; whose it is."""

    change: tuple[float, float] | None
    level: tuple[float, float] | None
    logged: float | None
    estimator: str
    standing: str
    why: str = ""


def judge_guardrails(
    rails: Mapping[str, Guardrail],
    suite: Suite,
    volumes: Mapping[str, Mapping[str, float]],
    *,
    order: Mapping[str, Sequence[str]],
    settings: EstimateSettings | None = None,
) -> list[Found]:
    """Every bound of every guardrail on every target. volumes: VOLUMES by policy, "logged" among them. order: estimators by
    target, the first that ran is taken where a guardrail names none."""
    settings = settings or EstimateSettings()
    targets = [one for one in suite.policies[1:] if one != CONTROL]
    asked = list(suite.estimates(settings, per=(Per.user, Per.send), control=CONTROL)) if set(rails) - set(VOLUMES) else []
    out = []
    for name, rail in rails.items():
        for target in targets:
            number = (
                _counted(volumes[target][name], volumes["logged"][name])
                if name in VOLUMES
                else _estimated(name, rail, target, suite, order[target], asked)
            )
            out += list(_bounds(name, rail, target, number))
    return out


def _counted(own: float, logged: float) -> _Number:
    return _Number((own - logged, own - logged), (own, own), logged, "counted", "exact")


def _estimated(
    name: str, rail: Guardrail, target: str, suite: Suite, order: Sequence[str], asked: Sequence[Estimate]
) -> _Number:
    """Raises InvalidInput for an estimator that did not run, or gives no such value."""
    metric, per = METRICS[name]
    if metric not in suite.metrics:
        known = ", ".join(one for one, (of, _) in METRICS.items() if of in suite.metrics)
        raise InvalidInput(f"{metric} was not computed", field=f"guardrails.{name}", hint=f"one of {known}")
    label = rail.estimator or next((one for one in order if one in suite.labels), "")
    if label not in suite.labels:
        known = ", ".join(one for one in suite.labels if suite[one].grouping is None)
        raise InvalidInput(f"no estimator {label!r} ran", field=f"guardrails.{name}.estimator", hint=f"one of {known}")
    if not suite[label].offers(per):
        raise InvalidInput(f"{label} gives no {per} value", field=f"guardrails.{name}.estimator", hint="name another")
    ends: dict[bool, tuple[float, float]] = {}
    standing, why = "refused", ""
    for one in asked:
        subject = one.subject
        if (subject.estimator, subject.policy, subject.metric, subject.per) != (label, target, metric, per):
            continue
        standing = one.verdict.standing.value
        if isinstance(one, Estimated) and one.interval is not None:
            ends[subject.versus == LOGGED] = one.interval.low, one.interval.high
        else:
            standing, why = "refused", "; ".join(one.verdict.reasons) or "no interval is claimed"
    logged = suite[label].point(LOGGED, metric, per).value if ends else None
    return _Number(ends.get(True), ends.get(False), logged, label, standing, why)


def _bounds(name: str, rail: Guardrail, target: str, number: _Number) -> Iterator[Found]:
    said = {"metric": name, "policy": target, "estimator": number.estimator, "standing": number.standing}
    if rail.bounds_change:
        base = number.logged or 0.0
        least = -rail.max_decrease.size(base) if rail.max_decrease else None
        most = rail.max_increase.size(base) if rail.max_increase else None
        yield _placed(said, "change", number.change, (least, most), number)
    if rail.bounds_level:
        yield _placed(said, "level", number.level, (rail.min, rail.max), number)


def _placed(
    said: Mapping[str, str], of: str, ends: tuple[float, float] | None, allowed: tuple[float | None, float | None],
    number: _Number,
) -> Found:  # fmt: skip
    where: dict[str, float | None]
    if ends is None:
        where = {"low": None, "high": None, "allowed_low": None, "allowed_high": None, "logged": None}
        return Found.model_validate({**said, **where, "of": of, "outcome": Outcome.refused, "why": number.why})
    where = {"low": ends[0], "high": ends[1], "allowed_low": allowed[0], "allowed_high": allowed[1]}
    outcome = placed(ends, allowed)
    return Found.model_validate({**said, **where, "logged": number.logged, "of": of, "outcome": outcome, "why": number.why})


def placed(ends: tuple[float, float], allowed: tuple[float | None, float | None]) -> Outcome:
    """Where an interval lies beside what is allowed (None: no bound on that side), both ends of which are inside."""
    least = float("-inf") if allowed[0] is None else allowed[0]
    most = float("inf") if allowed[1] is None else allowed[1]
    low, high = ends
    if least <= low and high <= most:
        return Outcome.kept
    return Outcome.broken if high < least or low > most else Outcome.inconclusive


def worst(found: Iterable[Found], *, parity: bool) -> Outcome:
    """Of all: broken outranks the rest. parity: the log's own policy reproduced the log, or that was waived."""
    outcomes: Sequence[Outcome] = [one.outcome for one in found] + ([] if parity else [Outcome.parity])
    return next((one for one in _WORST_FIRST if one in outcomes), Outcome.kept)
