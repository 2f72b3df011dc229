"""What a document may say and hardly means: rules that can never bite, messages that can never go out, what is not kept.

Nothing here is an error: the document can be obeyed as it stands. `hindcast policy check` shows the remarks, and with
`--strict` they count.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import get_args

from serve_app.ledger.protocol import LedgerSettings
from serve_app.policy.base import ChannelName, ClassName, seconds_of_day
from serve_app.policy.document import PolicyDocument
from serve_app.policy.rules import Cap, MessageClassRule, QuietHours
from serve_app.regions import assigned_regions

__all__ = ["Remark", "history_remark", "remarks"]

_HOUR = 3600e6
KEPT_HOURS = LedgerSettings().history_horizon_us / _HOUR
"""What a ledger keeps of each user's history unless a policy asks for more."""


@dataclass(frozen=True, slots=True)
class Remark:
    """`field` is the dotted path it is about."""

    field: str
    message: str
    hint: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message} ({self.hint})"


def remarks(document: PolicyDocument) -> list[Remark]:
    """All of them, in the document's order of parts."""
    parts = (_classes, _caps, _gap, _quiet, _regions, _deferral, _trials, _values)
    found = [remark for part in parts for remark in part(document)]
    kept = history_remark(document, KEPT_HOURS)
    return found + ([kept] if kept else [])


def history_remark(document: PolicyDocument, kept_hours: float) -> Remark | None:
    """What rules that look back further than history is kept cannot know."""
    reach = document.longest_window_hours
    if reach <= kept_hours:
        return None
    message = (
        f"looks back {reach / 24:g} days, and histories reach back {kept_hours / 24:g}: of older sends it cannot know. They "
        f"are kept longer from its promotion on; until then, answers that may lack some say `degraded: [decision]`"
    )
    return Remark(_longest_field(document), message, "shorten the window, or wait before relying on it")


def _longest_field(document: PolicyDocument) -> str:
    own = {f"caps.{i}.window": cap.window.longest_hours for i, cap in enumerate(document.caps)}
    own |= {"min_gap.minutes": document.min_gap.minutes / 60, "duplicate_window_hours": document.duplicate_window_hours}
    return max(own, key=lambda name: own[name])


def _rule(document: PolicyDocument, name: str) -> MessageClassRule:
    rule: MessageClassRule = getattr(document.message_classes, name)
    return rule


def _bypassing(document: PolicyDocument, names: Iterable[str], flag: str) -> list[str]:
    return [name for name in names if getattr(_rule(document, name), flag)]


def _classes(document: PolicyDocument) -> Iterator[Remark]:
    if document.message_classes.advertising.bypass_opt_out:
        message = "advertising reaches channels its users opted out of, which consent laws forbid"
        yield Remark("message_classes.advertising.bypass_opt_out", message, "leave it to transactional messages")


def _caps(document: PolicyDocument) -> Iterator[Remark]:
    for i, cap in enumerate(document.caps):
        field = f"caps.{i}"
        spared = _bypassing(document, cap.binds, "bypass_caps")
        if len(spared) == len(cap.binds):
            who = ", ".join(spared) or "no class"
            yield Remark(
                f"{field}.binds",
                f"cap {cap.id!r} refuses nothing: {who} is all it binds",
                "bind a class without bypass_caps",
            )
        elif not cap.counts and cap.limit:
            yield Remark(
                f"{field}.counts", f"cap {cap.id!r} counts no class, so it is never used up", "name classes, or remove it"
            )
        elif cap.limit == 0:
            message = f"cap {cap.id!r} with limit 0 sends nothing, ever, and gives no next free time"
            yield Remark(f"{field}.limit", message, "a kill switch says it plainly")
        else:
            yield from _unreachable_cap(document, cap, field)


def _unreachable_cap(document: PolicyDocument, cap: Cap, field: str) -> Iterator[Remark]:
    """Caps that another rule keeps from ever being reached."""
    gap, hours = document.min_gap, cap.window.rolling_hours
    counted = set(cap.counts)
    spaced = counted <= set(gap.binds) & set(gap.counts) and not _bypassing(document, counted, "bypass_min_gap")
    spaced = spaced and gap.refund_failed_delivery <= cap.refund_failed_delivery
    if gap.minutes and spaced and hours is not None and gap.minutes / 60 * cap.limit >= hours:
        message = f"the gap of {gap.minutes:g} min lets at most {_most(hours, gap.minutes / 60)} into its {hours:g} h"
        yield Remark(f"{field}.limit", f"cap {cap.id!r} is never reached: {message}", "shorten min_gap, or remove the cap")
    for other in document.caps:
        reached = other.window.rolling_hours
        if other.id == cap.id or other.scope != "global" or hours is None or reached is None:
            continue
        wider = counted <= set(other.counts) & set(other.binds) and not _bypassing(document, counted, "bypass_caps")
        tighter = other.limit < cap.limit or (other.limit == cap.limit and cap.scope != "global")
        if wider and tighter and reached >= hours and (other.refund_failed_delivery <= cap.refund_failed_delivery):
            message = f"cap {cap.id!r} is never reached: {other.id!r} allows {other.limit} per {other.window} of everything"
            yield Remark(f"{field}.limit", message, "remove one of them")
            break
    if cap.scope == "campaign" and hours is not None and cap.limit and document.duplicate_window_hours * cap.limit >= hours:
        message = f"cap {cap.id!r} is never reached: duplicate_window_hours {document.duplicate_window_hours:g} is tighter"
        yield Remark(f"{field}.limit", message, "remove one of them")


