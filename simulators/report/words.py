"""Words and figures of a report: measures with units a notification team uses, a line on each estimator, telling digits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from serve_app.vocabulary import Reason

__all__ = ["Measure", "about", "change", "figure", "measure", "named", "reason_text", "spaced", "span"]

_PER_THOUSAND = frozenset({"clicks", "conversions", "opt_outs", "views"})
_NAMES = {"opt_outs": "opt-outs", "send_cost": "cost of sends"}
_ABOUT = {
    "sends": "messages granted",
    "clicks": "sends that were clicked",
    "conversions": "orders within the attribution window of a message, or of the last click on one: after it, not always "
    "because of it (see what messages cause, below)",
    "revenue": "money of those orders, in the log's currency",
    "reward": "a weighted sum of the other measures; its weights stand under How it was computed",
    "opt_outs": "sends after which the user opted out of a channel",
}
_ESTIMATORS = {
    "cells": "compares users whose rules were drawn at random for whole weeks or so: sees caps, quiet hours and fatigue",
    "ips": "weighs each logged decision by how much likelier the policy makes it; unbiased for one decision at a time",
    "snips": "the same, divided by the weights' own mean: steadier",
    "dm": "what an outcome model fitted on the log predicts; as good as that model",
    "dr": "weights correct what an outcome model predicts: right if either is",
    "sndr": "the same, divided by the weights' own mean: steadier",
    "switch-dr": "trusts the outcome model where weights are large: biased by what the model gets wrong there",
    "dros": "shrinks large weights towards the outcome model: biased by what the model gets wrong there",
    "rejection": "keeps only decisions that the policy would have made too: exact, and needs many",
    "windowed-ips": "weighs a reward by all decisions of the window before it: biased by what is older; compare H with 2 H",
    "mips": "weighs by an attribute of the message, not the message: biased where the message itself matters",
    "rips": "weighs a slot by itself and the slots above it: for lists",
    "iips": "weighs each slot alone: for lists whose slots do not touch each other",
    "cascade-dr": "an outcome model corrected slot by slot from the top: for lists",
    "roll-out": "an outcome model lived forward day by day: an assumption, not a measurement",
    "rollout": "an outcome model lived forward day by day: an assumption, not a measurement",
    "reward-roll-out": "an outcome model lived forward day by day: an assumption, not a measurement",
}
_REASONS = {
    Reason.none: "nothing to send",
    Reason.kill_switch: "kill switch",
    Reason.no_consent: "no consent",
    Reason.no_night_consent: "no consent for the night",
    Reason.consent_stale: "consent too old",
    Reason.unlabelled_ad: "advertising without its label",
    Reason.channel_opted_out: "opted out of the channel",
    Reason.not_in_segment: "not in the segment",
    Reason.segment_stale: "segment too old",
    Reason.frequency_capped: "frequency cap",
    Reason.min_gap: "minimum gap",
    Reason.not_scored: "not scored",
    Reason.below_threshold: "below the threshold",
    Reason.explored_off: "exploration chose otherwise",
    Reason.preempted: "another message was preferred",
    Reason.global_holdout: "global holdout",
    Reason.campaign_holdout: "campaign holdout",
    Reason.chosen: "sent",
}


@dataclass(frozen=True, slots=True)
class Measure:
    """A metric as a report prints it: its text with the unit, and what values are multiplied by."""

    text: str
    scale: float


def measure(metric: str, per: str) -> Measure:
    """Of `clicks`, `user`: clicks per 1,000 users."""
    thousand = metric in _PER_THOUSAND
    unit = f"1,000 {per}s" if thousand else per
    return Measure(f"{named(metric)} per {unit}", 1000.0 if thousand else 1.0)


def named(metric: str) -> str:
    """A metric's name in words."""
    return _NAMES.get(metric, metric.replace("_", " "))


def about(name: str, kind: str = "metric") -> str:
    """One line on a metric or an estimator (kind), by its name or label; empty for one nobody described."""
    table: Mapping[str, str] = _ABOUT if kind == "metric" else _ESTIMATORS
    return table.get(name) or table.get(name.partition(" ")[0], "")


def reason_text(name: str) -> str:
    """Of a Reason's name."""
    found = Reason.__members__.get(name)
    return _REASONS.get(found, name.replace("_", " ")) if found is not None else name.replace("_", " ")


def spaced(value: int) -> str:
    """A count."""
    return f"{value:,}"


def figure(value: float, *, signed: bool = False) -> str:
    """Three digits that tell, no exponent: 45,123; 12.3; 0.00123."""
    if not math.isfinite(value):
        return "∞" if value > 0 else "−∞" if value < 0 else "–"
    size = abs(value)
    decimals = 0 if size >= 100 or size == 0 else min(2 - math.floor(math.log10(size)), 9)
    text = f"{size:,.{decimals}f}"
    if float(text.replace(",", "")) == 0:
        return "0"
    return ("−" if value < 0 else "+" if signed else "") + text


def change(value: float) -> str:
    """A share as a signed percentage: −12.3 %."""
    percent = 100 * value
    size = abs(percent)
    text = f"{size:,.0f}" if size >= 99.95 else f"{size:.1f}" if size >= 0.095 else f"{size:.2g}"
    return f"{'−' if percent < 0 else '+' if percent > 0 else ''}{text}\N{NO-BREAK SPACE}%"


def span(low: float | None, high: float | None, *, scale: float = 1.0) -> str:
    """An interval of a difference; None: no bound on that side."""
    left = "−∞" if low is None else figure(low * scale, signed=True)
    right = "∞" if high is None else figure(high * scale, signed=True)
    return f"{left} … {right}"
