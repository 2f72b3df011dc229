"""Segments as a typed tree: and / or / not over conditions on attributes, events, membership and hash buckets.

A segment is evaluated as of one instant `as_of`. Windows are half-open on the old side, as those of caps are: an event at
time t lies in the last d days when `as_of - d * 24 h < t <= as_of`. Days are 24 hours, not calendar days; events later than
`as_of` do not count.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from serve_app.policy.base import Identifier, Percent, Salt, Strict

__all__ = [
    "AllOf",
    "AnyOf",
    "Attribute",
    "Bucket",
    "EventCount",
    "LastEvent",
    "Membership",
    "Not",
    "Segment",
    "SegmentNode",
    "SegmentReference",
    "children",
    "in_order",
    "references",
    "segment_digests",
    "walk",
]

Name = Annotated[str, Field(min_length=1, max_length=128)]
Scalar = bool | int | float | str
Comparison = Literal["==", "!=", "<", "<=", ">", ">="]
EventName = Literal[
    "view",
    "click",
    "add_to_cart",
    "conversion",
    "review",
    "dismiss",
    "seen",
    "delivered",
    "delivery_failed",
    "opt_out",
    "opt_in",
]


class Attribute(Strict):
    """A user attribute compared with a value; an unknown attribute value never matches (not even `!=`)."""

    kind: Literal["attribute"]
    name: Name
    op: Comparison
    value: Scalar


class Membership(Strict):
    """A user attribute is one of the values."""

    kind: Literal["membership"]
    name: Name
    values: tuple[Scalar, ...] = Field(min_length=1, max_length=10_000)


class EventCount(Strict):
    """How many events of a type fell into the last `within_days`. With `category`, events on items of that category only."""

    kind: Literal["event_count"]
    event: EventName
    within_days: Annotated[int, Field(ge=1, le=3660)]
    op: Comparison
    count: Annotated[int, Field(ge=0, le=1_000_000)]
    category: Name | None = None


class LastEvent(Strict):
    """How long before `as_of` the last event of a type was, to the microsecond. A user without such an event does not match
    (`not` finds them). `< d` is the same as `event_count` within d days `>= 1`."""

    kind: Literal["last_event"]
    event: EventName
    op: Literal["<", "<=", ">", ">="]
    days_ago: Annotated[float, Field(ge=0, le=3660)]


class Bucket(Strict):
    """A random share of users by salted hash, as holdouts and experiments draw theirs: stable, exact in expectation. Two
    buckets of one salt are nested: the smaller lies within the larger."""

    kind: Literal["bucket"]
    salt: Salt
    percent: Percent


class SegmentReference(Strict):
    """Another segment of the same document."""

    kind: Literal["segment"]
    id: Identifier


class AllOf(Strict):
    """Every child matches."""

    kind: Literal["and"]
    of: tuple[SegmentNode, ...] = Field(min_length=1, max_length=64)


class AnyOf(Strict):
    """At least one child matches."""

    kind: Literal["or"]
    of: tuple[SegmentNode, ...] = Field(min_length=1, max_length=64)


class Not(Strict):
    """The child does not match."""

    kind: Literal["not"]
    of: SegmentNode


SegmentNode = Annotated[
    AllOf | AnyOf | Not | Attribute | Membership | EventCount | LastEvent | Bucket | SegmentReference,
    Field(discriminator="kind"),
]


class Segment(Strict):
    """A named audience."""

    id: Identifier
    where: SegmentNode

    @model_validator(mode="after")
    def _depth(self) -> Self:
        if _depth(self.where) > 32:
            raise ValueError("the tree is deeper than 32; name parts of it as segments of their own")
        return self


def children(node: Strict) -> tuple[Strict, ...]:
    """The nodes directly below."""
    if isinstance(node, AllOf | AnyOf):
        return node.of
    return (node.of,) if isinstance(node, Not) else ()


def _depth(node: Strict) -> int:
    return 1 + max((_depth(child) for child in children(node)), default=0)


def walk(node: Strict, field: str) -> Iterator[tuple[str, Strict]]:
    """Every node of a tree, parents first, each with its dotted path; `field` is the path of `node`."""
    yield field, node
    for place, child in enumerate(children(node)):
        below = f"{field}.of" if isinstance(node, Not) else f"{field}.of.{place}"
        yield from walk(child, below)


def references(node: Strict) -> set[str]:
    """Ids of the segments a tree refers to directly."""
    return {one.id for _, one in walk(node, "") if isinstance(one, SegmentReference)}


def in_order(segments: Sequence[Segment]) -> list[Segment]:
    """The segments, each after those it refers to. They refer to each other only, and not in a circle."""
    by_id = {one.id: one for one in segments}
    done: dict[str, Segment] = {}
    todo = [one.id for one in reversed(segments)]
    while todo:
        name = todo[-1]
        below = [other for other in sorted(references(by_id[name].where)) if other not in done]
        if below and name not in done:
            todo += below
            continue
        done.setdefault(name, by_id[name])
        todo.pop()
    return list(done.values())


_MEANING = 1
"""Raise it when a condition comes to mean something else: memberships computed before are then not used any more."""


def segment_digests(segments: Sequence[Segment]) -> dict[str, str]:
    """id -> 20 hex digits that stand for what the segment asks, referred segments included, whatever their names. A
    membership computed for another digest is another audience."""
    found: dict[str, str] = {}
    for one in in_order(segments):
        text = json.dumps([_MEANING, _meaning(one.where, found)], sort_keys=True, ensure_ascii=False, allow_nan=False)
        found[one.id] = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:20]
    return {one.id: found[one.id] for one in segments}


def _meaning(node: Strict, found: dict[str, str]) -> object:
    if isinstance(node, SegmentReference):
        return ["segment", found[node.id]]
    below = children(node)
    if below:
        return [getattr(node, "kind", ""), *(_meaning(child, found) for child in below)]
    return node.model_dump(mode="json")


for _model in (AllOf, AnyOf, Not, Segment):
    _model.model_rebuild()
