"""Live catalogue changes over an immutable release: removals in a bitmap, new items in an exactly searched side matrix.

An overlay is a value: `apply` returns the next one. Item rows of a release are 0..n-1; upserted new items get the rows
n, n + 1, ... in sequence order, so every process that applied the same changes agrees on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

__all__ = ["ItemChange", "Overlay"]

_A_FEW = 64  # items that are sooner looked up one by one than sorted for


@dataclass(frozen=True, slots=True)
class ItemChange:
    """One change at sequence number `seq`. `category`, `price` and `embedding` f32[d] are given for new items; None keeps
    what is known."""

    seq: int
    item: int  # u64 hash
    available: bool
    item_id: str = ""
    category: int = -1
    category_hash: int = 0
    price: float = float("nan")
    title: str = ""
    embedding: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class Overlay:
    """State of the catalogue after change `seq`. Arrays cover release rows followed by side rows."""

    seq: int
    release_items: int
    unavailable: npt.NDArray[np.bool_]
    side_hashes: npt.NDArray[np.uint64]
    side_categories: npt.NDArray[np.int32]
    side_category_hashes: npt.NDArray[np.uint64]
    side_prices: npt.NDArray[np.float32]
    side_embeddings: npt.NDArray[np.float32]
    side_ids: tuple[str, ...] = ()
    side_titles: tuple[str, ...] = ()

    @classmethod
    def of_release(cls, available: npt.NDArray[np.bool_], dimensions: int) -> Overlay:
        """No change yet: what the release says."""
        return cls(
            seq=0,
            release_items=len(available),
            unavailable=~available,
            side_hashes=np.empty(0, np.uint64),
            side_categories=np.empty(0, np.int32),
            side_category_hashes=np.empty(0, np.uint64),
            side_prices=np.empty(0, np.float32),
            side_embeddings=np.empty((0, dimensions), np.float32),
        )

    @property
    def rows(self) -> int:
        """Release rows and side rows."""
        return len(self.unavailable)

    def side_row(self, item: int) -> int:
        """Row of a side item by hash; -1 when it is not one."""
        found = np.flatnonzero(self.side_hashes == np.uint64(item))
        return int(self.release_items + found[0]) if len(found) else -1

    def side_rows(self, items: npt.NDArray[np.uint64]) -> npt.NDArray[np.int32]:
        """i32 row of each side item by hash; -1 where it is not one."""
        if not len(self.side_hashes):
            return np.full(len(items), -1, np.int32)
        if len(items) <= _A_FEW:
            return np.array([self.side_row(item) for item in items.tolist()], np.int32)
        order = np.argsort(self.side_hashes)
        place = order[np.minimum(np.searchsorted(self.side_hashes, items, sorter=order), len(order) - 1)]
        return np.where(self.side_hashes[place] == items, self.release_items + place, -1).astype(np.int32)

    def apply(self, changes: Sequence[tuple[ItemChange, int]]) -> Overlay:
        """Apply changes in sequence order; each comes with the item's release row, or -1 when the release lacks it.
        Changes at or before `seq` are already in and are passed over. Arrays are copied once, however many changes come."""
        new, seq = [], self.seq
        for change, row in changes:
            if change.seq > seq:
                new.append((change, row))
                seq = change.seq
        if not new:
            return self
        rows, first = self._rows_of(new)
        unavailable = np.append(self.unavailable, np.zeros(len(first), np.bool_))
        of_sides = []
        for (change, _), row in zip(new, rows, strict=True):
            unavailable[row] = not change.available
            if row >= self.release_items:
                of_sides.append((row - self.release_items, change))
        return replace(self, seq=seq, unavailable=unavailable)._with_sides(first, of_sides)

    def _rows_of(self, changes: Sequence[tuple[ItemChange, int]]) -> tuple[list[int], list[ItemChange]]:
        """The row of each change, and the first change of each item that has no row yet."""
        lacking = list({change.item for change, row in changes if row < 0})
        known = dict(zip(lacking, self.side_rows(np.array(lacking, np.uint64)).tolist(), strict=True))
        rows: list[int] = []
        first: list[ItemChange] = []
        for change, given in changes:
            row = given if given >= 0 else known[change.item]
            if row < 0:
                row = known[change.item] = self.rows + len(first)
                first.append(change)
            rows.append(row)
        return rows, first

    def _with_sides(self, first: Sequence[ItemChange], changes: Sequence[tuple[int, ItemChange]]) -> Overlay:
        """With a side row more for each change of `first`, and what `changes` say of the side row they come with."""
        if not changes:
            return self
        new = np.zeros((len(first), self.side_embeddings.shape[1]), np.float32)
        for at, one in enumerate(first):
            if one.embedding is not None:
                new[at] = one.embedding
        categories = np.append(self.side_categories, np.array([one.category for one in first], np.int32))
        hashes = np.append(self.side_category_hashes, np.array([one.category_hash for one in first], np.uint64))
        prices = np.append(self.side_prices, np.array([one.price for one in first], np.float32))
        vectors = np.concatenate([self.side_embeddings, new])
        for index, change in changes:
            if change.category >= 0:
                categories[index], hashes[index] = change.category, np.uint64(change.category_hash)
                if change.embedding is not None:  # its category's: a change that leaves that out leaves this, too
                    vectors[index] = change.embedding
            if not np.isnan(change.price):
                prices[index] = change.price
        return replace(
            self,
            side_hashes=np.append(self.side_hashes, np.array([one.item for one in first], np.uint64)),
            side_categories=categories,
            side_category_hashes=hashes,
            side_prices=prices,
            side_embeddings=vectors,
            side_ids=(*self.side_ids, *(one.item_id for one in first)),
            side_titles=(*self.side_titles, *(one.title for one in first)),
        )