def _most(window: float, gap: float) -> int:
    return max(1, int(-(-window // gap)))


def _gap(document: PolicyDocument) -> Iterator[Remark]:
    gap = document.min_gap
    several = document.max_sends_per_decision > 1
    held = [name for name in gap.binds if name in gap.counts and not _rule(document, name).bypass_min_gap]
    if gap.minutes and several and held:
        message = (
            f"several messages of one decision cannot keep a gap of {gap.minutes:g} min: one {' or '.join(held)} is sent"
        )
        yield Remark("max_sends_per_decision", message, "set it to 1, or min_gap.minutes to 0")


def _quiet(document: PolicyDocument) -> Iterator[Remark]:
    for i, rule in enumerate(document.quiet_hours):
        spared = _bypassing(document, rule.classes, "bypass_quiet_hours")
        if len(spared) == len(rule.classes):
            who = ", ".join(spared) or "no class"
            message = f"quiet hours {rule.id!r} silence nothing: {who} is all they name"
            yield Remark(f"quiet_hours.{i}.classes", message, "name a class without bypass_quiet_hours")
    silent: dict[str, list[str]] = {}
    for channel, kind, quiet in _quiet_by(document):
        if quiet >= 86_400:
            silent.setdefault(kind, []).append(channel)
    for kind, channels in silent.items():
        by = "any channel" if len(channels) == len(get_args(ChannelName)) else " or ".join(channels)
        message = f"{kind} messages by {by} are never sent: quiet hours cover the whole day"
        yield Remark("quiet_hours", message, "leave some of the day, or use a kill switch")


def _regions(document: PolicyDocument) -> Iterator[Remark]:
    for code in document.regions:
        if code not in assigned_regions():
            message = f"{code.upper()} is no code of ISO 3166-1, so the rules bind nobody whose region is told by it"
            yield Remark(f"regions.{code}", message, "correct it" + (": Britain is gb" if code == "uk" else ""))


def _quiet_by(document: PolicyDocument) -> Iterator[tuple[str, str, int]]:
    """(channel, class, seconds of the day that are quiet) where any are."""
    for channel in get_args(ChannelName):
        for kind in get_args(ClassName):
            own = [r for r in document.quiet_hours if (not r.channels or channel in r.channels) and kind in r.classes]
            if own and not _rule(document, kind).bypass_quiet_hours:
                yield channel, kind, _covered(own)


def _covered(rules: Sequence[QuietHours]) -> int:
    spans: list[tuple[int, int]] = []
    for rule in rules:
        start, end = seconds_of_day(rule.start), seconds_of_day(rule.end)
        spans += [(start, end)] if start < end else [(start, 86_400), (0, end)]
    edges = sorted({0, 86_400, *(edge for span in spans for edge in span)})
    return sum(b - a for a, b in pairwise(edges) if any(start <= a and b <= end for start, end in spans))


def _deferral(document: PolicyDocument) -> Iterator[Remark]:
    deferral = document.deferral
    night = [f"quiet_hours.{i}.action" for i, rule in enumerate(document.quiet_hours) if rule.action == "defer"]
    night += [f"regions.{code}.night_action" for code, rule in document.regions.items() if rule.night_action == "defer"]
    if night and deferral.max_attempts == 0:
        message = f"{night[0]} says defer, and no deferral is allowed: what would be deferred is dropped"
        yield Remark("deferral.max_attempts", message, "allow an attempt, or say drop")
    longest = max((quiet for _, _, quiet in _quiet_by(document)), default=0)
    loud = (86_400 - longest) / 60
    if night and 0 < loud < deferral.spread_minutes:
        message = (
            f"deferrals spread over {deferral.spread_minutes:g} min after quiet hours that leave {loud:g} min of the day: "
            f"many come back into the next ones"
        )
        yield Remark("deferral.spread_minutes", message, "spread over less")


def _trials(document: PolicyDocument) -> Iterator[Remark]:
    for i, holdout in enumerate(document.holdouts):
        if "transactional" in holdout.classes and holdout.percent:
            message = f"holdout {holdout.id!r} withholds transactional messages from {holdout.percent:g} % of users"
            yield Remark(f"holdouts.{i}.classes", message, "leave transactional out")
        if holdout.percent in (0, 100):
            who = "everybody" if holdout.percent else "nobody"
            message = f"holdout {holdout.id!r} withholds its messages from {who}, so there is nothing to compare"
            yield Remark(f"holdouts.{i}.percent", message, "choose a share between")
    if document.flips.probability and not document.flips.classes:
        yield Remark(
            "flips.classes", "flips name no class, so nothing is ever flipped", "name classes, or set probability 0"
        )
    for i, experiment in enumerate(document.experiments):
        if not any(arm.overrides for arm in experiment.arms):
            message = f"experiment {experiment.id!r} changes nothing in any arm"
            yield Remark(f"experiments.{i}.arms", message, "give an arm overrides, or keep it as an A/A test")


def _values(document: PolicyDocument) -> Iterator[Remark]:
    for name in get_args(ClassName):
        rule = _rule(document, name)
        weights = document.surfaces.notification.head_weights if rule.head_weights is None else rule.head_weights
        least = document.threshold if rule.threshold is None else rule.threshold
        if not rule.bypass_threshold and not any(weights.values()) and least > 0:
            message = (
                f"{name} messages are never sent: no head has a weight, every value is 0, below the threshold {least:g}"
            )
            yield Remark("surfaces.notification.head_weights", message, "weigh a head, or lower the threshold")
