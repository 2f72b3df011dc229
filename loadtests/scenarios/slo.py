"""Objectives for a run, as a file says them, and whether a result keeps them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from loadtests.scenarios.errors import LoadError
from loadtests.scenarios.results import ALL

__all__ = ["BROKEN", "NO_MEASUREMENT", "PASSED", "Finding", "Limits", "Objectives", "Verdict", "judge", "read_objectives"]

PASSED, BROKEN, NO_MEASUREMENT = 0, 10, 12
"""Exit codes."""
_ERRORS = ("error_rate", "refused_rate")
_STEADY_SHARE = 0.9  # a second is as good as before when this share of its requests got results
_STEADY_P99 = 2.0  # and its p99 is within this multiple of that before


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


_Share = Field(None, ge=0, le=1)
_Millis = Field(None, gt=0)


class Limits(_Strict):
    """Of one route, or of all together. What is left out is not judged."""

    p50_ms: float | None = _Millis
    p90_ms: float | None = _Millis
    p99_ms: float | None = _Millis
    p999_ms: float | None = _Millis
    max_ms: float | None = _Millis
    error_rate: float | None = _Share
    refused_rate: float | None = _Share
    degraded_rate: float | None = _Share
    throughput: float | None = Field(None, gt=0, description="least results a second")


class PhaseLimits(_Strict):
    """Of one phase."""

    all: Limits = Limits()
    routes: dict[str, Limits] = Field(default_factory=dict)
    goodput_of_before: float | None = Field(None, gt=0, le=100, description="results a second, against the phase before")


class GeneratorLimits(_Strict):
    """Beyond these the load generator was too slow to measure anything."""

    lateness_p99_ms: float = Field(50, gt=0)
    unsent: int = Field(0, ge=0)


class Objectives(_Strict):
    """The whole file."""

    format: Literal[1] = 1
    generator: GeneratorLimits = GeneratorLimits()
    all: Limits = Limits()
    routes: dict[str, Limits] = Field(default_factory=dict)
    phases: dict[str, PhaseLimits] = Field(default_factory=dict)
    violations: int = Field(0, ge=0, description="answers whose content was wrong")
    recovery_s: float | None = Field(None, ge=0, description="after a spike, until it is as before")


@dataclass(frozen=True)
class Finding:
    """One objective and what was measured. floor: at least the limit, else at most. kept None: nothing to judge by.
    certain: what was measured breaks it, whatever a better generator would have measured."""

    where: str
    what: str
    limit: float
    measured: float | None
    floor: bool = False
    certain: bool = False

    @property
    def kept(self) -> bool | None:
        """Whether it is."""
        if self.measured is None:
            return None
        return self.measured >= self.limit if self.floor else self.measured <= self.limit


@dataclass(frozen=True)
class Verdict:
    """The whole judgement. invalid: why the run is no measurement; empty where it is one."""

    findings: tuple[Finding, ...]
    invalid: tuple[str, ...]
    recovery_s: float | None

    @property
    def code(self) -> int:
        """The exit code. What broke is broken even in a run that is no measurement, if that cannot be why it broke."""
        if self.invalid and not any(one.kept is False and one.certain for one in self.findings):
            return NO_MEASUREMENT
        return BROKEN if any(one.kept is not True for one in self.findings) else PASSED


def read_objectives(path: Path) -> Objectives:
    """From YAML. LoadError names file, key and fix."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Objectives.model_validate(data)
    except FileNotFoundError:
        raise LoadError(f"{path}: no such file") from None
    except yaml.YAMLError as error:
        raise LoadError(f"{path}: is no YAML: {str(error).splitlines()[0]}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        unknown = first["type"] == "extra_forbidden"
        words = "unknown key; remove it or correct its spelling" if unknown else first["msg"]
        raise LoadError(f"{path}: {where}: {words}") from None


def judge(result: Mapping[str, Any], objectives: Objectives) -> Verdict:
    """A result.json against objectives. LoadError: objectives name a route or phase the run did not have."""
    rows = {(row["phase"], row["route"]): row for row in result["rows"]}
    spared = _spared(result["generator"], objectives.generator)
    findings = list(_of_limits(rows, ALL, objectives.all, objectives.routes, spared))
    known = [one["name"] for one in result["phases"]]
    for name, limits in objectives.phases.items():
        if name not in known:
            raise LoadError(f"phases: the run has no phase {name!r}; it has {', '.join(known)}")
        findings += _of_limits(rows, name, limits.all, limits.routes, spared)
        if limits.goodput_of_before is not None:
            findings.append(_goodput(rows, known, name, limits.goodput_of_before))
    wrong = float(result["violations"]["total"])
    findings.append(Finding("answers", "violations", objectives.violations, wrong, certain=True))
    recovery = recovery_seconds(result)
    if objectives.recovery_s is not None:
        findings.append(Finding("after the spike", "recovery_s", objectives.recovery_s, recovery))
    return Verdict(tuple(findings), tuple(_invalid(result["generator"], objectives.generator)), recovery)


def _of_limits(
    rows: Mapping[tuple[str, str], Mapping[str, Any]], phase: str, whole: Limits, routes: Mapping[str, Limits],
    spared: int | None,
) -> Iterator[Finding]:  # fmt: skip
    for route, limits in {ALL: whole, **routes}.items():
        row = rows.get((phase, route))
        where = route if phase == ALL else f"{phase}: {route}"
        for name, limit in limits.model_dump(exclude_none=True).items():
            if name == "throughput":
                yield Finding(where, name, limit, row["ok_per_s"] if row else None, floor=True)
            else:
                certain = row is not None and name in _ERRORS and _breaks(row, name, limit, spared)
                yield Finding(where, name, limit, row[name] if row else None, certain=certain)


def _breaks(row: Mapping[str, Any], name: str, limit: float, spared: int | None) -> bool:
    """Whether a rate is beyond its limit even if every request that was never sent had got a result."""
    return spared is not None and row[name] * row["requests"] > limit * (row["requests"] + spared)


def _spared(generator: Mapping[str, Any], limits: GeneratorLimits) -> int | None:
    """Requests that were never sent. None where errors may be the generator's own: it lagged, or parts of it are missing."""
    return None if generator["workers_missing"] or _lagged(generator, limits) else generator["unsent"]


def _lagged(generator: Mapping[str, Any], limits: GeneratorLimits) -> bool:
    late = generator["lateness_p99_ms"]
    return late is not None and late > limits.lateness_p99_ms


def _goodput(rows: Mapping[tuple[str, str], Mapping[str, Any]], phases: list[str], name: str, limit: float) -> Finding:
    at = phases.index(name)
    if at == 0:
        raise LoadError(f"phases.{name}.goodput_of_before: no phase comes before it")
    # The phase before may offer less than the server can do; then this asks for less than its capacity.
    own, before = (rows.get((one, ALL), {}).get("ok_per_s") for one in (name, phases[at - 1]))
    return Finding(f"{name}: {ALL}", "goodput_of_before", limit, own / before if own and before else None, floor=True)


def _invalid(generator: Mapping[str, Any], limits: GeneratorLimits) -> Iterator[str]:
    if generator["workers_missing"]:
        yield f"{generator['workers_missing']} workers sent no measurements"
    if not generator["sent"]:
        yield "nothing was sent"
    if generator["unsent"] > limits.unsent:
        yield f"{generator['unsent']} of {generator['planned']} requests were never sent: too many were under way"
    if _lagged(generator, limits):
        late = f"p99 of its lateness is {generator['lateness_p99_ms']:.0f} ms, {limits.lateness_p99_ms:g} is allowed"
        yield f"the generator could not keep up: {late}"


def recovery_seconds(result: Mapping[str, Any]) -> float | None:
    """Seconds from a spike's end until every later second is as good as those before it; None without a spike."""
    phases = {one["name"]: one for one in result["phases"]}
    if "spike" not in phases:
        return None
    spike = phases["spike"]
    end = spike["start_s"] + spike["seconds"]
    before = [one["p99_ms"] for one in result["seconds"] if one["second"] < spike["start_s"] - 1 and one["p99_ms"]]
    usual = sorted(before)[int(0.9 * (len(before) - 1))] if before else None
    last = end
    for one in result["seconds"]:
        if one["second"] >= end and not _as_good(one, usual):
            last = one["second"] + 1
    return float(last - end)


def _as_good(second: Mapping[str, Any], usual_p99_ms: float | None) -> bool:
    total = second["ok"] + second["refused"] + second["failed"]
    if not total:
        return second["planned"] == 0
    if second["ok"] < _STEADY_SHARE * total or second["failed"]:
        return False
    return usual_p99_ms is None or second["p99_ms"] <= max(_STEADY_P99 * usual_p99_ms, 50.0)
