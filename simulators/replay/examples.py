"""A few users whose day a policy changed, decision by decision, so that a reader sees what the numbers are made of.

Users are picked by a hash of their own, the lowest first: the same ones for any partition of the log, and no better or
worse than others. Of each the first local day with a difference is shown, in full.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.noise import hash_key, salt_of
from serve_app.policy.zones import UNKNOWN_ZONE, local_day, local_second_of_day, zone_name
from simulators.replay.counts import Window, differing
from simulators.replay.opportunities import Opportunities
from simulators.replay.realised import Realised

__all__ = ["Example", "Moment", "add_examples", "example_users", "examples_from"]

I64 = npt.NDArray[np.int64]

_SALT = salt_of("example users")
_SHOWN = 6
_DAY_US = 86_400_000_000


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a policy did: Action and Reason; campaign (hash) and Channel of its first send, 0 and -1 where there is none."""

    action: int
    reason: int
    campaign: int
    channel: int


@dataclass(frozen=True, slots=True)
class Moment:
    """One decision of the day. at: microseconds UTC; local: the same on the user's clock; None: was not asked then."""

    at: int
    local: int
    logged: Outcome | None
    target: Outcome | None


@dataclass(frozen=True, slots=True)
class Example:
    """A user's day. order: what users are picked by."""

    policy: str
    order: int
    user: int
    zone: str
    moments: tuple[Moment, ...]

    def plain(self) -> dict[str, Any]:
        """For a file."""
        return asdict(self)


def examples_from(plain: list[dict[str, Any]]) -> list[Example]:
    """Back from `Example.plain`."""
    return [Example(**{**one, "moments": tuple(_moment(moment) for moment in one["moments"])}) for one in plain]


def _moment(plain: dict[str, Any]) -> Moment:
    both = {name: Outcome(**plain[name]) if plain[name] else None for name in ("logged", "target")}
    return Moment(plain["at"], plain["local"], both["logged"], both["target"])


def add_examples(one: list[Example], other: list[Example]) -> list[Example]:
    """The lowest orders of both, by policy: in whatever order parts are added, the same users remain."""
    every = sorted([*one, *other], key=lambda example: (example.policy, example.order, example.user))
    return [example for _, some in groupby(every, key=lambda example: example.policy) for example in list(some)[:_SHOWN]]


def example_users(name: str, asked: Opportunities, logged: Realised, done: Realised, window: Window) -> list[Example]:
    """Of one target policy over one partition."""
    rows = differing(asked, logged, done)
    rows = rows[window.holds(asked.batch.requests["decided_at"][rows])]
    users = np.unique(asked.owner[rows])
    order = hash_key(_SALT, asked.users[users])
    chosen = users[np.argsort(order, kind="stable")[:_SHOWN]]
    both = _Side(asked, logged), _Side(asked, done)
    found = [_example(name, asked, both, int(user), rows[asked.owner[rows] == user]) for user in chosen.tolist()]
    return add_examples(found, [])


def _example(name: str, asked: Opportunities, both: tuple[_Side, _Side], user: int, changed: I64) -> Example:
    zone = int(asked.batch.requests["zone"][changed[0]])
    first = int(asked.batch.requests["decided_at"][changed].min())
    day = _clock(zone, first) // _DAY_US
    sides = [side.of(user, zone, day) for side in both]
    keys = sorted({*sides[0], *sides[1]})
    moments = tuple(Moment(at, _clock(zone, at), sides[0].get((at, row)), sides[1].get((at, row))) for at, row in keys)
    hashed = asked.users[user : user + 1]
    order = int(hash_key(_SALT, hashed)[0])
    return Example(name, order, int(hashed[0]), zone_name(zone) if zone != UNKNOWN_ZONE else "UTC", moments)


def _clock(zone: int, at: int) -> int:
    """Local wall clock in microseconds, to the second; UTC where the zone is unknown."""
    if zone == UNKNOWN_ZONE:
        return at
    return (int(local_day(at, zone)[0]) * 86_400 + int(local_second_of_day(at, zone)[0])) * 1_000_000


class _Side:
    """One course, to look up a user's decisions in."""

    def __init__(self, asked: Opportunities, done: Realised) -> None:
        self._asked, self._done = asked, done
        self._owner = asked.owner[done.rows]
        self._send = np.full(len(done.rows), -1, np.int64)
        self._send[done.send_decision[::-1]] = done.send_candidate[::-1]

    def of(self, user: int, zone: int, day: int) -> dict[tuple[int, int], Outcome]:
        """By (time, logged request)."""
        done, candidates = self._done, self._asked.batch.candidates
        low, high = np.searchsorted(self._owner, [user, user + 1])
        out = {}
        for place in range(int(low), int(high)):
            at = int(done.at[place])
            if _clock(zone, at) // _DAY_US == day:
                sent = int(self._send[place])
                message = (int(candidates["campaign"][sent]), int(candidates["channel"][sent])) if sent >= 0 else (0, -1)
                out[at, int(done.rows[place])] = Outcome(int(done.action[place]), int(done.reason[place]), *message)
        return out
