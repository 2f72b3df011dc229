"""A few users whose day a policy changed, decision by decision, so that a reader sees what the numbers are made of.

Users are picked by a hash of their own, the lowest first: the same ones for any partition of the log, and no better or
worse than others. Of each the first local day with a difference is shown, in full.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.noise import hash_key, salt_of
from serve_app.policy.zones import UNKNOWN_ZONE, local_day, local_second_of_day, zone_name
from simulators.replay.counts import Window
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


def example_users(
    name: str, asked: Opportunities, logged: Realised, done: Realised, differs: I64, window: Window
) -> list[Example]:
    """Of one target policy over one partition. differs: see `counts.differing`."""
    rows = differs[window.holds(asked.batch.requests["decided_at"][differs])]
    owner = asked.owner[rows]
    users = owner[np.flatnonzero(np.diff(owner, prepend=-1))]
    order = hash_key(_SALT, asked.users[users])
    chosen = users[np.argsort(order, kind="stable")[:_SHOWN]]
    found = [_example(name, asked, (logged, done), int(user), rows[owner == user]) for user in chosen.tolist()]
    return add_examples(found, [])


def _example(name: str, asked: Opportunities, both: tuple[Realised, Realised], user: int, changed: I64) -> Example:
    requests = asked.batch.requests
    zone = int(requests["zone"][changed[0]])
    first = requests["decided_at"][changed].min(keepdims=True)
    day = int(_clock(zone, first)[0] // _DAY_US)
    sides = [_day_of(asked, one, user, zone, day) for one in both]
    keys = sorted({*sides[0], *sides[1]})
    local = dict(zip(keys, _clock(zone, np.array([at for at, _ in keys])).tolist(), strict=True))
    moments = tuple(Moment(key[0], local[key], sides[0].get(key), sides[1].get(key)) for key in keys)
    hashed = asked.users[user : user + 1]
    order = int(hash_key(_SALT, hashed)[0])
    return Example(name, order, int(hashed[0]), zone_name(zone) if zone != UNKNOWN_ZONE else "UTC", moments)


def _clock(zone: int, at: I64) -> I64:
    """Local wall clock in microseconds, to the second; UTC where the zone is unknown."""
    if zone == UNKNOWN_ZONE:
        return at
    return (local_day(at, zone).astype(np.int64) * 86_400 + local_second_of_day(at, zone)) * 1_000_000


def _day_of(asked: Opportunities, done: Realised, user: int, zone: int, day: int) -> dict[tuple[int, int], Outcome]:
    """What was done for a user on one day, by (time, logged request)."""
    candidates, rows = asked.batch.candidates, done.rows
    low, high = (
        bisect_left(range(len(rows)), one, key=lambda place: int(asked.owner[rows[place]])) for one in (user, user + 1)
    )
    out = {}
    for place in (low + np.flatnonzero(_clock(zone, done.at[low:high]) // _DAY_US == day)).tolist():
        sends = np.searchsorted(done.send_decision, [place, place + 1])
        message = (0, -1)
        if sends[0] < sends[1]:
            sent = int(done.send_candidate[sends[0]])
            message = int(candidates["campaign"][sent]), int(candidates["channel"][sent])
        out[int(done.at[place]), int(rows[place])] = Outcome(int(done.action[place]), int(done.reason[place]), *message)
    return out
