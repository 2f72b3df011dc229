"""Zone and region names of the log as this process's indices, the way a batch carries them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from serve_app.errors import InvalidInput
from serve_app.policy.zones import UNKNOWN_ZONE, zone_index
from serve_app.regions import UNKNOWN_REGION, region_index

__all__ = ["region_indices", "zone_indices"]

I16 = npt.NDArray[np.int16]


def zone_indices(names: pa.Array | pa.ChunkedArray) -> I16:
    """i16[n]: indices of `serve_app.policy.zones`; -1 for none, and for a name this process's tzdata does not have."""
    return _indices(names, zone_index, UNKNOWN_ZONE)


def region_indices(names: pa.Array | pa.ChunkedArray) -> I16:
    """i16[n]: indices of `serve_app.regions`; -1: unknown."""
    return _indices(names, region_index, UNKNOWN_REGION)


def _indices(names: pa.Array | pa.ChunkedArray, index_of: Callable[[str], int], unknown: int) -> I16:
    if isinstance(names, pa.ChunkedArray):
        names = names.combine_chunks()
    if not pa.types.is_dictionary(names.type):
        names = names.dictionary_encode()

    def index(name: str | None) -> int:
        try:
            return index_of(name) if name else unknown
        except InvalidInput:
            return unknown

    known = np.array([index(name) for name in names.dictionary.to_pylist()] + [unknown], np.int16)
    return known[names.indices.fill_null(-1).to_numpy(zero_copy_only=False)]
