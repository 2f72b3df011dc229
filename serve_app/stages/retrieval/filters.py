"""Filters: what may not be shown, each dropped candidate with its reason (the first that applies)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch
from serve_app.kernels import kernel
from serve_app.stages.retrieval.availability import Overlay
from serve_app.vocabulary import DropReason

__all__ = ["drop_reasons", "drop_unavailable"]

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

_ANCHOR, _UNAVAILABLE, _EXCLUDED = int(DropReason.anchor), int(DropReason.unavailable), int(DropReason.excluded)
_SEEN, _BOUGHT, _CATEGORY = int(DropReason.seen), int(DropReason.bought), int(DropReason.category)


@kernel
def _holds(values: I32, wanted: int) -> bool:
    for value in values:  # noqa: SIM110 - numba compiles the loop, not any() over a generator
        if value == wanted:
            return True
    return False


@kernel
def drop_reasons(
    items: I32, offsets: I64, categories: I32, unavailable: npt.NDArray[np.bool_], anchors: I32,
    excluded: I32, excluded_offsets: I64, seen: I32, seen_offsets: I64, bought: I32, bought_offsets: I64,
    wanted: I32, wanted_offsets: I64, drop_seen: npt.NDArray[np.bool_], drop_bought: npt.NDArray[np.bool_],
    out: npt.NDArray[np.int8],
) -> None:  # fmt: skip
    """out i8[m] (DropReason) for candidate item rows; `categories` i32 by item row; the ragged lists are per request."""
    for r in range(len(offsets) - 1):
        no = excluded[excluded_offsets[r] : excluded_offsets[r + 1]]
        old = seen[seen_offsets[r] : seen_offsets[r + 1]]
        owned = bought[bought_offsets[r] : bought_offsets[r + 1]]
        only = wanted[wanted_offsets[r] : wanted_offsets[r + 1]]
        for c in range(offsets[r], offsets[r + 1]):
            item = items[c]
            reason = 0
            if unavailable[item]:
                reason = _UNAVAILABLE
            elif item == anchors[r]:
                reason = _ANCHOR
            elif _holds(no, item):
                reason = _EXCLUDED
            elif drop_seen[r] and _holds(old, item):
                reason = _SEEN
            elif drop_bought[r] and _holds(owned, item):
                reason = _BOUGHT
            elif len(only) and not _holds(only, categories[item]):
                reason = _CATEGORY
            out[c] = reason


def drop_unavailable(batch: Batch, overlay: Overlay) -> npt.NDArray[np.bool_]:
    """bool[m]: candidates that the newest overlay knows to be unavailable; the answering process's last filter."""
    items = batch.candidates["item"]
    gone = np.zeros(len(items), np.bool_)
    known = items >= 0
    gone[known] = overlay.unavailable[items[known]]
    return gone
