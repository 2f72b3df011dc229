"""Caps and gaps counted anew: every granted send against the uses before it, in the order of ledger versions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from serve_app.audit.policy_rules import channel_name, class_name, day_number, local, period_of
from serve_app.ids import hash_id
from serve_app.policy.document import PolicyDocument
from serve_app.policy.rules import Cap
from serve_app.vocabulary import Channel

__all__ = ["Use", "over_cap", "too_soon"]

_HOUR, _MINUTE = 3_600_000_000, 60_000_000


@dataclass(frozen=True, slots=True)
class Use:
    """One granted send. zone: the user's then, as decided with. refunded: its delivery failed."""

    at: int
    version: int
    slot: int
    request_id: int
    campaign: int
    category: int
    channel: int
    message_class: int
    zone: str
    refunded: bool = False

    @property
    def local_day(self) -> int:
        """Day number on the user's wall when it was granted."""
        return day_number(local(self.at, self.zone).date())


def over_cap(uses: Sequence[Use], place: int, document: PolicyDocument) -> Iterator[str]:
    """Caps of `document` that uses[place], the newest of uses[: place + 1], passes."""
    one, kind = uses[place], class_name(uses[place].message_class)
    if getattr(document.message_classes, kind).bypass_caps:
        return
    for cap in document.caps:
        if kind not in cap.binds or not _covers(cap, one):
            continue
        before = [use for use in uses[:place] if _counts(cap, use, one)]
        count = sum(_in_window(cap, use, one) for use in before) + 1
        if count > cap.limit:
            yield f"cap {cap.id} ({cap.limit} in {cap.window}): this is the {count}th"


def _covers(cap: Cap, one: Use) -> bool:
    if not cap.only:
        return True
    value = {"channel": one.channel, "category": one.category, "campaign": one.campaign}[cap.scope]
    named = (int(Channel[name]) if cap.scope == "channel" else hash_id(name) for name in cap.only)
    return value in set(named)


def _counts(cap: Cap, use: Use, one: Use) -> bool:
    if class_name(use.message_class) not in cap.counts or (use.refunded and cap.refund_failed_delivery):
        return False
    if cap.scope == "global":
        return True
    same: bool = getattr(use, cap.scope) == getattr(one, cap.scope)
    return same


def _in_window(cap: Cap, use: Use, one: Use) -> bool:
    if cap.window.rolling_hours is not None:
        return use.at > one.at - round(cap.window.rolling_hours * _HOUR)
    kind = cap.window.calendar or "day"
    here = day_number(local(use.at, one.zone).date())
    now = period_of(one.local_day, kind)
    return period_of(here, kind) == now or period_of(use.local_day, kind) == now


def too_soon(uses: Sequence[Use], place: int, document: PolicyDocument) -> Iterator[str]:
    """Whether uses[place] keeps the least time from every use before it."""
    rule, one = document.min_gap, uses[place]
    kind = class_name(one.message_class)
    if not rule.minutes or kind not in rule.binds or getattr(document.message_classes, kind).bypass_min_gap:
        return
    for use in uses[:place]:
        counted = class_name(use.message_class) in rule.counts and not (use.refunded and rule.refund_failed_delivery)
        if counted and use.request_id != one.request_id and use.at > one.at - round(rule.minutes * _MINUTE):
            after = (one.at - use.at) / _MINUTE
            yield f"{after:.1f} min after the send by {channel_name(use.channel)}, {rule.minutes:g} asked for"
            return
