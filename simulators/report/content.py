"""A replay's sums as the report's content: plain values, the same for the page and for the JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import date
from typing import Any

from serve_app.vocabulary import Channel, MessageClass, Reason
from simulators.estimators import Per, Suite
from simulators.estimators.settings import EstimateSettings
from simulators.replay.completeness import MissingRows
from simulators.replay.estimation import WINDOWS
from simulators.replay.roll_out import ROLL_OUT
from simulators.replay.shard import Shard
from simulators.replay.spec import CONTROL, ReplaySpec
from simulators.report.details import broken_down, example_tables, numbers, plan_text, rolled_out, window_rows
from simulators.report.effects import Worth, incrementality
from simulators.report.forecast import forecasts
from simulators.report.guardrails import Found, Outcome, worst
from simulators.report.headline import headlines, preferred
from simulators.report.provenance import SCHEMA, documents, made, policies_said
from simulators.report.tally import Tally

__all__ = ["content_of"]

_TOP = 100
_NAMED = ("campaign", "category", "segment")
_MOST_SENDS = 15


def content_of(
    result: Shard,
    spec: ReplaySpec,
    *,
    names: Mapping[str, Mapping[int, str]],
    guardrails: Sequence[Found] = (),
    parity_waived: bool = False,
    settings: EstimateSettings | None = None,
    worth: Worth | None = None,
    user_name: Callable[[int], str] = "{:016x}".format,
    command: str = "",
    simulated: Mapping[str, Any] | None = None,
    missing: Sequence[MissingRows] = (),
) -> dict[str, Any]:
    """names: texts of campaign and category hashes, by dimension. user_name: text of a user's hash. command: that asked for
    it. simulated: what `hindcast simulate --out` wrote, to stand beside the volume. missing: rows the log has lost."""
    settings = settings or EstimateSettings()
    tally, policies = Tally(result.counts), ["logged", *(one.name for one in spec.targets)]
    outcome = worst(guardrails, parity=result.parity.same == result.parity.requests or parity_waived)
    volume = [_volume(tally, name) for name in policies]
    outcomes = list(_outcomes(result.suite, settings, len(_days_read(tally))))
    return {
        "schema": SCHEMA,
        "verdict": {"outcome": outcome.name, "exit_code": int(outcome), "guardrails": [_found(one) for one in guardrails]},
        "policies": policies,
        "targets": policies_said(spec),
        "headline": headlines(outcomes, volume, preferred(spec)),
        "parity": {**asdict(result.parity), "share": result.parity.share, "waived": parity_waived},
        "control": _control(result.suite, settings),
        "left_out": _left_out(result, tally, missing),
        "volume": volume,
        **_counts(tally, policies, names),
        "outcomes": outcomes,
        "outcomes_by": broken_down(result.suite, settings),
        "forecast": forecasts(result, spec, tally, settings),
        "attribution": _attribution(result, spec, settings),
        "roll_out": rolled_out(rolled, settings) if (rolled := result.sums.suites.get(ROLL_OUT)) is not None else [],
        "incrementality": incrementality(result.sums, spec, tally, worth or Worth()),
        "examples": example_tables(result.examples, names.get("campaign", {}), user_name),
        "simulated": simulated,
        "made": made(result, spec, tally, command),
        "documents": documents(spec),
    }


def _counts(tally: Tally, policies: Sequence[str], names: Mapping[str, Mapping[int, str]]) -> dict[str, Any]:
    """What the realised track and the log come to, by what people ask."""
    reasons = {int(one): one.name for one in Reason}
    return {
        "sends_per_user": {name: _histogram(tally.by(name, "users", "sends_in_window")) for name in policies},
        "reasons": _by_names(tally, policies, "decisions", "reason", reasons),
        "candidate_reasons": _by_names(tally, policies, "candidates", "reason", reasons),
        "by": {
            "channel": _by_names(tally, policies, "sends", "channel", {int(one): one.name for one in Channel}),
            "message class": _by_names(tally, policies, "sends", "message_class", {int(k): k.name for k in MessageClass}),
            **{one: _moved(_by_names(tally, policies, "sends", one, names.get(one, {}))) for one in _NAMED},
        },
        "days": {name: {_date(day): n for day, n in tally.days(name, "sends").items() if day >= 0} for name in policies},
        "hours": {name: {str(hour): n for hour, n in tally.by(name, "sends", "hour_local").items()} for name in policies},
    }


def _left_out(result: Shard, tally: Tally, missing: Sequence[MissingRows]) -> dict[str, Any]:
    """Whom and what no number holds, counted. excluded: rows of the estimates by fault."""
    excluded = result.suite.diagnostics.of(0).excluded
    return {
        "bots": tally.total("logged", "bots"),
        "decisions_of_bots": tally.total("logged", "decisions_of_bots"),
        "set_aside": {Reason(key).name: n for key, n in tally.by("logged", "set_aside", "reason").items()},
        "unfinished": tally.total("logged", "unfinished"),
        "parity_unsure": result.parity.unsure,
        "copies_of_events": tally.total("logged", "copies_of_events"),
        "missing": [asdict(one) for one in missing],
        "excluded": {name: int(n) for name, n in excluded.items() if n},
    }


def _found(one: Found) -> dict[str, Any]:
    return {**one.model_dump(), "outcome": Outcome(one.outcome).name}


def _volume(tally: Tally, name: str) -> dict[str, Any]:
    decisions = tally.total(name, "decisions", "reason")
    beyond = tally.total(name, "decisions_beyond_divergence")
    return {
        "policy": name,
        "decisions": decisions,
        "sends": tally.total(name, "sends"),
        "users": tally.total(name, "users"),
        "users_reached": tally.total(name, "users_reached"),
        "users_diverged": tally.total(name, "users_diverged"),
        "share_beyond_divergence": beyond / decisions if decisions else 0.0,
        "share_triggered": tally.total(name, "triggered_beyond_divergence") / decisions if decisions else 0.0,
        "carried": tally.total(name, "carried"),
        "start": {
            "users": tally.total(name, "users_uncertain"),
            "decisions": tally.total(name, "decisions_uncertain"),
            "sends_if_empty": tally.total(name, "sends_if_empty"),
            "sends_if_full": tally.total(name, "sends_if_full"),
        },
    }


def _histogram(users: Mapping[int, int]) -> dict[str, int]:
    """Users by sends; the last bar holds the rest."""
    out: dict[str, int] = {}
    for sends, count in users.items():
        name = str(sends) if sends < _MOST_SENDS else f"{_MOST_SENDS}+"
        out[name] = out.get(name, 0) + count
    return out


def _by_names(
    tally: Tally, policies: Sequence[str], measure: str, dimension: str, names: Mapping[int, str]
) -> list[dict[str, Any]]:
    found = {name: tally.by(name, measure, dimension) for name in policies}
    keys = sorted({key for by_key in found.values() for key in by_key})
    return [
        {"name": names.get(key, f"{key:016x}" if key else "none"), **{one: found[one].get(key, 0) for one in policies}}
        for key in keys
    ]


def _moved(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that changed most under any target."""
    return sorted(rows, key=lambda row: (-_change(row), row["name"]))[:_TOP]


