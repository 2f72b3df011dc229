"""A whole decision once more, in plain Python on top of the gates' oracle: trials, flips, several sends, holdouts with their
shadows and ghosts, deferrals, and what the request ends with. Written from the contract; it shares no code with the stage.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import numpy as np
import xxhash

from serve_app.ids import hash_id
from serve_app.policy.document import PolicyDocument
from serve_app.vocabulary import Channel, MessageClass
from tests.unit import decision_oracle as gates
from tests.unit.decision_support import DAY, zone

Row = dict[str, Any]
GATE_NAMES = [gate.__name__ for gate in gates.GATES]
SEEN_BY_HISTORY = ("duplicate", "caps", "min_gap")
_MASK = 2**64 - 1


# --- noise: SplitMix64's finaliser, chained over the parts of a key


def _mix(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ x >> 27) * 0x94D049BB133111EB) & _MASK
    return x ^ x >> 31


def noise(salt: str | int, *parts: int) -> int:
    """64 bits of a key."""
    state = xxhash.xxh3_64_intdigest(salt.encode()) if isinstance(salt, str) else salt
    for part in parts:
        state = _mix(state ^ _mix(part & _MASK))
    return state


def uniform(bits: int) -> float:
    """In (0, 1)."""
    return ((bits >> 11) + 0.5) / 2**53


# --- trials


def _in_force(one: Any, now: int) -> bool:
    def micros(text: str) -> int:
        return (datetime.fromisoformat(text) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)

    return (not one.starts_at or micros(one.starts_at) <= now) and (not one.ends_at or now < micros(one.ends_at))


def variant(document: PolicyDocument, user: int, now: int) -> tuple[PolicyDocument, float]:
    """The document as this user meets it now, and the probability of the cell drawn."""
    changes: list[tuple[str, Any]] = []
    for experiment in document.experiments:
        if _in_force(experiment, now):
            u, share = uniform(noise(experiment.salt, user)), 0
            for arm in experiment.arms:
                share += round(arm.percent * 100)
                if u < share / 10_000:
                    changes += arm.overrides.items()
                    break
    probability = 1.0
    if document.cells:
        epoch = now // round(document.cells.epoch_hours * 3600e6)
        u, total = uniform(noise(document.cells.salt, user, epoch)), 0.0
        for cell in document.cells.variants:
            total += cell.probability
            if u < total or cell is document.cells.variants[-1]:
                changes += cell.overrides.items()
                probability = cell.probability
                break
    return _changed(document, tuple(changes)), probability


_CHANGED: dict[Any, PolicyDocument] = {}


def _changed(document: PolicyDocument, changes: tuple[tuple[str, Any], ...]) -> PolicyDocument:
    known = document.revision, changes
    if known not in _CHANGED:
        _CHANGED[known] = _change(document, changes)
    return _CHANGED[known]


def _change(document: PolicyDocument, changes: tuple[tuple[str, Any], ...]) -> PolicyDocument:
    data = document.model_dump(mode="json") | {"experiments": [], "cells": None}
    for path, value in changes:
        *way, last = path.split(".")
        place: Any = data
        for part in way:
            place = next(one for one in place if one["id"] == part) if isinstance(place, list) else place[part]
        place[last] = value
    return PolicyDocument.model_validate(data)


# --- when the night or the quiet hours end


def opens_at(gate: Any, document: PolicyDocument, request: Row, one: Row) -> int:
    """First moment after now at which a gate that looks at the clock lets pass; 0: none in three days."""
    now, name = request["decided_at"], request["zone"]
    rule = document.regions.get(request["region"].lower(), document.other_regions)
    ends = {rule.night_end} if gate is gates.consent else {quiet.end for quiet in document.quiet_hours}
    today = gates.local(now, name).date()
    moments = set()
    for day in range(-1, 5):
        for end in ends:
            hour, minute, *second = (int(part) for part in end.split(":"))
            wall = datetime.combine(today, datetime.min.time()) + timedelta(days=day, hours=hour, minutes=minute)
            wall += timedelta(seconds=second[0] if second else 0)
            for fold in (0, 1):
                at = wall.replace(tzinfo=zone(name), fold=fold)
                moments.add(round(at.timestamp() * 1e6))
    moments |= {m * 60_000_000 for m in range(now // 60_000_000, (now + 3 * DAY) // 60_000_000) if _jumps(m, name)}
    for moment in sorted({*moments, request["consent_night_at"]}):
        if now < moment <= now + 3 * DAY and not gate(document, request | {"decided_at": moment}, one, []):
            return moment
    return 0


@cache
def _jumps(minute: int, name: str) -> bool:
    """Does the zone's offset change at this minute (since 1970)? Looked at hour by hour first."""
    hour = minute - minute % 60
    if _offset(hour - 1, name) == _offset(hour + 60, name):
        return False
    return _offset(minute - 1, name) != _offset(minute, name)


