"""An independent count of granted sends, by user: does the server keep its own policy's caps?

It knows only what answers said. What it cannot see (grants before the run, by other clients, by deferrals) makes the server
stricter, never laxer, so whatever it finds is a breach. A cap's limit can depend on the user's cell, which an answer does
not tell: once a count passes the lowest limit of any cell, the stored decision is asked for, which does (`Suspect`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from loadtests.scenarios.audience import Campaign, CapRule, SendRules

__all__ = ["CapCount", "Grant", "Suspect"]


@dataclass(frozen=True, slots=True)
class Grant:
    """One granted send."""

    user: str
    decision_id: str
    campaign: str
    channel: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Suspect:
    """A user who may have been sent too much: ask for this decision and `judge` what it says."""

    user: str
    decision_id: str


class CapCount:
    """Counts grants and judges them. Rules None: does neither."""

    def __init__(self, rules: SendRules | None, campaigns: Iterable[Campaign]) -> None:
        self.judges = rules is not None
        self._caps = rules.caps if rules else ()
        self._campaigns = {one.id: one for one in campaigns}
        self._grants: defaultdict[str, list[Grant]] = defaultdict(list)
        self._known: dict[str, Mapping[str, Any]] = {}
        self._seen: set[str] = set()
        self.counted = 0

    def add(self, grants: Iterable[Grant]) -> list[Suspect]:
        """Count what is new; whom to look at."""
        out = []
        for grant in grants if self.judges else ():
            if grant.decision_id in self._seen:
                continue
            self._seen.add(grant.decision_id)
            self._grants[grant.user].append(grant)
            self.counted += 1
            if self._over(grant.user, self._known.get(grant.user)):
                out.append(Suspect(grant.user, grant.decision_id))
        return out

    def judge(self, suspect: Suspect, stored: Mapping[str, Any]) -> list[str]:
        """What the stored decision, which names cell and zone, makes of the suspicion."""
        self._known[suspect.user] = {"cell": stored.get("cell"), "zone": stored.get("zone")}
        return self._over(suspect.user, self._known[suspect.user])

    def _over(self, user: str, known: Mapping[str, Any] | None) -> list[str]:
        """Caps passed; of a user of unknown cell, against the lowest limit."""
        return [words for cap in self._caps for words in self._passed(cap, user, known)]

    def _passed(self, cap: CapRule, user: str, known: Mapping[str, Any] | None) -> list[str]:
        limit = min([*cap.limits.values(), cap.limit])
        if known is not None:
            limit = cap.limits.get(known["cell"], cap.limit) if cap.limits else cap.limit
        scopes: defaultdict[str, list[datetime]] = defaultdict(list)
        for grant in self._grants[user]:
            campaign = self._campaigns.get(grant.campaign)
            if campaign is not None and campaign.message_class in cap.classes:
                scope = _scope(cap, grant, campaign)
                if not cap.only or scope in cap.only:
                    scopes[scope].append(grant.at)
        zone = ZoneInfo((known or {}).get("zone") or "UTC")
        found = []
        for scope, times in scopes.items():
            most = _most(cap, sorted(times), zone, known is not None)
            if most > limit:
                found.append(f"user {user!r} was granted {most} within cap {cap.id} ({scope or 'all'}), limit {limit}")
        return found


def _scope(cap: CapRule, grant: Grant, campaign: Campaign) -> str:
    return {"channel": grant.channel, "category": campaign.category, "campaign": grant.campaign}.get(cap.scope, "")


def _most(cap: CapRule, times: list[datetime], zone: ZoneInfo, zone_known: bool) -> int:
    """The most grants in one window. Where the zone is unknown, all of them: a suspicion, not a finding."""
    if cap.rolling_s is not None:
        width = timedelta(seconds=cap.rolling_s)
        most = first = 0
        for at, time in enumerate(times):
            while time - times[first] >= width:
                first += 1
            most = max(most, at - first + 1)
        return most
    if not zone_known:
        return len(times)
    periods: defaultdict[Any, int] = defaultdict(int)
    for time in times:
        periods[_period(cap.calendar or "day", time.astimezone(zone))] += 1
    return max(periods.values(), default=0)


def _period(calendar: str, local: datetime) -> Any:
    if calendar == "week":
        return local.isocalendar()[:2]
    return (local.year, local.month) if calendar == "month" else local.date()
