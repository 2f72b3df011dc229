"""Was every granted send lawful by what the log says of the user at that moment? Plain Python, apart from the gates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from serve_app.audit.policy_rules import channel_name, class_name, local, region_rule, within
from serve_app.policy.document import PolicyDocument
from serve_app.policy.rules import RegionRule

__all__ = ["Granted", "unlawful"]

_DAY = 86_400_000_000


@dataclass(frozen=True, slots=True)
class Granted:
    """One granted send with the user's state as read (see the log's `requests`). expires_at: the sooner of request and
    candidate; 0: never."""

    at: int
    channel: int
    message_class: int
    labelled: bool
    expires_at: int
    zone: str
    region: str
    consent_ad_at: int
    consent_night_at: int
    customer_until: int
    reachable: int
    opted_out: int


def unlawful(one: Granted, document: PolicyDocument) -> Iterator[tuple[str, str]]:
    """(kind of finding, sentence) for everything that forbade it."""
    kind, clock = class_name(one.message_class), local(one.at, one.zone)
    by, bit = channel_name(one.channel), 1 << one.channel
    rules = getattr(document.message_classes, kind)
    if one.expires_at and one.at >= one.expires_at:
        yield "expired", f"{(one.at - one.expires_at) / 1e6:g} s after its end"
    if not one.reachable & bit:
        yield "opted_out", f"the user cannot be reached by {by}"
    elif one.opted_out & bit and not rules.bypass_opt_out:
        yield "opted_out", f"the user had opted out of {by}"
    if not rules.bypass_quiet_hours:
        for rule in document.quiet_hours:
            here = (not rule.channels or by in rule.channels) and kind in rule.classes
            if here and within(clock.time(), rule.start, rule.end):
                yield "quiet_hours", f"{clock:%H:%M} {one.zone} is within {rule.id}, {rule.start} to {rule.end}"
    if kind == "advertising":
        yield from _advertising(one, region_rule(document, one.region))


def _advertising(one: Granted, law: RegionRule) -> Iterator[tuple[str, str]]:
    excepted = law.existing_customer_exception and one.customer_until > one.at
    where = one.region or "unknown region"
    if law.ad_consent_required and not excepted and not _fresh(one.consent_ad_at, one.at, law):
        yield "no_consent", f"{where}: {_age(one.consent_ad_at, one.at)}"
    clock = local(one.at, one.zone)
    night = within(clock.time(), law.night_start, law.night_end)
    exempt = channel_name(one.channel) in law.night_exempt_channels
    if law.night_consent_required and night and not exempt and not _fresh(one.consent_night_at, one.at, law):
        yield "no_night_consent", f"{where}, {clock:%H:%M} {one.zone}: {_age(one.consent_night_at, one.at)}"
    if law.ad_label and not one.labelled:
        yield "unlabelled_ad", f"{where} asks for {law.ad_label}"


def _fresh(given: int, now: int, law: RegionRule) -> bool:
    return 0 < given <= now and (not law.consent_valid_days or now - given < law.consent_valid_days * _DAY)


def _age(given: int, now: int) -> str:
    if not 0 < given <= now:
        return "no consent"
    return f"the consent was {(now - given) / _DAY:.0f} days old"