@cache
def _offset(minute: int, name: str) -> Any:
    return datetime.fromtimestamp(minute * 60, zone(name)).utcoffset()


def deferral(document: PolicyDocument, request: Row, one: Row, gate: str) -> int:
    """When a candidate that `gate` refused first is decided anew; 0: never."""
    now, kind = request["decided_at"], MessageClass(one["message_class"]).name
    if gate == "consent":
        rule = document.regions.get(request["region"].lower(), document.other_regions)
        by_day = request | {"zone": "UTC", "decided_at": now}  # a consent that lacks by day lacks at night
        lacks = gates.consent(document.model_copy(update={"regions": {}, "other_regions": _daily(rule)}), by_day, one, [])
        if rule.night_action != "defer" or lacks:
            return 0
        free = opens_at(gates.consent, document, request, one)
    elif gate == "quiet_hours":
        wall = gates.local(now, request["zone"]).time()
        active = [
            quiet for quiet in document.quiet_hours
            if kind in quiet.classes and (not quiet.channels or Channel(one["channel"]).name in quiet.channels)
            and gates._within(wall, quiet.start, quiet.end)
        ]  # fmt: skip
        if any(quiet.action == "drop" for quiet in active):
            return 0
        free = opens_at(gates.quiet_hours, document, request, one)
    else:
        return 0
    end = min((e for e in (request["expires_at"], one["expires_at"]) if e), default=None)
    if not free or request["attempt"] >= document.deferral.max_attempts or (end is not None and free >= end):
        return 0
    spread = round(document.deferral.spread_minutes * 60e6)
    spread = spread if end is None else min(spread, end - free)
    return free + int(uniform(noise(document.deferral.salt, request["root_id"], request["user"])) * spread)


def _daily(rule: Any) -> Any:
    return rule.model_copy(update={"night_consent_required": False})


# --- the choice


def _identity(one: Row, item_hashes: Any) -> int:
    item = int(item_hashes[one["item"]]) if one["item"] >= 0 else _MASK
    return noise(one["campaign"], item, one["channel"], one["message_class"])


