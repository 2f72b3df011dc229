"""The headline metrics by other intervals than the default, as plain rows for a report."""

from __future__ import annotations

from typing import Any

from simulators.estimators import LOGGED, Estimated, EstimateSettings, Interval, Per, Suite
from simulators.replay.spec import CONTROL

__all__ = ["HEADLINE", "interval_rows", "intervals_beside"]

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
