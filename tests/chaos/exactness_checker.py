"""The independent checker: was anybody sent more than a policy allows, anything twice, or anything nobody can explain?

It is given three accounts of one run (`Evidence`): what clients were answered, what the ledger holds, what the log holds.
It shares no code with the gates, the caps, the decision shell or the ledger's own audit: rules come from the policy
documents as plain JSON (`exactness_rules`), uses are counted in the order of ledger versions. Every finding is a sentence.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from tests.chaos.exactness_rules import CHANNELS, Cap, Rules, day_number, local_date, period_key


@dataclass(frozen=True)
class Send:
    """One message in an answer or a record."""

    slot: int
    campaign: int
    channel: int


@dataclass(frozen=True)
class Answer:
    """A decision a client was told (HTTP 200). policy: "" where the answer repeats an earlier one."""

    user: int
    key: str
    request_id: int
    action: str
    sends: tuple[Send, ...]
    policy: str
    replayed: bool


@dataclass(frozen=True)
class Lost:
    """A row without a key whose answer never came, or was `outcome_unknown`: it may have been decided in between."""

    user: int
    since_us: int
    until_us: int


@dataclass(frozen=True)
class Use:
    """One history entry of the ledger."""

    at: int
    campaign: int
    category: int
    channel: int
    message_class: int
    holdout: int
    request_id: int
    slot: int
    local_day: int
    refunded: bool
    uncounted: bool


@dataclass(frozen=True)
class Kept:
    """One decision record of the ledger, with the version its commit made."""

    request_id: int
    version: int
    read_version: int
    decided_at: int
    policy: str
    action: str
    sends: tuple[Send, ...]


@dataclass(frozen=True)
class Logged:
    """One row of the log's decisions. commit_version: -1 where nothing was written. key: digest, b"" for none."""

    user: int
    request_id: int
    slot: int
    granted: bool
    commit_version: int
    key: bytes


@dataclass
class Person:
    """A user as the ledger has it: version before the run and now, zone, history in version order, records."""

    user: int
    zone: str
    version_before: int
    version: int
    uses: list[Use] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)

    @cached_property
    def by_request(self) -> dict[int, list[Use]]:
        """Uses of each request."""
        out: defaultdict[int, list[Use]] = defaultdict(list)
        for use in self.uses:
            out[use.request_id].append(use)
        return out

    @cached_property
    def records(self) -> dict[int, Kept]:
        """The record of each request."""
        return {one.request_id: one for one in self.kept}


@dataclass
class Evidence:
    """Three accounts of one run. owned: keys somebody asked with; every one of them must have been answered."""

    rules: dict[str, Rules]
    people: dict[int, Person]
    answers: list[Answer]
    lost: list[Lost]
    logged: list[Logged]
    owned: set[tuple[int, str]] = field(default_factory=set)


def findings(evidence: Evidence) -> list[str]:
    """Everything wrong, in words; empty where the run was exact."""
    checks: tuple[Callable[[Evidence], Iterator[str]], ...] = (
        versions, records_and_history, caps, gaps, keys, answered_is_kept, answered_is_logged, logged_is_kept, explained,
    )  # fmt: skip
    return [finding for check in checks for finding in check(evidence)]


# --- the ledger by itself ------------------------------------------------------------------------------------------------


def versions(evidence: Evidence) -> Iterator[str]:
    """Each commit raised its user's version by one, and left a record of it."""
    for person in evidence.people.values():
        made = sorted(one.version for one in person.kept)
        expected = list(range(person.version_before + 1, person.version + 1))
        if made != expected:
            yield f"user {person.user:016x}: versions of the records are not {_span(expected)}: {_gaps(made, expected)}"
        for one in person.kept:
            if one.read_version != one.version - 1:
                yield f"user {person.user:016x}: version {one.version} was decided on version {one.read_version}"


def records_and_history(evidence: Evidence) -> Iterator[str]:
    """The history holds each record's sends, once, in the order of versions, stamped with the decision's time."""
    for person in evidence.people.values():
        real = [use for use in person.uses if use.holdout == 0]
        seen: set[tuple[int, int]] = set()
        for use in real:
            if (use.request_id, use.slot) in seen:
                yield f"user {person.user:016x}: request {use.request_id:016x} slot {use.slot} was granted twice"
            seen.add((use.request_id, use.slot))
            day = day_number(local_date(use.at, person.zone))
            if use.local_day != day:
                yield f"user {person.user:016x}: a use at {use.at} is booked on day {use.local_day}, it was {day}"
        recorded = [
            (one.request_id, send.slot, send.campaign, send.channel, one.decided_at)
            for one in sorted(person.kept, key=lambda one: one.version)
            for send in sorted(one.sends, key=lambda send: send.slot)
        ]
        booked = [(use.request_id, use.slot, use.campaign, use.channel, use.at) for use in real]
        if recorded != booked:
            missing, extra = set(recorded) - set(booked), set(booked) - set(recorded)
            yield (
                f"user {person.user:016x}: history and records differ: {len(missing)} sends only recorded, {len(extra)} "
                f"only in the history, or in another order"
            )


