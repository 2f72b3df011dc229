"""What a target policy would have shown, counted beside what was shown: by position, category, thing and day.

Counts of lists and slots are weighted by 1 / log_rate, in millionths, so that they are whole numbers whose sum does not
depend on the order of partitions. One long table holds them, as in `simulators.replay.counts`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from simulators.replay.counts import COUNTS, DAY_US, add_counts
from simulators.replay.items.logged import Lists

__all__ = ["AT", "UNIT", "changes_of", "counted", "logged_counts"]

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
Array = npt.NDArray[Any]

UNIT = 1_000_000
"""One list, or one slot, in the counts."""
AT = (1, 3, 5, 10)
"""Depths k of overlap@k."""


def counted(measure: str, values: Mapping[int, int], dimension: str = "", policy: str = "logged") -> pa.Table:
    """Plain numbers, by key."""
    keys = [key for key, value in values.items() if value]
    return _table(policy, measure, dimension, np.array(keys, np.uint64), None, np.array([values[key] for key in keys]))


def logged_counts(lists: Lists) -> pa.Table:
    """Of the lists as they were shown."""
    shown = lists.shown()
    return add_counts([_lists("logged", lists), *_exposures("logged", lists, shown)])


def changes_of(name: str, lists: Lists, slot: I32) -> pa.Table:
    """Of the lists a target would have shown. slot i32[m]: its slots, -1: not in the list."""
    theirs, mine = _slots(lists, slot), _slots(lists, lists.candidates["slot"])
    weight, day = _weight(lists), lists.requests["decided_at"] // DAY_US
    other = mine != theirs
    width = mine.shape[1]
    position = np.tile(np.arange(width), len(lists))
    present, owner = ((mine >= 0) | (theirs >= 0)).reshape(-1), np.repeat(np.arange(len(lists)), width)
    changed = other.reshape(-1)
    shown = np.flatnonzero(slot >= 0)
    parts = [
        _lists(name, lists),
        _summed(name, "lists_changed", "", other.any(axis=1).astype(np.int64) * weight, np.zeros(len(lists), np.int64), day),
        _summed(name, "slots_compared", "position", weight[owner[present]], position[present], day[owner[present]]),
        _summed(name, "slots_changed", "position", weight[owner[changed]], position[changed], day[owner[changed]]),
        *_overlap(name, lists, slot, weight),
        *_exposures(name, lists, shown),
    ]
    return add_counts(parts)


def _weight(lists: Lists) -> I64:
    out: I64 = np.rint(UNIT / lists.requests["log_rate"]).astype(np.int64)
    return out


def _slots(lists: Lists, slot: I32) -> I64:
    """i64[n, slots]: the candidate in each slot; -1: empty."""
    both = max(int(slot.max(initial=-1)), int(lists.candidates["slot"].max(initial=-1))) + 1
    out = np.full((len(lists), both), -1, np.int64)
    shown = np.flatnonzero(slot >= 0)
    out[lists.owner[shown], slot[shown]] = shown
    return out


def _lists(name: str, lists: Lists) -> pa.Table:
    day = lists.requests["decided_at"] // DAY_US
    return _summed(name, "lists", "", _weight(lists), np.zeros(len(lists), np.int64), day)


def _exposures(name: str, lists: Lists, shown: I64) -> list[pa.Table]:
    """Slots by category and by thing; the number of different things is the number of keys."""
    weight = _weight(lists)[lists.owner[shown]]
    whole = np.full(len(shown), -1)
    category = lists.candidates["category"][shown]
    parts = [_summed(name, "exposures", "thing", weight, lists.candidates["thing"][shown], whole)]
    return parts + ([_summed(name, "exposures", "category", weight, category, whole)] if category.any() else [])


def _overlap(name: str, lists: Lists, slot: I32, weight: I64) -> list[pa.Table]:
    """Of the first k slots of both lists: how many things they share, and how many they could."""
    owner, mine = lists.owner, lists.candidates["slot"]
    parts = []
    for k in AT:
        shared = (slot >= 0) & (slot < k) & (mine >= 0) & (mine < k)
        could = np.maximum(*(np.bincount(owner[(one >= 0) & (one < k)], minlength=len(lists)) for one in (slot, mine)))
        parts.append(counted("overlap", {k: int(weight[owner[shared]].sum())}, "at", name))
        parts.append(counted("overlap_of", {k: int((weight * could).sum())}, "at", name))
    return parts


def _summed(name: str, measure: str, dimension: str, values: I64, keys: Array, day: I64) -> pa.Table:
    """Sums by key and day."""
    return add_counts([_table(name, measure, dimension, keys, day, values)])


def _table(name: str, measure: str, dimension: str, keys: Array, day: Array | None, values: Array) -> pa.Table:
    days = np.full(len(keys), -1) if day is None else day
    texts = [
        pa.array([one], pa.string()).take(pa.array(np.zeros(len(keys), np.int64))) for one in (name, measure, dimension)
    ]
    numbers = [keys.astype(np.uint64), days.astype(np.int32), values.astype(np.int64)]
    return pa.table([*texts, *(pa.array(one) for one in numbers)], schema=COUNTS)
