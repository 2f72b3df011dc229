"""One number a measure and policy, for the top of a report: of which estimator is settled by what the policy changes, before
any number is looked at.

Rules about *when* users may be messaged (caps, gaps, quiet hours, thresholds) act through histories: fewer sends today leave
room tomorrow. Estimators that weigh decisions one by one do not see that; cells do. Other changes are weighed decision by
decision. Where the first choice is refused the next one stands in, at best as weak.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from serve_app.policy.document import PolicyDocument, parse_policy
from simulators.replay.spec import ReplaySpec

__all__ = ["acts_through_histories", "headlines", "preferred"]

Row = dict[str, Any]

_THROUGH_HISTORIES = (
    "message_classes", "caps", "min_gap", "quiet_hours", "regions", "other_regions", "kill_switches", "threshold",
    "max_sends_per_decision", "deferral", "cells",
)  # fmt: skip
_BY_DECISION = ("sndr", "snips", "dr", "ips")
MYOPIC = "weighs decisions one by one: does not see how other sends change later ones"


def acts_through_histories(old: PolicyDocument, new: PolicyDocument) -> bool:
    """Does `new` change rules that look at what was sent before, or how often they get to speak?"""
    return any(getattr(old, name, None) != getattr(new, name, None) for name in _THROUGH_HISTORIES)


def preferred(spec: ReplaySpec) -> dict[str, tuple[str, ...]]:
    """Estimators by target, the first choice first."""
    logged = [parse_policy(orjson.loads(one.document)) for one in spec.behaviour]
    found: dict[str, tuple[str, ...]] = {}
    for target in spec.targets:
        own = parse_policy(orjson.loads(target.document))
        through = any(acts_through_histories(one, own) for one in logged)
        found[target.name] = ("cells", *_BY_DECISION) if through else (*_BY_DECISION, "cells")
    return found


def headlines(
    outcomes: Iterable[Row], volume: Sequence[Row], order: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, Row]]:
    """By target and metric: estimator, standing, reasons, and (unless refused) difference and interval, also as shares of
    the log's value. `sends` is counted. outcomes: rows per user and send of every estimator."""
    rows = {
        (one["policy"], one["metric"], one["estimator"]): one for one in outcomes if one["per"] == "user"
    }  # fmt: skip
    metrics = [name for name in dict.fromkeys(key[1] for key in rows) if name != "sends"]
    logged = volume[0]
    found: dict[str, dict[str, Row]] = {}
    for one in volume[1:]:
        name = one["policy"]
        found[name] = {"sends": _counted(one, logged)}
        for metric in metrics:
            choices = [rows[name, metric, label] for label in order[name] if (name, metric, label) in rows]
            if choices:
                found[name][metric] = _chosen(choices)
    return found


def _counted(one: Row, logged: Row) -> Row:
    own, base = (each["sends"] / max(each["users"], 1) for each in (one, logged))
    row: Row = {"estimator": "counted", "standing": "exact", "reasons": [], "logged": base, "difference": own - base}
    return {**row, "low": own - base, "high": own - base, **_shares(own - base, own - base, own - base, base)}


def _chosen(choices: Sequence[Row]) -> Row:
    """The first that is not refused; the first where all are."""
    one = next((each for each in choices if "difference" in each and each["low"] is not None), choices[0])
    row: Row = {"estimator": one["estimator"], "standing": one["standing"], "reasons": list(one["reasons"])}
    if "difference" not in one or one["low"] is None:
        return {**row, "standing": "refused", "plan": one["plan"]}
    if choices[0]["estimator"] == "cells" and one is not choices[0]:
        row |= {"standing": "weak", "reasons": [*row["reasons"], MYOPIC]}
    numbers = {key: one[key] for key in ("logged", "difference", "low", "high")}
    return {**row, **numbers, **_shares(one["difference"], one["low"], one["high"], one["logged"])}


def _shares(value: float, low: float, high: float, logged: float) -> Row:
    """Of the log's value, taken as known; nothing where that is 0."""
    if not logged > 0:
        return {}
    return {"relative": value / logged, "relative_low": low / logged, "relative_high": high / logged}