class Choosing:
    """One request under one policy, as one user meets it."""

    def __init__(self, document: PolicyDocument, request: Row, history: list[Row], item_hashes: Any) -> None:
        self.document, self.request, self.history = document, request, history
        self.rows = request["candidates"]
        self.identity = [_identity(one, item_hashes) for one in self.rows]

    def better(self, a: int) -> tuple[float, float, int]:
        """Sort key: the best candidate has the largest."""
        one, kind = self.rows[a], MessageClass(self.rows[a]["message_class"]).name
        worth = gates.value(self.document, one)
        order = one["priority"] + getattr(self.document.message_classes, kind).priority
        by_priority = 0 if self.document.order == "value" else order
        return by_priority, -np.inf if np.isnan(worth) else worth, -self.identity[a]

    def choose(
        self, eligible: list[int], salt: int, *, flipping: bool
    ) -> tuple[int | None, int | None, bool, dict[Any, float]]:
        """(best, winner, flipped, probability of each candidate and of None)."""
        if not eligible:
            return None, None, False, {None: 1.0}
        flips, best = self.document.flips, max(eligible, key=self.better)

        def may(c: int) -> bool:
            return MessageClass(self.rows[c]["message_class"]).name in flips.classes

        targets: list[int | None] = [None] if flips.to in ("none", "either") else []
        if flips.to in ("other_passing", "either"):
            targets += [c for c in eligible if c != best and may(c)]
        if not flipping or flips.probability == 0 or not may(best) or not targets:
            return best, best, False, {best: 1.0, None: 0.0}
        seed = noise(flips.salt) if not salt else noise(noise(flips.salt), salt)
        key = noise(seed, self.request["root_id"], self.request["attempt"])
        odds = {best: 1 - flips.probability, None: 0.0} | dict.fromkeys(targets, flips.probability / len(targets))
        if uniform(noise(key, 0x666C6970)) >= flips.probability:
            return best, best, False, odds
        race = noise(key, 0x7768696368)
        won = max(targets, key=lambda c: noise(race, 0 if c is None else self.identity[c]))
        return best, won, True, odds

    def sends(self, words: list[list[str]], allowed: list[bool], shadow: int, fewer: int = 0) -> Row:
        """All sends in order, each counted before the next is looked for."""
        open_ = [c for c in range(len(self.rows)) if allowed[c] and not any(words[c])]
        best, won, flipped, odds = self.choose(open_, shadow, flipping=True)
        sent = [] if won is None else [won]
        most = min(self.request["slots"], self.document.max_sends_per_decision) - fewer
        while sent and len(sent) < most:
            seen = [past for past in self.history if past["holdout"] in (0, shadow)] + [self._use(c) for c in sent]
            left = [c for c in open_ if c not in sent and not any(self._again(c, seen))]
            _, nxt, _, _ = self.choose(left, shadow, flipping=False)
            if nxt is None:
                break
            sent.append(nxt)
        return {"best": best, "sent": sent, "flipped": flipped, "odds": odds}

    def _again(self, c: int, seen: list[Row]) -> list[str]:
        said = any(past.get("now") and past["campaign"] == self.rows[c]["campaign"] != 0 for past in seen)
        plain = [past for past in seen if not past.get("now")]
        words = [gates.duplicate(self.document, self.request, self.rows[c], plain)]
        words += [gate(self.document, self.request, self.rows[c], seen) for gate in (gates.caps, gates.min_gap)]
        return [*words, "duplicate" if said else ""]

    def _use(self, c: int) -> Row:
        one, request = self.rows[c], self.request
        kept = {name: one[name] for name in ("campaign", "category", "channel", "message_class")}
        return kept | {"at": request["decided_at"], "zone": request["zone"], "flags": 0, "request_id": None, "now": True}


# --- holdouts


def holdouts_of(document: PolicyDocument) -> list[Any]:
    """Global ones first."""
    return sorted(document.holdouts, key=lambda one: one.scope != "global")


def covers(holdout: Any, at: int, one: Row) -> bool:
    """Is this message one that the holdout withholds from the users it holds out?"""
    named = not holdout.campaigns or one["campaign"] in [hash_id(name) for name in holdout.campaigns]
    return _in_force(holdout, at) and MessageClass(one["message_class"]).name in holdout.classes and named


def key_of(holdout: Any) -> int:
    """Names the holdout's shadow history."""
    return hash_id(f"holdout/{holdout.id}/{holdout.salt}")


def holds(holdout: Any, user: int) -> bool:
    """Is the user in the share held out?"""
    return uniform(noise(holdout.salt, user)) < round(holdout.percent * 100) / 10_000


# --- the decision


def decide(policy: PolicyDocument, request: Row, history: list[Row], item_hashes: Any = ()) -> Row:
    """Everything a decision says: per candidate reason, action, slot, ghost, ghost_first, p_choice, until, counts, words;
    per request action, reason, until, explored, p_none."""
    now, user, rows = request["decided_at"], request["user"], request["candidates"]
    document, p_cell = variant(policy, user, now)
    own = Choosing(document, request, history, item_hashes)
    every = holdouts_of(document)
    words = gates.reasons(document, request, history)
    factual = [past for past in history if past["holdout"] == 0]
    observed = [_observed(document, request, row, factual) for row in rows]
    held = [next((h for h, one in enumerate(every) if holds(one, user) and covers(one, now, row)), -1) for row in rows]
    ghosts, blocked, p_open, fewer = {}, -1, 1.0, 0
    for h in sorted(set(held) - {-1}):
        shadow = key_of(every[h])
        seen = gates.reasons(document, request, history, shadow)
        turn = own.sends(seen, [by in (-1, h) for by in held], shadow)
        ghosts |= {c: h for c in turn["sent"] if held[c] == h}
        for c in range(len(rows)):
            if held[c] == h:
                past = [one for one in history if one["holdout"] in (0, shadow)]
                words[c], observed[c] = seen[c], _observed(document, request, rows[c], past)
        if every[h].blocking:
            fewer += sum(held[c] == h for c in turn["sent"][1:])
            p_open *= 1 - sum(p for c, p in turn["odds"].items() if c is not None and held[c] == h)
            if turn["sent"] and held[turn["sent"][0]] == h and blocked < 0:
                blocked = h
    turn = own.sends(words, [by < 0 for by in held], 0, fewer)
    return _outcome(own, every, words, held, ghosts, blocked, p_open, turn) | {"p_cell": p_cell, "observed": observed}


