"""Segments of several policies as one document: each definition once, named by what it means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from serve_app.policy.base import Strict
from serve_app.policy.segment_tree import AllOf, AnyOf, Not, Segment, SegmentReference, segment_digests

__all__ = ["merged_segments"]


def merged_segments(documents: Sequence[Sequence[Segment]]) -> tuple[list[Segment], dict[str, list[str]]]:
    """(segments whose ids, and whose references, are digests; the ids that documents give each digest)."""
    merged: dict[str, Segment] = {}
    ids: dict[str, list[str]] = {}
    for segments in documents:
        digests = segment_digests(segments)
        for one in segments:
            digest = digests[one.id]
            merged.setdefault(digest, Segment.model_construct(id=digest, where=_renamed(one.where, digests)))
            own = ids.setdefault(digest, [])
            if one.id not in own:
                own.append(one.id)
    return list(merged.values()), ids


def _renamed(node: Any, digests: Mapping[str, str]) -> Any:
    """The tree with digests for ids."""
    if isinstance(node, SegmentReference):
        return node.model_copy(update={"id": digests[node.id]})
    if isinstance(node, AllOf | AnyOf):
        return node.model_copy(update={"of": tuple(_renamed(child, digests) for child in node.of)})
    if isinstance(node, Not):
        return node.model_copy(update={"of": _renamed(node.of, digests)})
    assert isinstance(node, Strict)
    return node
