"""Segments as a typed tree: and / or / not over conditions on attributes, events, membership and hash buckets."""

from __future__ import annotations

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
    "references",
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
    """How many events of a type fell into the last `within_days`."""

    kind: Literal["event_count"]
    event: EventName
    within_days: Annotated[int, Field(ge=1, le=3660)]
    op: Comparison
    count: Annotated[int, Field(ge=0, le=1_000_000)]
    category: Name | None = None


class LastEvent(Strict):
    """How many days ago the last event of a type was. A user without such an event does not match (`not` finds them)."""

    kind: Literal["last_event"]
    event: EventName
    op: Literal["<", "<=", ">", ">="]
    days_ago: Annotated[float, Field(ge=0, le=3660)]


class Bucket(Strict):
    """A random share of users by salted hash."""

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


def _children(node: Strict) -> tuple[Strict, ...]:
    if isinstance(node, AllOf | AnyOf):
        return node.of
    return (node.of,) if isinstance(node, Not) else ()


def _depth(node: Strict) -> int:
    return 1 + max((_depth(child) for child in _children(node)), default=0)


def references(node: Strict) -> set[str]:
    """Ids of the segments a tree refers to directly."""
    if isinstance(node, SegmentReference):
        return {node.id}
    return set().union(*(references(child) for child in _children(node)))


for _model in (AllOf, AnyOf, Not, Segment):
    _model.model_rebuild()
