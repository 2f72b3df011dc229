"""Parity of lists: the policies that logged, through the selector that served, against the logged slots, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from simulators.replay.items.logged import Lists
from simulators.replay.items.making import Made
from simulators.replay.parity import Mismatch, Parity

__all__ = ["parity_of"]

_EXAMPLES = 20


def parity_of(lists: Lists, behaviour: Made) -> Parity:
    """Values, slots and conditional propensities of every logged list. behaviour: `making.as_logged`."""
    drawn = behaviour.select()
    owner, same = lists.owner, np.ones(len(lists), np.bool_)
    columns: dict[str, int] = {}
    examples: list[Mismatch] = []
    replayed: dict[str, npt.NDArray[Any]] = {
        "value": behaviour.given.value,
        "slot": drawn.slot,
        "p_slot": drawn.p_slot,
    }
    for name, values in replayed.items():
        logged = lists.candidates[name]
        other = np.flatnonzero(~_equal(logged, values))
        if not len(other):
            continue
        rows, first = np.unique(owner[other], return_index=True)
        columns[name] = len(rows)
        for row, place in zip(rows.tolist(), other[first].tolist(), strict=True):
            if same[row] and len(examples) < _EXAMPLES:
                user, request = int(lists.logged_user[row]), int(lists.requests["request_id"][row])
                examples.append(Mismatch(user, request, name, str(logged[place]), str(values[place])))
        same[rows] = False
    return Parity(len(lists), int(same.sum()), dict(sorted(columns.items())), examples)


def _equal(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    if a.dtype.kind != "f":
        return np.asarray(a == b)
    return np.asarray((a.view(np.int64) == b.view(np.int64)) | (np.isnan(a) & np.isnan(b)))
