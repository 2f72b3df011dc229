"""What estimators of lists share: slots of a list are adjacent rows in slot order; weights of prefixes.

Rows carry the extra column ``list`` (u64[n]: the request). `propensity` and `target` are those of the slot given the slots
before it, as the selector logs them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from serve_app.errors import InvalidInput
from serve_app.kernels import kernel
from simulators.estimators.rows import Rows

__all__ = ["first_slots", "prefix_weights"]

F64 = npt.NDArray[np.float64]
U64 = npt.NDArray[np.uint64]


@kernel
def _prefix(user: U64, lists: U64, ratio: F64, out: F64, before: F64, first: F64) -> None:
    for row in range(len(user)):
        same = row > 0 and user[row] == user[row - 1] and lists[row] == lists[row - 1]
        first[row] = 0.0 if same else 1.0
        for p in range(ratio.shape[1]):
            before[row, p] = out[row - 1, p] if same else 1.0
            out[row, p] = before[row, p] * ratio[row, p]


def first_slots(rows: Rows) -> tuple[U64, F64]:
    """(list of each row, f64[n] 1 at its first slot). InvalidInput where a list's rows are not adjacent."""
    lists = np.ascontiguousarray(rows.need("list"), np.uint64)
    if not len(rows):
        return lists, np.empty(0)
    change = np.concatenate([[True], (lists[1:] != lists[:-1]) | (rows.user[1:] != rows.user[:-1])])
    heads = np.stack([rows.user[change], lists[change]], axis=1)
    if len(np.unique(heads, axis=0)) != len(heads):
        raise InvalidInput("slots of one list are not adjacent", field="list", hint="sort by (user, list, slot)")
    return lists, change.astype(np.float64)


def prefix_weights(rows: Rows) -> tuple[F64, F64, F64]:
    """(weight of the slots up to and with each row, f64[n, 1 + P]; up to before it; 1 at first slots f64[n])."""
    lists, _ = first_slots(rows)
    ratio = np.empty((len(rows), 1 + rows.target.shape[1]))
    ratio[:, 0] = 1.0
    np.divide(rows.target, rows.propensity[:, None], out=ratio[:, 1:])
    weight, before, first = np.empty_like(ratio), np.empty_like(ratio), np.empty(len(rows))
    _prefix(rows.user, lists, ratio, weight, before, first)
    scale = rows.scale[:, None]
    return weight * scale, before * scale, first
