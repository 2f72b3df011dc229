"""The gates and the choice once more, in plain Python: slow, obvious, and sharing no code with the kernels."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import numpy as np

from serve_app.ids import hash_id
from serve_app.policy.document import PolicyDocument
from serve_app.vocabulary import Channel, MessageClass
from tests.unit.decision_support import HEADS, zone

Request = dict[str, Any]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def local(ts: int, name: str) -> datetime:
    """Wall clock time."""
    return (_EPOCH + timedelta(microseconds=ts)).astimezone(zone(name))


def _clock(text: str) -> time:
    return time.fromisoformat(text) if text != "24:00" else time.max


def _within(now: time, start: str, end: str) -> bool:
    first, last = _clock(start), _clock(end)
    if end != "24:00" and last <= first:
        return now >= first or now < last
    return first <= now and (end == "24:00" or now < last)


def _period(day: date, kind: str) -> Any:
    return {"day": day, "week": day.isocalendar()[:2], "month": (day.year, day.month)}[kind]


def _class(one: Request) -> str:
    return MessageClass(one["message_class"]).name


def value(document: PolicyDocument, one: Request) -> float:
    """Weighted sum of heads."""
    own = getattr(document.message_classes, _class(one)).head_weights
    weights = document.surfaces.notification.head_weights if own is None else own
    total = 0.0
    for name, head in zip(HEADS, one["heads"], strict=True):
        if weights.get(name, 0.0):
            total += weights[name] * float(np.float32(head))
    return total


def kill_switch(document: PolicyDocument, request: Request, one: Request, history: list[Request]) -> str:
    switches = document.kill_switches
    off = switches.all or one["campaign_killed"] or Channel(one["channel"]).name in switches.channels
    off = off or one["category"] in map(hash_id, switches.categories) or one["campaign"] in map(hash_id, switches.campaigns)
    return "kill_switch" if off else ""


def expired(document: PolicyDocument, request: Request, one: Request, history: list[Request]) -> str:
    ends = [end for end in (request["expires_at"], one["expires_at"]) if end]
    return "expired" if any(request["decided_at"] >= end for end in ends) else ""


def duplicate(document: PolicyDocument, request: Request, one: Request, history: list[Request]) -> str:
    window = document.duplicate_window_hours * 3600e6
    for past in history:
        if past["request_id"] == request["request_id"]:
            return "duplicate"
        again = past["campaign"] == one["campaign"] != 0 and not past["flags"] & 1
        if window and again and past["at"] > request["decided_at"] - window:
            return "duplicate"
    return ""


def consent(document: PolicyDocument, request: Request, one: Request, history: list[Request]) -> str:
    if _class(one) != "advertising":
        return ""
    rule = document.regions.get(request["region"].lower(), document.other_regions)
    now = request["decided_at"]

    def state(given: int) -> str:
        if not given or given > now:
            return "none"
        old = rule.consent_valid_days and now - given >= rule.consent_valid_days * 86_400_000_000
        return "stale" if old else "fresh"

    excepted = rule.existing_customer_exception and request["customer_until"] > now
    if rule.ad_consent_required and not excepted and state(request["consent_ad_at"]) != "fresh":
        return "no_consent" if state(request["consent_ad_at"]) == "none" else "consent_stale"
    night = _within(local(now, request["zone"]).time(), rule.night_start, rule.night_end)
    exempt = Channel(one["channel"]).name in rule.night_exempt_channels
    if rule.night_consent_required and night and not exempt and state(request["consent_night_at"]) != "fresh":
        return "no_night_consent" if state(request["consent_night_at"]) == "none" else "consent_stale"
    return "unlabelled_ad" if rule.ad_label and not one["labelled"] else ""


def channel(document: PolicyDocument, request: Request, one: Request, history: list[Request]) -> str:
    bit = 1 << one["channel"]
    if request["opted_out"] & bit and not getattr(document.message_classes, _class(one)).bypass_opt_out:
        return "channel_opted_out"
    return "" if request["reachable"] & bit else "unreachable"


def segment(document: PolicyDocument, request: Request, one: Request, history: list[Request]) -> str:
    if one["segment"] < 0:
        return ""
    age = request["decided_at"] - request["segments_at"]
    if not request["segments_at"] or age > document.segment_staleness_hours * 3600e6:
        return "segment_stale"
    return "" if request["segments"] >> one["segment"] & 1 else "not_in_segment"


def quiet_hours(document: PolicyDocument, request: Request, one: Request, history: list[Request]) -> str:
    if getattr(document.message_classes, _class(one)).bypass_quiet_hours:
        return ""
    now = local(request["decided_at"], request["zone"]).time()
    for rule in document.quiet_hours:
        by = not rule.channels or Channel(one["channel"]).name in rule.channels
        if by and _class(one) in rule.classes and _within(now, rule.start, rule.end):
            return "quiet_hours"
    return ""


def caps(document: PolicyDocument, request: Request, one: Request, history: list[Request]) -> str:
    full = [used >= limit for used, limit in uses(document, request, one, history)]
    return "frequency_capped" if any(full) else ""


def uses(document: PolicyDocument, request: Request, one: Request, history: list[Request]) -> list[tuple[int, int]]:
    """(used, limit) of every cap that binds the candidate."""
    if getattr(document.message_classes, _class(one)).bypass_caps:
        return []
    found = []
    for cap in document.caps:
        key = {"global": None, "channel": "channel", "category": "category", "campaign": "campaign"}[cap.scope]
        only = {Channel[name].value if cap.scope == "channel" else hash_id(name) for name in cap.only}
        if _class(one) not in cap.binds or (only and one[str(key)] not in only):
            continue
        used = 0
        for past in history:
            counts = _class(past) in cap.counts and not (cap.refund_failed_delivery and past["flags"] & 1)
            if counts and not past["flags"] & 2 and (key is None or past[key] == one[key]) and _inside(cap, request, past):
                used += 1
        found.append((used, cap.limit))
    return found


def _inside(cap: Any, request: Request, past: Request) -> bool:
    now = request["decided_at"]
    if cap.window.rolling_hours is not None:
        return bool(past["at"] > now - round(cap.window.rolling_hours * 3_600_000_000))
    kind = cap.window.calendar
    current = _period(local(now, request["zone"]).date(), kind)
    seen = local(past["at"], request["zone"]).date(), local(past["at"], past["zone"]).date()
    return current in [_period(day, kind) for day in seen]


def since_last(document: PolicyDocument, request: Request, one: Request, history: list[Request]) -> float | None:
    """Minutes since the last message that counts for the gap; None where there is none, or the candidate is spared."""
    gap = document.min_gap
    if not gap.minutes or getattr(document.message_classes, _class(one)).bypass_min_gap or _class(one) not in gap.binds:
        return None
    times = [
        past["at"]
        for past in history
        if _class(past) in gap.counts and not (gap.refund_failed_delivery and past["flags"] & 1)
    ]
    return (request["decided_at"] - max(times)) / 60e6 if times else None


def min_gap(document: PolicyDocument, request: Request, one: Request, history: list[Request]) -> str:
    gap = document.min_gap
    if getattr(document.message_classes, _class(one)).bypass_min_gap or _class(one) not in gap.binds:
        return ""
    for past in history:
        counts = _class(past) in gap.counts and not (gap.refund_failed_delivery and past["flags"] & 1)
        if counts and past["at"] > request["decided_at"] - gap.minutes * 60e6 and gap.minutes:
            return "min_gap"
    return ""


def threshold(document: PolicyDocument, request: Request, one: Request, history: list[Request]) -> str:
    rule = getattr(document.message_classes, _class(one))
    if rule.bypass_threshold:
        return ""
    worth = value(document, one)
    if np.isnan(worth):
        return "not_scored"
    least = document.threshold if rule.threshold is None else rule.threshold
    return "below_threshold" if worth < least else ""


GATES = (kill_switch, expired, duplicate, consent, channel, segment, quiet_hours, caps, min_gap, threshold)


def reasons(document: PolicyDocument, request: Request, history: list[Request], shadow: int = 0) -> list[list[str]]:
    """Per candidate, every gate's reason ("" where it lets pass)."""
    seen = [past for past in history if past["holdout"] in (0, shadow)]
    out = []
    for place, one in enumerate(request["candidates"]):
        words = [gate(document, request, one, seen) for gate in GATES]
        same = [(other["campaign"], other["item"], other["channel"]) for other in request["candidates"][:place]]
        if (one["campaign"], one["item"], one["channel"]) in same:
            words[2] = "duplicate"
        out.append(words)
    return out


def best(document: PolicyDocument, request: Request, words: list[list[str]]) -> set[int]:
    """Candidates that may be chosen without a flip: the best by priority, then value (ties: any of them)."""
    passing = [place for place, gates in enumerate(words) if not any(gates)]
    if not passing:
        return set()

    def rank(place: int) -> tuple[float, float]:
        one = request["candidates"][place]
        worth = value(document, one)
        order = one["priority"] + getattr(document.message_classes, _class(one)).priority
        return (0 if document.order == "value" else order, -np.inf if np.isnan(worth) else worth)

    top = max(rank(place) for place in passing)
    return {place for place in passing if rank(place) == top}
