"""Which use a failed delivery gives back. One rule, for every ledger and for the replay's histories."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from serve_app.kernels import kernel
from serve_app.ledger.columns import HistoryFlag

__all__ = ["flag_refunded", "is_refunded", "refund_entries"]

U64 = npt.NDArray[np.uint64]
I16 = npt.NDArray[np.int16]
U8 = npt.NDArray[np.uint8]

_REFUNDED = np.uint8(HistoryFlag.refunded)


@kernel
def is_refunded(flags: int) -> bool:
    """Scalar, inside kernels."""
    return flags & _REFUNDED != 0


@kernel
def flag_refunded(
    begin: int, end: int, request_id: np.uint64, slot: int, requests: U64, slots: I16, holdouts: U64, flags: U8
) -> int:
    """Flag, in place, the factual uses of (request_id, slot) among entries begin..end; returns how many were not before."""
    fresh = 0
    for e in range(begin, end):
        if requests[e] == request_id and slots[e] == slot and holdouts[e] == 0 and not is_refunded(flags[e]):
            flags[e] |= _REFUNDED
            fresh += 1
    return fresh


def refund_entries(entries: npt.NDArray[np.void], request_id: int, slot: int) -> bool:
    """Flag one user's entries (HISTORY_DTYPE) in place; True when one was not flagged before."""
    columns = entries["request_id"], entries["slot"], entries["holdout"], entries["flags"]
    return flag_refunded(0, len(entries), np.uint64(request_id), slot, *columns) > 0
