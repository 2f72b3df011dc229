"""Counts of what was done, as one long table that adds up: (policy, measure, dimension, key, day) -> value.

Counts are integers, so that sums do not depend on the order of partitions. Days and hours are the user's own where a key
says `local`, UTC elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from serve_app.policy.zones import local_second_of_day
from simulators.replay.opportunities import Opportunities
from simulators.replay.realised import Realised

__all__ = [
    "COUNTS",
    "Window",
    "add_counts",
    "bots_left_out",
    "counts_of",
    "differing",
    "divergence",
    "left_out_of_trial",
    "sends_by_half",
    "set_aside",
]

I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
DAY_US = 86_400_000_000

COUNTS = pa.schema(
    [
        pa.field("policy", pa.string()),  # "logged", or a target's name
        pa.field("measure", pa.string()),  # decisions, sends, users, candidates, ...
        pa.field("dimension", pa.string()),  # "", action, reason, channel, campaign, category, message_class, hour_local
        pa.field("key", pa.uint64()),
        pa.field("day", pa.int32()),  # days since 1970-01-01 UTC; -1: the whole window
        pa.field("value", pa.int64()),
    ]
)


@dataclass(frozen=True, slots=True)
class Window:
    """What counts: start <= time < end, microseconds UTC."""

    start: int
    end: int

    def holds(self, at: I64) -> Bools:
        """bool[n]"""
        return (at >= self.start) & (at < self.end)


def counts_of(name: str, asked: Opportunities, done: Realised, window: Window) -> pa.Table:
    """All counts of one policy over one partition."""
    inside = window.holds(done.at)
    sent = np.flatnonzero(inside[done.send_decision])
    at, day = done.at[done.send_decision[sent]], (done.at // DAY_US).astype(np.int64)
    rows, place = done.rows[done.send_decision[sent]], done.send_candidate[sent]
    sent_day, candidates = at // DAY_US, asked.batch.candidates
    hour = local_second_of_day(at, asked.batch.requests["zone"][rows]) // 3600
    parts = [
        _by(name, "decisions", "action", done.action[inside], day[inside]),
        _by(name, "decisions", "reason", done.reason[inside], day[inside]),
        _by(name, "sends", "", np.zeros(len(at), np.uint64), sent_day),
        _by(name, "sends", "hour_local", hour, sent_day),
    ]
    dimensions = ("channel", "message_class", "campaign", "category")
    parts += [_by(name, "sends", one, candidates[one][place], sent_day) for one in dimensions]
    parts.append(_whole(name, "candidates", "reason", done.candidate_reasons))
    parts += _of_users(name, asked, done, inside, rows)
    return add_counts(parts)


def _of_users(name: str, asked: Opportunities, done: Realised, inside: Bools, sent_rows: I64) -> list[pa.Table]:
    """Users asked, users reached, and the histogram of sends a user."""
    users = len(asked.users)
    present = np.bincount(asked.owner[done.rows[inside]], minlength=users) > 0
    sends = np.bincount(asked.owner[sent_rows], minlength=users)
    return [
        _whole(name, "users", "", np.array([present.sum()])),
        _whole(name, "users_reached", "", np.array([(sends > 0).sum()])),
        _whole(name, "users", "sends_in_window", np.bincount(sends[present])),
        _whole(name, "carried", "", np.array([done.carried])),
    ]


def bots_left_out(users: int, requests: int) -> pa.Table:
    """How many users known as bots, and how many of their decisions, no other measure holds."""
    measures = {"bots": users, "decisions_of_bots": requests}
    return pa.concat_tables([_whole("logged", name, "", np.array([value])) for name, value in measures.items()])


def set_aside(requests: I64) -> pa.Table:
    """Requests that no policy decided, by reason (i64[reasons])."""
    return _whole("logged", "set_aside", "reason", requests)


def left_out_of_trial(holdout: int, left: Mapping[str, int]) -> pa.Table:
    """Users whom the trial of a holdout (its key) could not take, by why."""
    rows = [(f"trial_{why}", value) for why, value in left.items() if value]
    key, day = np.array([holdout], np.uint64), np.array([-1])
    return pa.concat_tables(
        [COUNTS.empty_table(), *(_table("logged", name, "holdout", key, day, np.array([n])) for name, n in rows)]
    )


def sends_by_half(name: str, asked: Opportunities, done: Realised, window: Window, half: I64) -> pa.Table:
    """Sends and users of each half of the users (half i64[users], 0 or 1)."""
    inside = window.holds(done.at)
    sent = done.rows[done.send_decision[inside[done.send_decision]]]
    present = np.unique(asked.owner[done.rows[inside]])
    sends = np.bincount(half[asked.owner[sent]], minlength=2)
    users = np.bincount(half[present], minlength=2)
    return pa.concat_tables([_whole(name, "half_sends", "half", sends), _whole(name, "half_users", "half", users)])


def divergence(name: str, asked: Opportunities, logged: Realised, done: Realised, window: Window) -> pa.Table:
    """How far the log's environment can be trusted for a policy: decisions after the user's first that came out another
    way (action or message), and how many of all decisions those are."""
    first = np.full(len(asked.users), np.iinfo(np.int64).max)
    differs = differing(asked, logged, done)
    np.minimum.at(first, asked.owner[differs], asked.batch.requests["decided_at"][differs])
    extra = asked.owner[done.rows], done.at
    inside = window.holds(done.at)
    beyond = inside & (extra[1] > first[extra[0]])
    changed = (first < np.iinfo(np.int64).max).sum()
    values = {"decisions_beyond_divergence": beyond.sum(), "users_diverged": changed}
    return add_counts([_whole(name, measure, "", np.array([value])) for measure, value in values.items()])


def differing(asked: Opportunities, logged: Realised, done: Realised) -> I64:
    """Logged requests that came out another way, or were not asked, or asked more than once or at another time."""
    same = np.zeros(len(asked), np.bool_)
    mine = done.at == asked.batch.requests["decided_at"][done.rows]
    same[done.rows[mine & (done.action == asked.logged["action"][done.rows])]] = True
    chosen, other = np.full(len(asked), -1, np.int64), np.full(len(asked), -1, np.int64)
    chosen[logged.rows[logged.send_decision][::-1]] = logged.send_candidate[::-1]
    other[done.rows[done.send_decision][::-1]] = done.send_candidate[::-1]
    return np.flatnonzero(~same | (chosen != other))


def _by(name: str, measure: str, dimension: str, keys: npt.NDArray[Any], day: I64) -> pa.Table:
    """Numbers of rows by key and day."""
    if not len(day):
        return COUNTS.empty_table()
    distinct, inverse = np.unique(keys, return_inverse=True)
    first, days = int(day.min()), int(day.max() - day.min()) + 1
    counts = np.bincount(inverse * days + (day - first), minlength=len(distinct) * days)
    found = np.flatnonzero(counts)
    return _table(name, measure, dimension, distinct[found // days], found % days + first, counts[found])


def _whole(name: str, measure: str, dimension: str, values: npt.NDArray[Any]) -> pa.Table:
    keys = np.flatnonzero(values)
    return _table(name, measure, dimension, keys, np.full(len(keys), -1), values[keys])


def _table(
    name: str, measure: str, dimension: str, keys: npt.NDArray[Any], day: npt.NDArray[Any],
    values: npt.NDArray[Any],
) -> pa.Table:  # fmt: skip
    texts = [pa.array([one] * len(keys), pa.string()) for one in (name, measure, dimension)]
    numbers = [pa.array(keys.astype(np.uint64)), pa.array(day.astype(np.int32)), pa.array(values.astype(np.int64))]
    return pa.table([*texts, *numbers], schema=COUNTS)


def add_counts(parts: list[pa.Table]) -> pa.Table:
    """Sum of tables of counts, sorted."""
    keys = [one.name for one in COUNTS if one.name != "value"]
    whole = pa.concat_tables([COUNTS.empty_table(), *parts])
    summed = whole.group_by(keys).aggregate([("value", "sum")]).rename_columns([*keys, "value"])
    return summed.select(COUNTS.names).sort_by([(one, "ascending") for one in keys]).cast(COUNTS)