def caps(evidence: Evidence) -> Iterator[str]:
    """No use found its cap full, by the policy its decision was pinned to."""
    for person in evidence.people.values():
        columns = _Columns(person)
        for place, use, rules in _pinned_uses(evidence, person):
            for cap in rules.caps:
                if use.message_class not in cap.binds or (cap.only and use.channel not in cap.only):
                    continue
                used = columns.used_before(place, use, cap)
                if used >= cap.limit:
                    yield (
                        f"user {person.user:016x}: cap {cap.name} of {cap.limit} (policy {rules.revision}) was passed: "
                        f"{used} uses before the one at {use.at}"
                    )


class _Columns:
    """A person's uses as columns, in version order."""

    def __init__(self, person: Person) -> None:
        uses, zone = person.uses, person.zone
        self.at = np.array([one.at for one in uses], np.int64)
        self.scopes = {
            "campaign": np.array([one.campaign for one in uses], np.uint64),
            "category": np.array([one.category for one in uses], np.uint64),
            "channel": np.array([one.channel for one in uses], np.int64),
        }
        self.kinds = np.array([one.message_class for one in uses], np.int64)
        self.holds = np.array([one.holdout == 0 and not (one.refunded or one.uncounted) for one in uses], np.bool_)
        days = [local_date(one.at, zone) for one in uses]
        self.periods = {name: np.array([period_key(day, name) for day in days]) for name in ("day", "week", "month")}

    def used_before(self, place: int, use: Use, cap: Cap) -> int:
        """Uses of the cap that were there when the use at `place` was granted, whatever their clocks said."""
        inside = self.holds[:place] & np.isin(self.kinds[:place], list(cap.counts))
        if cap.scope != "global":
            inside &= self.scopes[cap.scope][:place] == getattr(use, cap.scope)
        if cap.period:
            inside &= self.periods[cap.period][:place] == self.periods[cap.period][place]
        else:
            inside &= self.at[:place] > use.at - cap.window_us
        return int(np.count_nonzero(inside))


def gaps(evidence: Evidence) -> Iterator[str]:
    """No bound message came sooner after another than the minimum gap; messages of one decision count as one."""
    for person in evidence.people.values():
        for place, use, rules in _pinned_uses(evidence, person):
            if use.message_class not in rules.gap_binds or not rules.gap_us:
                continue
            for other in person.uses[:place]:
                counts = other.holdout == 0 and other.message_class in rules.gap_counts and not other.refunded
                if counts and other.request_id != use.request_id and other.at > use.at - rules.gap_us:
                    apart = (use.at - other.at) / 1e6
                    yield f"user {person.user:016x}: {apart:.3f} s between two messages, {rules.gap_us / 1e6:g} s are due"


def _pinned_uses(evidence: Evidence, person: Person) -> Iterator[tuple[int, Use, Rules]]:
    """(place in the history, use, rules in force) of the person's factual, counted uses."""
    for place, use in enumerate(person.uses):
        record = person.records.get(use.request_id)
        if use.holdout == 0 and not use.uncounted and record is not None:
            yield place, use, evidence.rules[record.policy]


# --- the accounts against each other -------------------------------------------------------------------------------------


def keys(evidence: Evidence) -> Iterator[str]:
    """One key, one decision: however often it was asked for, and whatever died in between."""
    said: defaultdict[tuple[int, str], set[tuple[int, str, tuple[Send, ...]]]] = defaultdict(set)
    for answer in evidence.answers:
        if answer.key:
            said[answer.user, answer.key].add((answer.request_id, answer.action, answer.sends))
    for (user, key), decisions in said.items():
        if len(decisions) > 1:
            yield f"user {user:016x}: key {key} was answered with {len(decisions)} different decisions"
    for user, key in sorted(evidence.owned - said.keys()):
        yield f"user {user:016x}: key {key} was never answered"
    granted: defaultdict[tuple[int, bytes], set[int]] = defaultdict(set)
    for row in evidence.logged:
        if row.key and row.granted:
            granted[row.user, row.key].add(row.request_id)
    for (user, digest), requests in granted.items():
        if len(requests) > 1:
            yield f"user {user:016x}: key digest {digest.hex()} was granted by {len(requests)} requests"


