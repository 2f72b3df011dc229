"""Filters: what may not be shown, each dropped candidate with its reason (the first that applies)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch
from serve_app.kernels import kernel
from serve_app.stages.retrieval.availability import Overlay
from serve_app.vocabulary import DropReason

__all__ = ["Filters", "drop_reason", "drop_unavailable"]

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

_ANCHOR, _UNAVAILABLE, _EXCLUDED = int(DropReason.anchor), int(DropReason.unavailable), int(DropReason.excluded)
_SEEN, _BOUGHT, _CATEGORY = int(DropReason.seen), int(DropReason.bought), int(DropReason.category)


class Filters(NamedTuple):
    """By item row: categories i32, unavailable bool. By request: anchors i32, lists (values and offsets) of item rows that
    are excluded, seen, bought, and of wanted categories; whether seen and bought items are dropped; width i32."""

    categories: I32
    unavailable: Bool
    anchors: I32
    excluded: I32
    excluded_offsets: I64
    seen: I32
    seen_offsets: I64
    bought: I32
    bought_offsets: I64
    wanted: I32
    wanted_offsets: I64
    drop_seen: Bool
    drop_bought: Bool
    width: I32


@kernel
def _holds(values: I32, begin: int, end: int, wanted: int) -> bool:
    for i in range(begin, end):  # noqa: SIM110 - numba compiles the loop, not any() over a generator
        if values[i] == wanted:
            return True
    return False


@kernel
def drop_reason(f: Filters, r: int, item: int) -> int:
    """DropReason of an item row for request r; 0: kept."""
    if f.unavailable[item]:
        return _UNAVAILABLE
    if item == f.anchors[r]:
        return _ANCHOR
    if _holds(f.excluded, f.excluded_offsets[r], f.excluded_offsets[r + 1], item):
        return _EXCLUDED
    if f.drop_seen[r] and _holds(f.seen, f.seen_offsets[r], f.seen_offsets[r + 1], item):
        return _SEEN
    if f.drop_bought[r] and _holds(f.bought, f.bought_offsets[r], f.bought_offsets[r + 1], item):
        return _BOUGHT
    begin, end = f.wanted_offsets[r], f.wanted_offsets[r + 1]
    if end > begin and not _holds(f.wanted, begin, end, f.categories[item]):
        return _CATEGORY
    return 0


def drop_unavailable(batch: Batch, overlay: Overlay) -> npt.NDArray[np.bool_]:
    """bool[m]: candidates that the newest overlay knows to be unavailable; the answering process's last filter."""
    items = batch.candidates["item"]
    gone = np.zeros(len(items), np.bool_)
    known = items >= 0
    gone[known] = overlay.unavailable[items[known]]
    return gone
