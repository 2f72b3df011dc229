"""What identifies the decision that settles a deferral: its *child*. It follows from the deferral alone, so that whoever
decides it, again after a crash or in a replay, gives it the same request id."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from serve_app.kernels import inlined, kernel
from serve_app.noise import absorb, salt_of

__all__ = ["child_id", "child_of", "children_of"]

U64 = npt.NDArray[np.uint64]

_CHILD = salt_of("child of a deferral")


@inlined
def child_id(user: np.uint64, request_id: np.uint64) -> np.uint64:
    """Scalar, inside kernels: see `child_of`; never 0."""
    return max(absorb(absorb(_CHILD, user), request_id), np.uint64(1))


@kernel
def _children(users: U64, request_ids: U64, out: U64) -> None:
    for i in range(len(users)):
        out[i] = child_id(users[i], request_ids[i])


def child_of(user: int, request_id: int) -> int:
    """The request id of the decision that settles the deferral `request_id` of `user`."""
    return int(children_of(np.array([user], np.uint64), np.array([request_id], np.uint64))[0])


def children_of(users: U64, request_ids: U64) -> U64:
    """u64[n]: the same for many; never 0."""
    out = np.empty(len(users), np.uint64)
    _children(np.ascontiguousarray(users, np.uint64), np.ascontiguousarray(request_ids, np.uint64), out)
    return out
