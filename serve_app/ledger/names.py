"""Zone and region names against the small integers that stand for them: in a store, and in this process.

A store numbers names in the order it meets them (0 is "", unknown) and keeps the names; a process numbers them by its own
tables. `NameTable` translates whole columns, so a name that this process does not know reads as -1 and is kept as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import numpy.typing as npt

from serve_app.errors import InvalidInput
from serve_app.policy.zones import zone_index, zone_name
from serve_app.regions import region_index, region_name

__all__ = ["NameTable", "region_names", "zone_names"]

I16 = npt.NDArray[np.int16]
_LIMIT = np.iinfo(np.int16).max


class NameTable:
    """Names of one kind. `to_process(name)` gives this process's index, or -1; `to_name(index)` the reverse."""

    def __init__(self, kind: str, to_process: Callable[[str], int], to_name: Callable[[int], str]) -> None:
        self.kind = kind
        self.names: list[str] = [""]
        self._stored = {"": 0}
        self._to_process = to_process
        self._to_name = to_name
        self._lut = np.full(1, -1, np.int16)

    def load(self, names: Iterable[str]) -> None:
        """Names 1, 2, ... as a store kept them."""
        for name in names:
            self.stored(name)

    def stored(self, name: str) -> int:
        """The store's number of a name, given to it now if it is new."""
        known = self._stored.get(name)
        if known is not None:
            return known
        number = len(self.names)
        if number > _LIMIT:
            raise InvalidInput(f"more than {_LIMIT} different names", field=self.kind)
        self.names.append(name)
        self._stored[name] = number
        self._lut = np.append(self._lut, np.int16(self._to_process(name)))
        return number

    def name(self, number: int) -> str:
        """The name of a store's number."""
        return self.names[number]

    def process_of(self, numbers: npt.NDArray[np.integer]) -> I16:
        """Store's numbers -> this process's indices (-1: unknown)."""
        return self._lut[numbers]

    def stored_of(self, indices: I16) -> I16:
        """This process's indices -> store's numbers."""
        distinct, inverse = np.unique(indices, return_inverse=True)
        numbers = [self.stored(self._to_name(int(index)) if index >= 0 else "") for index in distinct]
        return np.asarray(numbers, np.int16)[inverse.reshape(indices.shape)]


def _index_or_unknown(lookup: Callable[[str], int], name: str) -> int:
    try:
        return lookup(name)
    except InvalidInput:  # a name of another tzdata or another version: kept, and unknown here
        return -1


def zone_names() -> NameTable:
    """Time zones, by `serve_app.policy.zones`."""
    return NameTable("zone", partial(_index_or_unknown, zone_index), zone_name)


def region_names() -> NameTable:
    """Regions, by `serve_app.regions`."""
    return NameTable("region", partial(_index_or_unknown, region_index), region_name)
