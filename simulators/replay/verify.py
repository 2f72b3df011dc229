"""A forecast against what happened: the rates of a report beside those of a later log, decided under the promoted target.

Rates are per user (asked at least once) and day (UTC, with any decision under the policy). Both sides carry the spread of
their users; what neither can carry is that the later days may be other days.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from serve_app.errors import DamagedArtifact, InvalidInput
from serve_app.log.reader import bucket_groups
from simulators.replay.counts import DAY_US
from simulators.replay.job import log_end
from simulators.replay.partition import TABLES_READ, read_partition
from simulators.replay.rewards import METRICS, attributed

__all__ = ["Check", "Observed", "compare", "observed", "read_forecast"]

F64 = npt.NDArray[np.float64]
_REACH = 1.959963984540054  # normal quantile of 95 %


@dataclass(frozen=True, slots=True)
class Observed:
    """Of one policy in a log: users, and by metric the rate per user and day with its standard error; asked: decisions per
    user and day."""

    users: int
    days: float
    asked: float
    rates: Mapping[str, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Check:
    """One forecast rate beside what happened. matched: the difference is within what both intervals allow for. speaks: it is
    of the estimator that stood at the top of the report."""

    metric: str
    estimator: str
    standing: str
    forecast: float
    forecast_low: float
    forecast_high: float
    found: float
    found_low: float
    found_high: float
    matched: bool
    speaks: bool = True


def read_forecast(report: Path, policy: str = "") -> dict[str, Any]:
    """The forecast of one target (the only one, where `policy` is not named) from a report's JSON; its `speaks` says whose
    number of a metric stood at the top. Raises InvalidInput naming the targets, DamagedArtifact where it is no report."""
    try:
        said = orjson.loads(report.read_bytes())
        found = {one["policy"]: one for one in said["forecast"]}
        for name, one in found.items():
            one["asked"] = _asked(said, name)
            one["speaks"] = {metric: top["estimator"] for metric, top in said["headline"][name].items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        hint = "give the report.json that `hindcast replay` wrote"
        raise DamagedArtifact(f"holds no forecast: {error}", field=str(report), hint=hint) from None
    if not policy and len(found) == 1:
        return dict(next(iter(found.values())))
    if policy not in found:
        raise InvalidInput(f"no target {policy!r}", field="policy", hint=f"one of {', '.join(found)}")
    return dict(found[policy])


def _asked(said: Mapping[str, Any], policy: str) -> float:
    """Decisions per user and day that a report counted."""
    (volume,) = [one for one in said["volume"] if one["policy"] == policy]
    return float(volume["decisions"]) / max(int(volume["users"]), 1) / max(int(said["made"]["days"]), 1)


def observed(
    data: Path, revision: str, attribution_us: int, *, progress: Callable[[int, int], None] = lambda *_: None
) -> Observed:
    """What happened to users decided under `revision`, bots left out. Raises InvalidInput where the log has no such
    decision. progress(groups done, groups)."""
    end, groups = log_end(data), bucket_groups(data, TABLES_READ)
    decided = 0
    parts: list[tuple[F64, F64, npt.NDArray[np.int64], npt.NDArray[np.int64]]] = []
    for number, group in enumerate(groups):
        partition = read_partition(group)
        people = partition.without(partition.bots())
        asked = people.asked
        if revision in asked.revisions:
            mine = asked.logged["policy"] == asked.revisions.index(revision)
            at = asked.batch.requests["decided_at"]
            reward = attributed(asked, people.events, attribution_us)
            old = mine & (at + attribution_us <= end)
            totals = [_by_user(reward[:, k], asked.owner, mine if k == 0 else old) for k in range(len(METRICS))]
            decided += int(mine.sum())
            seen = np.bincount(asked.owner[mine], minlength=len(asked.users)) > 0
            every = np.stack(totals, axis=1)[seen]
            sums = every.sum(axis=0), (every**2).sum(axis=0)
            parts.append((*sums, seen.sum(keepdims=True), np.unique(at[mine] // DAY_US)))
        progress(number + 1, len(groups))
    users = int(sum(part[2].sum() for part in parts))
    if users < 2:
        raise InvalidInput(
            f"fewer than two users were decided under {revision}", field="log", hint="promote the target, and log some days"
        )
    days = np.unique(np.concatenate([part[3] for part in parts]))
    often = decided / users / len(days)
    return _rates(users, days, often, sum(part[0] for part in parts), sum(part[1] for part in parts), attribution_us, end)


def _by_user(values: F64, owner: npt.NDArray[np.int64], rows: npt.NDArray[np.bool_]) -> F64:
    users = int(owner.max()) + 1 if len(owner) else 0
    return np.bincount(owner[rows], weights=values[rows], minlength=users).astype(np.float64)


def _rates(
    users: int, days: npt.NDArray[np.int64], asked: float, total: Any, square: Any, attribution_us: int, end: int
) -> Observed:
    complete = float(np.clip((end - attribution_us) / DAY_US - days, 0.0, 1.0).sum())
    rates = {}
    for k, metric in enumerate(METRICS):
        over = len(days) if k == 0 else complete
        if over > 0:
            mean = total[k] / users
            error = math.sqrt(max(square[k] / users - mean**2, 0.0) / (users - 1))
            rates[metric] = (float(mean / over), float(error / over))
    return Observed(users, float(len(days)), asked, rates)


def compare(forecast: Mapping[str, Any], found: Observed) -> list[Check]:
    """Every forecast rate that the later log can speak to."""
    out = []
    for one in forecast["rates"]:
        if one["metric"] not in found.rates:
            continue
        rate, error = found.rates[one["metric"]]
        own = (one["high"] - one["low"]) / (2 * _REACH)
        matched = abs(rate - one["value"]) <= _REACH * math.hypot(error, own) + 1e-12
        speaks = forecast.get("speaks", {}).get(one["metric"]) == one["estimator"]
        ends = rate, rate - _REACH * error, rate + _REACH * error
        said = one["metric"], one["estimator"], one["standing"], one["value"], one["low"], one["high"]
        out.append(Check(*said, *ends, matched, speaks))
    return out
