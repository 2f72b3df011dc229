"""Guardrails: bounds on what a policy may change, judged on paired intervals, so that a CI job can act on a replay.

::

    opt_out_rate: {max_increase: {relative: 0.01}}
    sends: {max_decrease: {relative: 0.10}, max_increase: {relative: 0.0}}
    revenue: {max_decrease: {absolute: 0.5}, estimator: cells}

A bound is kept where the whole interval of the difference lies inside, broken where all of it lies outside, inconclusive
where it straddles, refused where there is no number. `sends` is exact and has no interval.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from serve_app.errors import InvalidInput
from simulators.estimators import LOGGED, Estimated, Per, Suite
from simulators.estimators.settings import EstimateSettings
from simulators.replay.spec import CONTROL

__all__ = ["METRICS", "Found", "Guardrail", "Outcome", "judge_guardrails", "load_guardrails", "worst"]

METRICS: Mapping[str, tuple[str, Per]] = {
    "clicks": ("clicks", Per.user),
    "conversions": ("conversions", Per.user),
    "revenue": ("revenue", Per.user),
    "opt_outs": ("opt_outs", Per.user),
    "click_rate": ("clicks", Per.send),
    "conversion_rate": ("conversions", Per.send),
    "opt_out_rate": ("opt_outs", Per.send),
    "revenue_per_send": ("revenue", Per.send),
}
"""Guardrails' names of what is estimated; `sends` (a user) is counted."""


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
    """How far one metric may move from the log's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_increase: _Bound | None = None
    max_decrease: _Bound | None = None
    estimator: str = "snips"

    @model_validator(mode="after")
    def _bounded(self) -> Guardrail:
        if self.max_increase is None and self.max_decrease is None:
            raise ValueError("give max_increase, max_decrease or both")
        return self


class Found(BaseModel):
    """One guardrail's verdict on one policy. low, high: of the difference (policy - logged); absent where refused."""

    metric: str
    policy: str
    outcome: Outcome
    low: float | None
    high: float | None
    allowed_low: float | None
    allowed_high: float | None
    logged: float | None
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
    known = ", ".join(("sends", *METRICS))
    found = {}
    for name, one in data.items():
        if name != "sends" and name not in METRICS:
            raise InvalidInput(f"no metric {name!r}", field=f"guardrails.{name}", hint=f"one of {known}")
        try:
            found[name] = Guardrail.model_validate(one)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in ("guardrails", name, *first["loc"]))
            raise InvalidInput(first["msg"], field=where) from None
    return found


def judge_guardrails(
    rails: Mapping[str, Guardrail], suite: Suite, sends_a_user: Mapping[str, float], settings: EstimateSettings | None = None
) -> list[Found]:
    """Every guardrail on every target. sends_a_user: counted, by policy, "logged" among them."""
    settings = settings or EstimateSettings()
    targets = [one for one in suite.policies[1:] if one != CONTROL]
    return [_judge(name, rail, target, suite, sends_a_user, settings) for name, rail in rails.items() for target in targets]


def _judge(
    name: str, rail: Guardrail, target: str, suite: Suite, sends: Mapping[str, float], settings: EstimateSettings
) -> Found:
    if name == "sends":
        moved = sends[target] - sends["logged"]
        return _placed(name, rail, target, moved, moved, sends["logged"])
    metric, per = METRICS[name]
    if rail.estimator not in suite.labels:
        known = ", ".join(suite.labels)
        raise InvalidInput(
            f"no estimator {rail.estimator!r} ran", field=f"guardrails.{name}.estimator", hint=f"one of {known}"
        )
    for one in suite.estimates(settings, per=(per,), control=CONTROL):
        subject = one.subject
        if (subject.estimator, subject.policy, subject.metric, subject.versus) != (rail.estimator, target, metric, LOGGED):
            continue
        if isinstance(one, Estimated) and one.interval is not None:
            logged = suite[rail.estimator].point(LOGGED, metric, per).value
            return _placed(name, rail, target, one.interval.low, one.interval.high, logged)
        why = "; ".join(one.verdict.reasons) or "no interval is claimed"
        return Found(
            metric=name, policy=target, outcome=Outcome.refused, low=None, high=None, allowed_low=None, allowed_high=None,
            logged=None, why=why,
        )  # fmt: skip
    raise InvalidInput(f"{rail.estimator} gives no {per} value", field=f"guardrails.{name}.estimator", hint="name another")


def _placed(name: str, rail: Guardrail, target: str, low: float, high: float, logged: float) -> Found:
    least = -rail.max_decrease.size(logged) if rail.max_decrease else float("-inf")
    most = rail.max_increase.size(logged) if rail.max_increase else float("inf")
    inside, outside = least <= low and high <= most, high < least or low > most
    outcome = Outcome.kept if inside else Outcome.broken if outside else Outcome.inconclusive
    said = {
        "allowed_low": least if rail.max_decrease else None,
        "allowed_high": most if rail.max_increase else None,
    }
    return Found(metric=name, policy=target, outcome=outcome, low=low, high=high, logged=logged, why="", **said)


def worst(found: Iterable[Found], *, parity: bool) -> Outcome:
    """Of all: broken outranks the rest. parity: the log's own policy reproduced the log, or that was waived."""
    outcomes: Sequence[Outcome] = [one.outcome for one in found] + ([] if parity else [Outcome.parity])
    return next((one for one in _WORST_FIRST if one in outcomes), Outcome.kept)
