"""Who counts: users in a segment when their list was made, by the logged membership bits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from serve_app.errors import InvalidInput
from serve_app.policy.compile import CompiledPolicy
from simulators.replay.items.logged import Lists

__all__ = ["members"]


def members(lists: Lists, policies: Sequence[CompiledPolicy], segments: Sequence[str]) -> npt.NDArray[np.bool_]:
    """bool[n]: in one of `segments` (none: everybody). policies: those that made the lists, whose numbering the bits follow.
    InvalidInput where such a policy does not define a segment, or memberships were not logged."""
    if not segments:
        return np.ones(len(lists), np.bool_)
    out = np.zeros(len(lists), np.bool_)
    bits = lists.requests["segments"]
    for index, policy in enumerate(policies):
        rows = lists.policy == index
        for name in segments:
            out[rows] |= (bits[rows] >> np.uint64(policy.segment_index(name))) & np.uint64(1) == 1
    if len(lists) and not (lists.requests["segments_at"] != 0).any():
        raise InvalidInput(
            f"who belongs to {', '.join(segments)} was not logged with the lists of {lists.surface.name}",
            field="segment",
            hint="run `hindcast segment refresh` before serving, or replay without --segment",
        )
    return out
