"""Logged memberships as another policy numbers its segments."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch
from serve_app.errors import InvalidInput
from serve_app.ids import hash_id
from serve_app.policy.compile import CompiledPolicy

__all__ = ["members_of", "segments_logged", "segments_under"]

U64 = npt.NDArray[np.uint64]
I16 = npt.NDArray[np.int16]


def segments_logged(behaviour: Sequence[CompiledPolicy]) -> list[tuple[int, int, int]]:
    """(place of the policy, its number of the segment, hash of the segment's id) of every segment that was logged."""
    return [
        (place, number, hash_id(one.id))
        for place, policy in enumerate(behaviour)
        for number, one in enumerate(policy.document.segments)
    ]


def members_of(
    pinned: I16, bits: U64, computed_at: npt.NDArray[np.int64], behaviour: Sequence[CompiledPolicy], names: Sequence[str]
) -> npt.NDArray[np.bool_] | None:
    """bool[n]: requests of users in one of the segments `names`, by the logged memberships; None: no segment was named.
    pinned i16[n]: the policy each was made under; bits, computed_at: `segments` and `segments_at` of the log. InvalidInput
    where such a policy does not define a segment (naming those it does), or no membership was logged."""
    if not names:
        return None
    out = np.zeros(len(bits), np.bool_)
    for place, policy in enumerate(behaviour):
        mine = pinned == place
        for name in names:
            out[mine] |= (bits[mine] >> np.uint64(policy.segment_index(name))) & np.uint64(1) == 1
    if len(bits) and not (computed_at != 0).any():
        raise InvalidInput(
            f"who belongs to {', '.join(names)} was not logged",
            field="segment",
            hint="run `hindcast segment refresh` before serving, or replay without --segment",
        )
    return out


def segments_under(policy: CompiledPolicy, behaviour: Sequence[CompiledPolicy], batch: Batch) -> tuple[U64, I16]:
    """(bits u64[n], segment i16[m]): memberships and the candidates' segments as `policy` numbers them. A campaign keeps the
    segment it was logged with. Raises InvalidInput where `policy` defines such a segment in another way than the policy that
    logged it, or not at all: who belongs to it was not logged."""
    logged, own, pinned = batch.requests["segments"], batch.candidates["segment"], batch.requests["policy"]
    bits, segment = np.zeros(len(batch), np.uint64), np.full(len(own), -1, np.int16)
    of_candidate = pinned[batch.owner]
    for index, old in enumerate(behaviour):
        rows, mine = pinned == index, of_candidate == index
        for place, one in enumerate(old.document.segments):
            limited = mine & (own == place)
            new = next((k for k, other in enumerate(policy.document.segments) if other == one), None)
            if new is None and limited.any():
                raise InvalidInput(
                    f"campaigns are limited to segment {one.id!r}, which the policy does not define as logged",
                    field="segments",
                    hint="who belongs to it was not logged; keep its definition, or replay other changes first",
                )
            if new is not None:
                member = (logged[rows] >> np.uint64(place)) & np.uint64(1)
                bits[rows] |= member << np.uint64(new)
                segment[limited] = new
    return bits, segment
