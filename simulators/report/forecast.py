"""What a replay says of a later log, in rates that do not hang on how long either log is: per user and day."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from serve_app.policy.document import revision_of
from simulators.estimators import Estimated, Per
from simulators.estimators.settings import EstimateSettings
from simulators.replay.shard import Shard
from simulators.replay.spec import CONTROL, ReplaySpec
from simulators.report.tally import Tally

__all__ = ["complete_days", "forecasts"]

_DAY_US = 86_400_000_000
_REACH = 1.959963984540054  # normal quantile of 95 %


def complete_days(days: Sequence[int], attribution_us: int, log_end: int) -> float:
    """How much of these days (since 1970-01-01 UTC) is old enough for its rewards to be complete."""
    return sum(min(max((log_end - attribution_us) / _DAY_US - day, 0.0), 1.0) for day in days)


def forecasts(result: Shard, spec: ReplaySpec, tally: Tally, settings: EstimateSettings) -> list[dict[str, Any]]:
    """One entry a target: revision, and rates per user and day with 95 % intervals. Volume is counted, with the spread of
    users; outcomes are estimated, refused ones are left out."""
    days = [day for day in tally.days("logged", "decisions", "reason") if day >= 0]
    complete = complete_days(days, spec.attribution_us, spec.log_end)
    out = []
    for target in spec.targets:
        sends = tally.by(target.name, "users", "sends_in_window")
        rates = [_volume(sends, len(days)), *_outcomes(result, target.name, complete, settings)] if days else []
        revision = revision_of(target.document.encode())
        hours = spec.attribution_us / 3.6e9
        out.append({"policy": target.name, "revision": revision, "attribution_hours": hours, "rates": rates})
    return out


def _volume(users_by_sends: Mapping[int, int], days: int) -> dict[str, Any]:
    users = sum(users_by_sends.values())
    mean = sum(sends * n for sends, n in users_by_sends.items()) / max(users, 1)
    square = sum((sends - mean) ** 2 * n for sends, n in users_by_sends.items())
    error = math.sqrt(square / max(users - 1, 1) / max(users, 1))
    return _rate("sends", "counted", "usable", mean, mean - _REACH * error, mean + _REACH * error, days)


def _outcomes(result: Shard, policy: str, days: float, settings: EstimateSettings) -> list[dict[str, Any]]:
    found = []
    for one in result.suite.estimates(settings, per=(Per.user,), control=CONTROL):
        said = one.subject
        wanted = said.policy == policy and said.versus is None and said.group is None and said.metric != "sends"
        if wanted and isinstance(one, Estimated) and one.interval is not None and days > 0:
            ends = one.value, one.interval.low, one.interval.high
            found.append(_rate(said.metric, said.estimator, one.verdict.standing.value, *ends, days))
    return found


def _rate(metric: str, estimator: str, standing: str, value: float, low: float, high: float, days: float) -> dict[str, Any]:
    rates = {"value": value / days, "low": low / days, "high": high / days}
    return {"metric": metric, "estimator": estimator, "standing": standing, **rates}
