"""Segments from a file: a policy, one segment, or a list of them that may refer to those of the policy in force."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve_app.errors import InvalidInput
from serve_app.policies import current_policy, read_current_policy
from serve_app.policy.document import parse_policy
from serve_app.policy.reader import Positions, read_document
from serve_app.policy.segment_tree import Segment

__all__ = ["SegmentFile", "read_segments"]

_NAME = "segments of a file"


@dataclass(frozen=True, slots=True)
class SegmentFile:
    """all: segments to evaluate, those referred to included; own: ids of the file's."""

    all: tuple[Segment, ...]
    own: tuple[str, ...]


def read_segments(path: Path, data: Path) -> SegmentFile:
    """Read and check a file. InvalidInput names line, field and fix."""
    body, positions = read_document(path)
    if not isinstance(body, dict):
        raise InvalidInput(f"{path.name} is not a mapping", field="document", hint="give `id` and `where`, or `segments`")
    if not ({"id", "where"} & set(body) or set(body) == {"segments"}):
        segments = parse_policy(body, positions=positions, name=path.name).segments
        if not segments:
            raise InvalidInput(f"{path.name} has no segments", field="segments", hint="add one with `id` and `where`")
        return SegmentFile(segments, tuple(one.id for one in segments))
    if "segments" not in body:
        return _one_segment(body, positions, path.name, data)
    if not isinstance(body["segments"], list) or not body["segments"]:
        raise InvalidInput(f"{path.name} has no segments", field="segments", hint="list them, each with `id` and `where`")
    return _with_others(body["segments"], positions, path.name, data)


def _one_segment(body: dict[str, Any], positions: Positions, name: str, data: Path) -> SegmentFile:
    below = Positions({("segments", 0, *where): line for where, line in positions.lines.items()})
    try:
        return _with_others([body], below, name, data)
    except InvalidInput as error:
        field = (error.field or "").removeprefix("segments.0").removeprefix(".")
        raise InvalidInput(error.message, field=field or "document", hint=error.hint) from None


def _with_others(own: list[Any], positions: Positions, name: str, data: Path) -> SegmentFile:
    """The file's segments, and those of the policy in force that it does not define itself."""
    ids = {one.get("id") for one in own if isinstance(one, dict)}
    others = [one for one in _in_force(data) if one["id"] not in ids]
    document = parse_policy({"name": _NAME, "segments": [*own, *others]}, positions=positions, name=name)
    return SegmentFile(document.segments, tuple(one.id for one in document.segments[: len(own)]))


def _in_force(data: Path) -> list[dict[str, Any]]:
    """Segments of the policy in force, as plain data; none where there is none."""
    if read_current_policy(data)[0] is None:
        return []
    return [one.model_dump(mode="json") for one in current_policy(data).segments]
