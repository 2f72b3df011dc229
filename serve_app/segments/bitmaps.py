"""Members as boolean columns, as roaring bitmaps (Chambi, Lemire, Kaser, Godin 2016), and as planes of bits.

Bit r stands for row r of the population, whose users are sorted by hash.
"""

from __future__ import annotations

import array

import numpy as np
import numpy.typing as npt
from pyroaring import BitMap

from serve_app.kernels import kernel

__all__ = ["bitmap_of", "bits_of", "plane_of"]

Bools = npt.NDArray[np.bool_]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]


def bitmap_of(members: Bools) -> BitMap:
    """The rows where `members` (bool[n]) is true. Runs are packed, so equal members are equal bytes."""
    rows = array.array("I")  # pyroaring takes this type's memory as it is; a numpy array goes through Python integers
    rows.frombytes(np.flatnonzero(members).astype(np.uint32).tobytes())
    found = BitMap(rows)
    found.run_optimize()
    return found


def plane_of(bitmap: BitMap, rows: int) -> U64:
    """u64[ceil(rows / 64)]: bit r % 64 of word r // 64 says whether row r is a member."""
    members = np.zeros((rows + 63) // 64 * 64, np.bool_)
    members[np.frombuffer(bitmap.to_array(), np.uint32)] = True
    return np.packbits(members, bitorder="little").view(np.uint64)


@kernel
def _bits(users: U64, planes: U64, chosen: I64, asked: U64, bits: U64) -> None:
    for i in range(len(asked)):
        low, high = 0, len(users)
        while low < high:
            middle = (low + high) // 2
            if users[middle] < asked[i]:
                low = middle + 1
            else:
                high = middle
        bits[i] = 0
        if low < len(users) and users[low] == asked[i]:
            for place in range(len(chosen)):
                word = planes[low >> 6, chosen[place]]
                bits[i] |= (word >> np.uint64(low & 63) & np.uint64(1)) << np.uint64(place)


def bits_of(users: U64, planes: U64, chosen: I64, asked: U64) -> U64:
    """u64[n]: bit i says whether the asked user (u64[n]) is a member of plane chosen[i] (of planes u64[words, S]: what one
    user needs lies together); 0 for one that `users` (sorted) lacks."""
    bits = np.empty(len(asked), np.uint64)
    _bits(users, planes, chosen, asked, bits)
    return bits
