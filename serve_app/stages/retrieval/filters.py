"""Filters: what may not be shown, each dropped candidate with its reason (the first that applies)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch
from serve_app.kernels import kernel
from serve_app.stages.retrieval.availability import Overlay
from serve_app.vocabulary import DropReason

__all__ = ["Filters", "drop_reasons", "drop_unavailable"]

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

_ANCHOR, _UNAVAILABLE, _EXCLUDED = int(DropReason.anchor), int(DropReason.unavailable), int(DropReason.excluded)
_SEEN, _BOUGHT, _CATEGORY = int(DropReason.seen), int(DropReason.bought), int(DropReason.category)
_OVER_WIDTH = int(DropReason.over_width)


class Filters(NamedTuple):
    """By item row: categories i32, unavailable bool. By request: anchors i32, lists (values and offsets) of item rows that
    are excluded, seen, bought, and of wanted categories; drops i32[n, 2]: whether seen and bought items go; width i32."""

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
    drops: I32
    width: I32


@kernel
def _holds(values: I32, wanted: int) -> bool:
    for value in values:  # noqa: SIM110 - numba compiles the loop, not any() over a generator
        if value == wanted:
            return True
    return False


@kernel
def drop_reasons(f: Filters, r: int, items: I32, out: npt.NDArray[np.int8]) -> None:
    """DropReason of each candidate item row of request r; 0: kept. What is beyond the width, counting in the order given, is
    over it."""
    excluded = f.excluded[f.excluded_offsets[r] : f.excluded_offsets[r + 1]]
    seen = f.seen[f.seen_offsets[r] : f.seen_offsets[r + 1]]
    bought = f.bought[f.bought_offsets[r] : f.bought_offsets[r + 1]]
    wanted = f.wanted[f.wanted_offsets[r] : f.wanted_offsets[r + 1]]
    drop_seen, drop_bought, anchor = f.drops[r, 0] != 0, f.drops[r, 1] != 0, f.anchors[r]
    kept = 0
    for k in range(len(items)):
        item = items[k]
        reason = 0
        if f.unavailable[item]:
            reason = _UNAVAILABLE
        elif item == anchor:
            reason = _ANCHOR
        elif _holds(excluded, item):
            reason = _EXCLUDED
        elif drop_seen and _holds(seen, item):
            reason = _SEEN
        elif drop_bought and _holds(bought, item):
            reason = _BOUGHT
        elif len(wanted) and not _holds(wanted, f.categories[item]):
            reason = _CATEGORY
        else:
            kept += 1
            reason = _OVER_WIDTH if kept > f.width[r] else 0
        out[k] = reason


def drop_unavailable(batch: Batch, overlay: Overlay) -> npt.NDArray[np.bool_]:
    """bool[m]: candidates that the newest overlay knows to be unavailable; the answering process's last filter."""
    items = batch.candidates["item"]
    gone = np.zeros(len(items), np.bool_)
    known = items >= 0
    gone[known] = overlay.unavailable[items[known]]
    return gone