def _observed(document: PolicyDocument, request: Row, one: Row, history: list[Row]) -> Row:
    """What the gates that look at the history saw."""
    uses = gates.uses(document, request, one, history)
    least = min((limit - used for used, limit in uses), default=None)
    tightest = [(used, limit) for used, limit in uses if limit - used == least]
    return {"caps": tightest, "since": gates.since_last(document, request, one, history)}


def _outcome(
    own: Choosing, every: list[Any], words: list[list[str]], held: list[int], ghosts: dict[int, int], blocked: int,
    p_open: float, turn: Row,
) -> Row:  # fmt: skip
    document, request, rows = own.document, own.request, own.rows
    said = [f"{one.scope}_holdout" for one in every]
    sent = [] if blocked >= 0 else turn["sent"]
    flipped = turn["flipped"] and blocked < 0
    first = [next((g for g, word in enumerate(line) if word), len(line)) for line in words]
    out: list[Row] = []
    for c, line in enumerate(words):
        until, reason, action = 0, "chosen", "send"
        if c in sent:
            pass
        elif c in ghosts:
            reason, action = said[ghosts[c]], "suppress"
        elif any(line):
            reason = line[first[c]]
            until = deferral(document, request, rows[c], GATE_NAMES[first[c]])
            action = "defer" if until else "suppress"
        else:
            reason, action = ("explored_off" if flipped and c == turn["best"] else "preempted"), "suppress"
            if blocked >= 0 and c == turn["best"]:
                reason = said[blocked]
        odds = turn["odds"].get(c, 0.0) * p_open
        out.append({
            "reason": reason, "action": action, "until": until, "slot": sent.index(c) if c in sent else -1,
            "ghost": c in ghosts, "p_choice": odds, "counts": _counts(document, rows[c]), "words": line,
            "ghost_first": False, "holdout": ghosts.get(c, -1),
        })  # fmt: skip
    _mark_first(own, every, out, ghosts, sent)
    late = [c for c, one in enumerate(out) if one["action"] == "defer" and held[c] not in ghosts.values()]
    whole: Row = {"candidates": out, "explored": flipped, "until": 0}
    whole["p_none"] = 1 - p_open * (1 - turn["odds"].get(None, 0.0))
    if sent:
        whole |= {"action": "send", "reason": "none"}
    elif blocked >= 0:
        whole |= {"action": "suppress", "reason": said[blocked]}
    elif flipped:
        whole |= {"action": "suppress", "reason": "explored_off"}
    elif late:
        soonest = min(late, key=lambda c: out[c]["until"])
        whole |= {"action": "defer", "reason": out[soonest]["reason"], "until": out[soonest]["until"]}
    elif ghosts:
        whole |= {"action": "suppress", "reason": said[ghosts[min(ghosts)]]}
    elif rows:
        whole |= {"action": "suppress", "reason": out[max(range(len(rows)), key=lambda c: (first[c], -c))]["reason"]}
    else:
        whole |= {"action": "none", "reason": "none"}
    return whole


def _counts(document: PolicyDocument, one: Row) -> int:
    bits = 0
    for k, cap in enumerate(document.caps):
        only = {Channel[name].value if cap.scope == "channel" else hash_id(name) for name in cap.only}
        inside = not only or one[cap.scope] in only
        bits |= (MessageClass(one["message_class"]).name in cap.counts and inside) << k
    return bits


def _mark_first(own: Choosing, every: list[Any], out: list[Row], ghosts: dict[int, int], sent: list[int]) -> None:
    """The first would-send of the user under each holdout: a real send in one arm, a ghost in the other."""
    for h, holdout in enumerate(every):
        would = [
            c
            for c in range(len(out))
            if (c in sent or ghosts.get(c) == h) and covers(holdout, own.request["decided_at"], own.rows[c])
        ]
        if not would or (would[0] in sent and holds(holdout, own.request["user"])):
            continue
        seen = [past for past in own.history if past["holdout"] in (0, key_of(holdout))]
        if not any(covers(holdout, past["at"], past) for past in seen):
            out[would[0]]["ghost_first"] = True
