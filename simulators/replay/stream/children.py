"""Which logged request settled which deferral, and who is asked at a logged time, user by user."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from serve_app.kernels import kernel
from serve_app.vocabulary import Origin
from simulators.replay.stream.columns import Asked
from simulators.replay.stream.pointers import addresses, i1, i8, plain, u8

__all__ = ["children_and_roots"]

I64 = npt.NDArray[np.int64]
I8 = npt.NDArray[np.int8]
U64 = npt.NDArray[np.uint64]
Bool = npt.NDArray[np.bool_]

_DEFERRAL = int(Origin.deferral)
_FEW = 64


@kernel
def _first_with(ids: U64, begin: int, end: int, wanted: np.uint64, table: I64) -> int:
    """First of rows begin..end with this id; -1: none. table: open addressing over the rows (empty: look at each)."""
    if not len(table):
        for row in range(begin, end):
            if ids[row] == wanted:
                return row
        return -1
    slot = np.int64(wanted & np.uint64(len(table) - 1))
    while table[slot] >= 0:
        if ids[table[slot]] == wanted:
            return table[slot]
        slot = (slot + 1) & (len(table) - 1)
    return -1


@kernel
def _table_of(ids: U64, begin: int, end: int) -> I64:
    """Ids are hashes or random: their low bits will do."""
    size = 2
    while size < 2 * (end - begin):
        size *= 2
    table = np.full(size, -1, np.int64)
    for row in range(begin, end):
        slot = np.int64(ids[row] & np.uint64(size - 1))
        while table[slot] >= 0 and ids[table[slot]] != ids[row]:
            slot = (slot + 1) & (size - 1)
        if table[slot] < 0:
            table[slot] = row
    return table


@kernel
def _children(x: I64, since: int, child: I64, root: Bool) -> None:
    user, ids, at, origin, parents, n = u8(x[0]), u8(x[1]), i8(x[3]), i1(x[4]), u8(x[5]), x[6]
    begin = 0
    while begin < n:
        end, again = begin, 0
        while end < n and user[end] == user[begin]:
            child[end], root[end] = -1, origin[end] != _DEFERRAL and at[end] >= since
            again += 1 if origin[end] == _DEFERRAL else 0
            end += 1
        if again:
            table = _table_of(ids, begin, end) if end - begin > _FEW else np.empty(0, np.int64)
            for row in range(begin, end):
                parent = _first_with(ids, begin, end, parents[row], table) if origin[row] == _DEFERRAL else -1
                if parent >= 0:
                    child[parent] = row
            for row in range(begin, end):
                if child[row] >= 0 and at[row] < since and at[child[row]] >= since:
                    root[child[row]] = True
        begin = end


def children_and_roots(asked: Asked, parents: U64, since: int) -> tuple[I64, Bool]:
    """(i64[n] the row that decided each deferred request again, -1: none; bool[n] who is asked at a logged time from `since`
    on: all but re-decisions, and re-decisions of what was deferred before). parents u64[n]: parent_request_id."""
    n, of = asked.n, plain(parents)
    child, root = np.empty(n, np.int64), np.empty(n, np.bool_)
    _children(addresses((*asked[:4], asked.origin, of, n)), since, child, root)
    return child, root
