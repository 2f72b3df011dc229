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

    def apply(self, changes: Sequence[tuple[ItemChange, int]]) -> Overlay:
        """Apply changes in sequence order; each comes with the item's release row, or -1 when the release lacks it.
        Changes at or before `seq` are already in and are passed over."""
        state = self
        for change, row in changes:
            if change.seq > state.seq:
                state = state._one(change, row)
        return state

    def _one(self, change: ItemChange, row: int) -> Overlay:
        if row < 0:
            row = self.side_row(change.item)
        if row < 0:
            return self._append(change)
        unavailable = self.unavailable.copy()
        unavailable[row] = not change.available
        out = replace(self, seq=change.seq, unavailable=unavailable)
        return out._update_side(row - self.release_items, change) if row >= self.release_items else out

    def _append(self, change: ItemChange) -> Overlay:
        dimensions = self.side_embeddings.shape[1]
        vector = change.embedding if change.embedding is not None else np.zeros(dimensions, np.float32)
        return replace(
            self,
            seq=change.seq,
            unavailable=np.append(self.unavailable, not change.available),
            side_hashes=np.append(self.side_hashes, np.uint64(change.item)),
            side_categories=np.append(self.side_categories, np.int32(change.category)),
            side_category_hashes=np.append(self.side_category_hashes, np.uint64(change.category_hash)),
            side_prices=np.append(self.side_prices, np.float32(change.price)),
            side_embeddings=np.concatenate([self.side_embeddings, vector[None, :].astype(np.float32)]),
            side_ids=(*self.side_ids, change.item_id),
            side_titles=(*self.side_titles, change.title),
        )

    def _update_side(self, index: int, change: ItemChange) -> Overlay:
        out = self
        if change.category >= 0:
            categories, hashes = self.side_categories.copy(), self.side_category_hashes.copy()
            categories[index], hashes[index] = change.category, np.uint64(change.category_hash)
            out = replace(out, side_categories=categories, side_category_hashes=hashes)
        if not np.isnan(change.price):
            prices = self.side_prices.copy()
            prices[index] = change.price
            out = replace(out, side_prices=prices)
        if change.embedding is not None:
            vectors = self.side_embeddings.copy()
            vectors[index] = change.embedding
            out = replace(out, side_embeddings=vectors)
        return out
