"""Segments over a population: every node of every tree as a bitmap, with its exact count.

Pure: columns in, bitmaps out. A node that stands in several trees is evaluated once.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from pyroaring import BitMap

from serve_app.errors import InvalidInput
from serve_app.ids import hash_id
from serve_app.noise import hash_key, salt_of, uniform
from serve_app.policy.base import Strict
from serve_app.policy.instants import instant_us
from serve_app.policy.segment_attributes import ATTRIBUTES, AttributeKind
from serve_app.policy.segment_tree import (
    AllOf,
    AnyOf,
    Attribute,
    Bucket,
    EventCount,
    LastEvent,
    Membership,
    Not,
    Scalar,
    Segment,
    SegmentReference,
    children,
    in_order,
    walk,
)
from serve_app.segments.bitmaps import bitmap_of
from serve_app.segments.events import DAY_US, NEVER, EventHistory
from serve_app.segments.population import Population
from serve_app.vocabulary import EventType

__all__ = ["CountedNode", "Evaluated", "check_answerable", "evaluate", "node_words"]

Bools = npt.NDArray[np.bool_]
_OPERATORS: Mapping[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class CountedNode:
    """A node in words, how many users match it, and the nodes below."""

    words: str
    count: int
    children: tuple[CountedNode, ...] = ()


@dataclass(frozen=True, slots=True)
class Evaluated:
    """members: bitmap by segment id, over the rows of the population. trees: the counts by segment id."""

    members: Mapping[str, BitMap]
    trees: Mapping[str, CountedNode]


def check_answerable(segments: Sequence[Segment], population: Population, history: EventHistory) -> None:
    """Raise InvalidInput, naming the field and the fix, where a segment asks for what these columns lack: state of a ledger
    that is not there, events of a category no item has."""
    for place, one in enumerate(segments):
        for field, node in walk(one.where, f"segments.{place}.where"):
            if isinstance(node, Attribute | Membership) and ATTRIBUTES[node.name] is AttributeKind.flag:
                _check_flag(node.name, f"{field}.name", population)
            if isinstance(node, EventCount) and node.category is not None and node.category not in history.categories:
                known = ", ".join(history.categories[:20]) or "none"
                more = f" and {len(history.categories) - 20} more" if len(history.categories) > 20 else ""
                raise InvalidInput(
                    f"no item has category {node.category!r}", field=f"{field}.category", hint=f"known: {known}{more}"
                )


def _check_flag(name: str, field: str, population: Population) -> None:
    if name not in population.flags:
        hint = "start the server once, or run `hindcast ledger seed`; or name the Redis that holds it with --redis"
        raise InvalidInput(f"{name} is the ledger's to say, and this data folder has none", field=field, hint=hint)


def evaluate(
    segments: Sequence[Segment],
    population: Population,
    history: EventHistory,
    as_of: int,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluated:
    """Evaluate `segments` (which refer to each other only) as of `as_of`, microseconds UTC. progress(nodes done, nodes)."""
    total = sum(1 for one in segments for _ in walk(one.where, ""))
    run = _Run(population, history, as_of, lambda done: progress(done, total) if progress else None)
    for one in in_order(segments):
        run.members[one.id], run.trees[one.id] = run.node(one.where)
    ids = [one.id for one in segments]
    return Evaluated({name: run.members[name] for name in ids}, {name: run.trees[name] for name in ids})


class _Run:
    def __init__(self, population: Population, history: EventHistory, as_of: int, progress: Callable[[int], None]) -> None:
        self._population, self._history, self._as_of, self._progress = population, history, as_of, progress
        self._leaves: dict[Strict, BitMap] = {}
        self._done = 0
        self.members: dict[str, BitMap] = {}
        self.trees: dict[str, CountedNode] = {}

    def node(self, node: Strict) -> tuple[BitMap, CountedNode]:
        below = [self.node(child) for child in children(node)]
        members = self._members(node, [bitmap for bitmap, _ in below])
        self._done += 1
        self._progress(self._done)
        return members, CountedNode(node_words(node), len(members), tuple(counted for _, counted in below))

    def _members(self, node: Strict, below: list[BitMap]) -> BitMap:
        if isinstance(node, AllOf):
            return BitMap.intersection(*below)
        if isinstance(node, AnyOf):
            return BitMap.union(*below)
        if isinstance(node, Not):
            return below[0].flip(0, len(self._population))
        if isinstance(node, SegmentReference):
            return self.members[node.id]
        known = self._leaves.get(node)
        if known is None:
            known = self._leaves[node] = bitmap_of(self._leaf(node))
        return known

    def _leaf(self, node: Strict) -> Bools:
        if isinstance(node, Attribute):
            return self._attribute(node.name, node.op, node.value)
        if isinstance(node, Membership):
            return self._membership(node)
        if isinstance(node, EventCount):
            after = self._as_of - node.within_days * DAY_US
            counts = self._history.count(EventType[node.event], after, self._as_of, node.category)
            return cast("Bools", _OPERATORS[node.op](counts, np.uint32(node.count)))
        if isinstance(node, LastEvent):
            last = self._history.last(EventType[node.event], self._as_of)
            met = last != NEVER
            met[met] = _OPERATORS[node.op](self._as_of - last[met], round(node.days_ago * DAY_US))
            return met
        if isinstance(node, Bucket):
            # The comparison of holdouts: exact to 0.01 % of the hash's range.
            draws = uniform(hash_key(salt_of(node.salt), self._population.users))
            return draws < round(node.percent * 100) / 10_000
        raise TypeError(f"{type(node).__name__} is not a condition")

    def _attribute(self, name: str, op: str, value: Scalar) -> Bools:
        people, compare, kind = self._population, _OPERATORS[op], ATTRIBUTES[name]
        if kind is AttributeKind.flag:
            return cast("Bools", compare(people.flags[name], value))
        if kind is AttributeKind.identity:
            return cast("Bools", compare(people.users, np.uint64(hash_id(str(value)))))
        if kind is AttributeKind.text:
            column = people.texts[name]
            wanted = np.array([compare(one, _spelled(name, value)) for one in column.names] + [False], np.bool_)
            return wanted[column.codes]  # code -1, unknown, is the last element: never a match
        known = people.created_at != 0
        if kind is AttributeKind.instant:
            return cast("Bools", known & compare(people.created_at, instant_us(str(value))))
        age = (self._as_of - people.created_at) / DAY_US
        return cast("Bools", known & compare(age, float(value)))

    def _membership(self, node: Membership) -> Bools:
        if ATTRIBUTES[node.name] is AttributeKind.identity:
            listed = np.array([hash_id(str(one)) for one in node.values], np.uint64)
            return np.isin(self._population.users, listed)
        if ATTRIBUTES[node.name] is AttributeKind.text:
            column, listed_names = self._population.texts[node.name], {_spelled(node.name, one) for one in node.values}
            wanted = np.array([one in listed_names for one in column.names] + [False], np.bool_)
            return wanted[column.codes]
        met = np.zeros(len(self._population), np.bool_)
        for value in node.values:
            met |= self._attribute(node.name, "==", value)
        return met


def _spelled(name: str, value: Scalar) -> str:
    return str(value).upper() if name == "region" else str(value)


def node_words(node: Strict) -> str:
    """A node as people read it."""
    if isinstance(node, AllOf | AnyOf | Not):
        return {"and": "all of", "or": "any of", "not": "not"}[node.kind]
    if isinstance(node, Attribute):
        return f"{node.name} {node.op} {_shown(node.value)}"
    if isinstance(node, Membership):
        listed = ", ".join(_shown(one) for one in node.values[:5])
        return f"{node.name} in {listed}" + (f" and {len(node.values) - 5} more" if len(node.values) > 5 else "")
    if isinstance(node, EventCount):
        of = f" of category {node.category}" if node.category else ""
        return f"{node.event}{of} {node.op} {node.count} times in {node.within_days} days"
    if isinstance(node, LastEvent):
        return f"last {node.event} {node.op} {node.days_ago:g} days ago"
    if isinstance(node, Bucket):
        return f"{node.percent:g} % by salt {node.salt}"
    if isinstance(node, SegmentReference):
        return f"segment {node.id}"
    raise TypeError(f"{type(node).__name__} is not a node of a segment")


def _shown(value: Scalar) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