def answered_is_kept(evidence: Evidence) -> Iterator[str]:
    """Every send a client was told of is a use of that user, under that policy; every answered silence used nothing."""
    for answer in _distinct(evidence.answers):
        person = evidence.people[answer.user]
        uses = {
            Send(use.slot, use.campaign, use.channel)
            for use in person.by_request.get(answer.request_id, ())
            if use.holdout == 0
        }
        if set(answer.sends) != uses:
            yield (
                f"user {answer.user:016x}: request {answer.request_id:016x} was answered {_words(answer.sends)}, "
                f"the ledger holds {_words(uses)}"
            )
        record = person.records.get(answer.request_id)
        if record is None and (answer.key or answer.sends):
            yield f"user {answer.user:016x}: request {answer.request_id:016x} was answered and is not recorded"
        elif record is not None and answer.policy and record.policy != answer.policy:
            yield f"request {answer.request_id:016x} was answered under {answer.policy}, recorded under {record.policy}"


def answered_is_logged(evidence: Evidence) -> Iterator[str]:
    """Every answered decision is in the log, its sends as granted rows."""
    rows = {(row.user, row.request_id) for row in evidence.logged}
    granted = {(row.user, row.request_id, row.slot) for row in evidence.logged if row.granted}
    for answer in _distinct(evidence.answers):
        if (answer.user, answer.request_id) not in rows:
            yield f"user {answer.user:016x}: request {answer.request_id:016x} was answered and is not in the log"
        for send in answer.sends:
            if (answer.user, answer.request_id, send.slot) not in granted:
                said = f"request {answer.request_id:016x} slot {send.slot}"
                yield f"user {answer.user:016x}: {said} was sent, the log does not say so"


def logged_is_kept(evidence: Evidence) -> Iterator[str]:
    """The log claims no grant that the ledger does not hold, and no version that another request made."""
    for row in evidence.logged:
        person = evidence.people.get(row.user)
        if person is None:
            continue
        if row.granted and not any(
            use.slot == row.slot and use.holdout == 0 for use in person.by_request.get(row.request_id, ())
        ):
            yield f"user {row.user:016x}: the log has a grant of request {row.request_id:016x} that the ledger lacks"
        if row.commit_version >= 0:
            record = person.records.get(row.request_id)
            if record is None or record.version != row.commit_version:
                yield f"user {row.user:016x}: the log has version {row.commit_version} for request {row.request_id:016x}"


def explained(evidence: Evidence) -> Iterator[str]:
    """Every recorded decision was answered, or belongs to a row without a key whose answer got lost meanwhile."""
    known = {(answer.user, answer.request_id) for answer in evidence.answers}
    lost: defaultdict[int, list[Lost]] = defaultdict(list)
    for one in evidence.lost:
        lost[one.user].append(one)
    for person in evidence.people.values():
        open_ones = [one for one in person.kept if (person.user, one.request_id) not in known]
        unmatched = _unmatched(sorted(one.decided_at for one in open_ones), lost[person.user])
        if unmatched:
            yield f"user {person.user:016x}: {unmatched} decisions that nobody was told of and no lost answer explains"


def _unmatched(moments: list[int], intervals: Iterable[Lost]) -> int:
    """How many moments find no interval of their own that holds them: the one that ends first goes first."""
    left = sorted(intervals, key=lambda one: one.until_us)
    missed = 0
    for moment in moments:
        fit = next((one for one in left if one.since_us <= moment <= one.until_us), None)
        if fit is None:
            missed += 1
        else:
            left.remove(fit)
    return missed


# --- looking things up ---------------------------------------------------------------------------------------------------


def _distinct(answers: Iterable[Answer]) -> list[Answer]:
    """Repeats of a key once."""
    return list(
        {(one.user, one.request_id): one for one in sorted(answers, key=lambda one: one.replayed, reverse=True)}.values()
    )


def _words(sends: Iterable[Send]) -> str:
    said = ", ".join(f"slot {one.slot} by {CHANNELS[one.channel]}" for one in sorted(sends, key=lambda one: one.slot))
    return said or "nothing"


def _span(numbers: list[int]) -> str:
    return f"{numbers[0]}..{numbers[-1]}" if numbers else "none"


def _gaps(made: list[int], expected: list[int]) -> str:
    missing, extra = set(expected) - set(made), set(made) - set(expected)
    twice = len(made) - len(set(made))
    return f"{len(missing)} missing, {len(extra)} unexpected, {twice} twice"
