"""The headline metrics by other intervals than the default, and what the roll-out says, as plain rows for a report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from simulators.estimators import LOGGED, Estimated, EstimateSettings, Interval, Per, Suite
from simulators.replay.spec import CONTROL

__all__ = ["HEADLINE", "conclusions", "interval_rows", "intervals_beside", "roll_out_rows"]

HEADLINE = ("sends", "clicks", "conversions", "revenue", "opt_outs", "reward")
Row = dict[str, Any]


def intervals_beside(
    suite: Suite, label: str, policy: str, metric: str, per: Per = Per.user, *, versus: str | None = LOGGED,
    level: float = 0.95, total_between: tuple[float, float] | None = None,
) -> list[Interval]:  # fmt: skip
    """Every interval that the estimator can give: user-clustered; the bootstrap's, where replicates were kept; one that
    holds however often the log grows by new users and is looked at again; and, where a user's weighted total is known to lie
    in a range and no difference is asked for, the finite-sample one of Maurer and Pontil."""
    one = suite[label]
    found = [one.interval(policy, metric, per, versus=versus, level=level)[1]]
    if one.replicates:
        found.append(one.bootstrap(policy, metric, per, versus=versus, level=level))
    found.append(one.anytime(policy, metric, per, versus=versus, level=level))
    if total_between is not None and one.mean_of_users and versus is None and per is Per.user:
        found.append(one.bernstein(policy, metric, *total_between, level=level))
    return found


def interval_rows(suite: Suite, settings: EstimateSettings, label: str = "snips") -> list[Row]:
    """Paired differences from the log, a user and a send, by every interval; nothing of what is refused."""
    out: list[Row] = []
    for one in suite.estimates(settings, per=(Per.user, Per.send), control=CONTROL):
        said = one.subject
        wanted = said.estimator == label and said.metric in HEADLINE and said.versus is not None and said.policy != CONTROL
        if not wanted or not isinstance(one, Estimated):
            continue
        found = intervals_beside(suite, label, said.policy, said.metric, said.per, level=settings.level)
        row = {"policy": said.policy, "metric": said.metric, "estimator": label, "per": said.per.value}
        intervals = [{"kind": each.kind, "low": each.low, "high": each.high} for each in found]
        out.append({**row, "difference": one.value, "intervals": intervals})
    return out


def roll_out_rows(suite: Suite, settings: EstimateSettings) -> list[Row]:
    """Differences from the log that the outcome model expects, by what is assumed of how people tire: a model, no
    measurement. One row a policy, metric and assumption."""
    return list(_rolled(suite, settings))


def _rolled(suite: Suite, settings: EstimateSettings) -> Iterator[Row]:
    for one in suite.estimates(settings, per=(Per.user,), control=CONTROL):
        said = one.subject
        if said.versus is None or said.policy == CONTROL:
            continue
        metric, _, assumed = said.metric.partition(" if ")
        row: Row = {"policy": said.policy, "metric": metric, "assumed": assumed, "standing": one.verdict.standing.value}
        row |= {"reasons": list(one.verdict.reasons), "kind": "model"}
        if isinstance(one, Estimated) and one.interval is not None:
            row |= {"difference": one.value, "low": one.interval.low, "high": one.interval.high, "notes": list(one.notes)}
            row["logged"] = suite[said.estimator].point(LOGGED, said.metric).value
        yield row


def conclusions(rows: Sequence[Row]) -> dict[tuple[str, str], bool]:
    """By (policy, metric): does the sign of the difference stay the same under everything that was assumed?"""
    signs: dict[tuple[str, str], set[bool]] = {}
    for row in rows:
        if "difference" in row:
            signs.setdefault((row["policy"], row["metric"]), set()).add(row["difference"] > 0)
    return {key: len(found) == 1 for key, found in signs.items()}
