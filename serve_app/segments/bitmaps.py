"""Members as boolean columns, as roaring bitmaps (Chambi, Lemire, Kaser, Godin 2016), and as planes of bits.

Bit r stands for row r of the population, whose users are sorted by hash.
"""

from __future__ import annotations

import array

import numpy as np
import numpy.typing as npt
from pyroaring import BitMap

__all__ = ["bitmap_of", "bits_at", "plane_of"]

Bools = npt.NDArray[np.bool_]
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


def bits_at(plane: U64, rows: npt.NDArray[np.int64]) -> U64:
    """u64[n], 0 or 1: whether each of `rows` (i64[n], inside the plane) is a member."""
    bits: U64 = (plane[rows >> 6] >> (rows & 63).astype(np.uint64)) & np.uint64(1)
    return bits