def _change(row: Mapping[str, Any]) -> int:
    return max((abs(value - row["logged"]) for key, value in row.items() if key not in ("name", "logged")), default=0)


def _days_read(tally: Tally) -> list[int]:
    return [day for day in tally.days("logged", "decisions", "reason") if day >= 0]


def _attribution(result: Shard, spec: ReplaySpec, settings: EstimateSettings) -> list[dict[str, Any]]:
    suite = result.sums.suites.get(WINDOWS)
    return window_rows(suite, settings, spec.attribution_us) if suite is not None else []


def _outcomes(suite: Suite, settings: EstimateSettings, days: int) -> Iterable[dict[str, Any]]:
    """Every paired difference from the log; a refused one has reasons and no number."""
    for one in suite.estimates(settings, per=(Per.user, Per.send), control=CONTROL):
        said = one.subject
        if said.versus is None or said.policy == CONTROL or said.group is not None:
            continue
        if said.metric == "sends" and said.per is Per.send:
            continue
        yield {
            "policy": said.policy, "metric": said.metric, "per": said.per.value, "estimator": said.estimator,
            "comparisons": one.comparisons, "plan": plan_text(suite, one, settings, days), **numbers(one, suite),
        }  # fmt: skip


def _control(suite: Suite, settings: EstimateSettings) -> list[dict[str, Any]]:
    """Does the log's own policy, estimated, give what happened?"""
    return [
        {"estimator": label, "metric": metric, "clean": suite.control_is_clean(label, CONTROL, metric, settings)}
        for label in suite.labels
        if suite[label].grouping is None
        for metric in suite.metrics
    ]


def _date(day: int) -> str:
    return date.fromordinal(date(1970, 1, 1).toordinal() + day).isoformat()
