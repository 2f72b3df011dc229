"""Counts of what was done, as one long table that adds up: (policy, measure, dimension, key, day) -> value.

Counts are integers, so that sums do not depend on the order of partitions. Days and hours are the user's own where a key
says `local`, UTC elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from serve_app.policy.zones import local_second_of_day
from serve_app.vocabulary import Action, Reason
from simulators.replay.opportunities import Opportunities
from simulators.replay.realised import Realised
from simulators.replay.tallies import DAY_US, by_code_and_day, count_decisions, first_differences, rows_that_differ

__all__ = [
    "COUNTS",
    "DAY_US",
    "Window",
    "add_counts",
    "bots_left_out",
    "copies_left_out",
    "counted",
    "counts_of",
    "differing",
    "divergence",
    "left_out_of_trial",
    "sends_by_half",
    "sends_by_segment",
    "set_aside",
]

I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

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
    first, span = _days_of(done.at)
    counts, present = np.zeros((span, len(Action), len(Reason)), np.int64), np.zeros(len(asked.users), np.bool_)
    count_decisions(
        done.rows, done.at, done.action, done.reason, asked.owner, window.start, window.end, first, counts, present
    )
    parts = [_by(name, "decisions", "action", counts.sum(axis=2).T, first)]
    parts.append(_by(name, "decisions", "reason", counts.sum(axis=1).T, first))
    sent = np.flatnonzero(window.holds(done.at[done.send_decision]))
    decision, place = done.send_decision[sent], done.send_candidate[sent]
    rows, at = done.rows[decision], done.at[decision]
    day = at // DAY_US - first
    hour = local_second_of_day(at, asked.batch.requests["zone"][rows]) // 3600
    here = np.arange(len(at))
    parts.append(_by(name, "sends", "", np.bincount(day, minlength=span)[None, :], first))
    parts.append(_by(name, "sends", "hour_local", by_code_and_day(hour, here, day, 24, span), first))
    for one in ("channel", "message_class", "campaign", "category"):
        values, codes = asked.coded(one)
        counted = by_code_and_day(codes, place, day, len(values), span)
        parts.append(_by(name, "sends", one, counted, first, values))
    parts.append(_whole(name, "candidates", "reason", done.candidate_reasons))
    parts += _of_users(name, asked, done, present, rows)
    return add_counts(parts)


def _days_of(at: I64) -> tuple[int, int]:
    """(first day, number of days) that hold these times."""
    if not len(at):
        return 0, 1
    first = int(at.min()) // DAY_US
    return first, int(at.max()) // DAY_US - first + 1


def _of_users(name: str, asked: Opportunities, done: Realised, present: Bools, sent_rows: I64) -> list[pa.Table]:
    """Users asked, users reached, and the histogram of sends a user."""
    sends = np.bincount(asked.owner[sent_rows], minlength=len(asked.users))
    return [
        _whole(name, "users", "", np.array([present.sum()])),
        _whole(name, "users_reached", "", np.array([(sends > 0).sum()])),
        _whole(name, "users", "sends_in_window", np.bincount(sends[present])),
        _whole(name, "carried", "", np.array([done.carried])),
    ]


def bots_left_out(users: int, requests: int) -> pa.Table:
    """How many users known as bots, and how many of their decisions, no other measure holds."""
    return counted("logged", {"bots": users, "decisions_of_bots": requests})


def counted(name: str, measures: Mapping[str, int]) -> pa.Table:
    """Single numbers of a policy, or "logged", over the whole window."""
    return pa.concat_tables([_whole(name, measure, "", np.array([value])) for measure, value in measures.items()])


def sends_by_segment(
    name: str, asked: Opportunities, done: Realised, window: Window, segments: Sequence[tuple[int, int, int]]
) -> pa.Table:
    """Sends to members of each segment; who is in several counts in each. segments: (place of the policy that logged, its
    number of the segment, hash of the segment's id)."""
    if not segments:
        return COUNTS.empty_table()
    inside = done.send_decision[window.holds(done.at[done.send_decision])]
    rows = done.rows[inside]
    policy, bits = asked.logged["policy"][rows], asked.batch.requests["segments"][rows]
    sums: dict[int, int] = {}
    for place, number, key in segments:
        member = (policy == place) & ((bits >> np.uint64(number)) & np.uint64(1) == 1)
        sums[key] = sums.get(key, 0) + int(member.sum())
    keys = np.array([key for key in sorted(sums) if sums[key]], np.uint64)
    values = np.array([sums[int(key)] for key in keys], np.int64)
    return _table(name, "sends", "segment", keys, np.full(len(keys), -1), values)


def copies_left_out(events: int) -> pa.Table:
    """How many rows of events were copies of others."""
    return _whole("logged", "copies_of_events", "", np.array([events]))


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


def divergence(name: str, asked: Opportunities, done: Realised, differs: I64, window: Window) -> pa.Table:
    """How far the log's environment can be trusted for a policy: decisions after the user's first that came out another
    way (action or message), and how many of those an event of the user's caused. differs: see `differing`."""
    first = np.full(len(asked.users), np.iinfo(np.int64).max)
    beyond = first_differences(
        differs, asked.owner, asked.batch.requests["decided_at"], done.rows, done.at, window.start, window.end, first
    )
    changed = (first < np.iinfo(np.int64).max).sum()
    values = {"decisions_beyond_divergence": beyond, "users_diverged": changed}
    triggered = asked.batch.requests["trigger_event_id"] != 0
    if triggered.any():
        mine = np.flatnonzero(triggered[done.rows] & window.holds(done.at))
        values["triggered_beyond_divergence"] = (done.at[mine] > first[asked.owner[done.rows[mine]]]).sum()
    return counted(name, values)


def differing(asked: Opportunities, logged: Realised, done: Realised) -> I64:
    """Logged requests that came out another way, or were not asked, or asked more than once or at another time; rising."""
    differs = np.empty(len(asked), np.bool_)
    rows_that_differ(
        asked.batch.requests["decided_at"], asked.logged["action"], done.rows, done.at, done.action, logged.rows,
        logged.send_decision, logged.send_candidate, done.send_decision, done.send_candidate, differs,
    )  # fmt: skip
    return np.flatnonzero(differs)


def _by(
    name: str, measure: str, dimension: str, counts: I64, first_day: int, values: npt.NDArray[Any] | None = None
) -> pa.Table:
    """Numbers of rows by key and day. counts i64[codes, days]; values: the key of each code, where it is not the code."""
    code, day = np.nonzero(counts)
    keys = code if values is None else values[code]
    return _table(name, measure, dimension, keys, day + first_day, counts[code, day])


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
