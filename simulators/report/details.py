"""What stands below a report's headline: breakdowns, attribution windows, what a longer log would give, example users."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from serve_app.vocabulary import Action, Channel, Reason
from simulators.estimators import Estimate, Estimated, Per, Suite, minimum_detectable, plan_for
from simulators.estimators.settings import EstimateSettings
from simulators.replay.estimation import SHARES
from simulators.replay.examples import Example, Outcome
from simulators.replay.spec import CONTROL

__all__ = ["broken_down", "example_tables", "groups_of", "numbers", "plan_text", "rolled_out", "window_rows"]

Row = dict[str, Any]


def numbers(one: Estimate, suite: Suite) -> Row:
    """A paired difference as plain values; a refused one has reasons and no number."""
    said = one.subject
    row: Row = {"standing": one.verdict.standing.value, "reasons": list(one.verdict.reasons)}
    if not isinstance(one, Estimated):
        return row
    group = 0 if said.group is None else _labels(suite, said.estimator).index(said.group[1])
    row["logged"] = suite[said.estimator].point(str(said.versus), said.metric, said.per, group).value
    row["difference"], row["notes"] = one.value, list(one.notes)
    row["low"], row["high"] = (one.interval.low, one.interval.high) if one.interval else (None, None)
    estimator = suite[said.estimator]
    if estimator.replicates and said.group is None:
        other = estimator.bootstrap(said.policy, said.metric, said.per, versus=said.versus)
        row["bootstrap_low"], row["bootstrap_high"] = other.low, other.high
        looked = estimator.anytime(said.policy, said.metric, said.per, versus=said.versus)
        row["anytime_low"], row["anytime_high"] = looked.low, looked.high
    if one.interval is not None:
        row["detectable"] = minimum_detectable(one.interval.standard_error, level=one.interval.level)
    return row


def _labels(suite: Suite, label: str) -> tuple[str, ...]:
    grouping = suite[label].grouping
    return grouping.labels if grouping else ("",)


def plan_text(suite: Suite, one: Estimate, settings: EstimateSettings, days: int) -> str:
    """For a refused or weak number: how long a log like this one would have to be. Effective sample sizes are taken to grow
    in proportion to the days, which holds while new days bring new users or independent choices of the same ones."""
    if one.verdict.standing.value == "usable" or not days:
        return ""
    plan = plan_for(suite.weights_of(one.subject.estimator, one.subject.policy), settings.verdict)
    if plan.times_for_weak is None:
        return plan.reason
    parts = [f"{plan.times_for_weak * days:.0f} days to be printed at all"] if plan.times_for_weak > 1 else []
    if plan.times_for_usable is None:
        parts.append(plan.reason)
    elif plan.times_for_usable > 1:
        parts.append(f"{plan.times_for_usable * days:.0f} days for enough weight")
    return "; ".join(parts)


def broken_down(suite: Suite, settings: EstimateSettings) -> list[Row]:
    """Every paired difference of every group, refused ones without numbers."""
    out = []
    for one in suite.estimates(settings, per=(Per.user,), control=CONTROL):
        said = one.subject
        if said.versus is None or said.policy == CONTROL or said.group is None or said.metric == "sends":
            continue
        row = {"policy": said.policy, "metric": said.metric, "by": said.group[0], "group": said.group[1]}
        out.append({**row, "comparisons": one.comparisons, **numbers(one, suite)})
    return out


def window_rows(suite: Suite, settings: EstimateSettings, attribution_us: int) -> list[Row]:
    """Differences under shorter attribution windows beside the replay's own."""
    out = []
    for one in suite.estimates(settings, per=(Per.user,), control=CONTROL):
        said = one.subject
        metric, _, share = said.metric.partition(" within ")
        if said.versus is None or said.policy == CONTROL or not share:
            continue
        hours = SHARES[share] * attribution_us / 3.6e9
        row = {"policy": said.policy, "metric": metric, "estimator": said.estimator, "window": share, "hours": hours}
        out.append({**row, **numbers(one, suite)})
    return out


def rolled_out(suite: Suite, settings: EstimateSettings) -> list[Row]:
    """What an outcome model says of each target's own course, by the assumed effect of one more send (`tiring`)."""
    out = []
    for one in suite.estimates(settings, per=(Per.user,), control=CONTROL):
        said = one.subject
        metric, _, tiring = said.metric.partition(" if tiring ")
        if said.versus is None or said.policy == CONTROL:
            continue
        row = {"policy": said.policy, "metric": metric, "estimator": said.estimator, "tiring": float(tiring)}
        out.append({**row, **numbers(one, suite)})
    return out


def example_tables(examples: Iterable[Example], campaigns: Mapping[int, str], user_name: Callable[[int], str]) -> list[Row]:
    """Users whose day changed, decision by decision, in texts."""
    return [
        {
            "policy": one.policy,
            "user": user_name(one.user),
            "zone": one.zone,
            "moments": [
                {
                    "time": datetime.fromtimestamp(moment.local / 1e6, UTC).strftime("%a %Y-%m-%d %H:%M"),
                    "logged": _said(moment.logged, campaigns),
                    "target": _said(moment.target, campaigns),
                    "changed": moment.logged != moment.target,
                }
                for moment in one.moments
            ],
        }
        for one in examples
    ]


def _said(outcome: Outcome | None, campaigns: Mapping[int, str]) -> dict[str, str]:
    """action, reason, campaign and channel of one side of a decision."""
    if outcome is None:
        return {"action": "not asked", "reason": "", "campaign": "", "channel": ""}
    campaign = campaigns.get(outcome.campaign, f"{outcome.campaign:016x}") if outcome.campaign else ""
    channel = Channel(outcome.channel).name if outcome.channel >= 0 else ""
    reason = "" if outcome.action == Action.send else Reason(outcome.reason).name
    return {"action": Action(outcome.action).name, "reason": reason, "campaign": campaign, "channel": channel}


def groups_of(rows: Sequence[Row]) -> dict[tuple[str, str], dict[str, dict[str, Row]]]:
    """Rows of `broken_down` as tables: (by, policy) -> group -> metric -> row."""
    out: dict[tuple[str, str], dict[str, dict[str, Row]]] = {}
    for row in rows:
        out.setdefault((row["by"], row["policy"]), {}).setdefault(row["group"], {})[row["metric"]] = row
    return out
