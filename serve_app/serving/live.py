"""The catalogue as one release sees it after the live changes up to a sequence number.

Changes are JSON payloads in the ledger's catalogue log (`encode_item_change`). Every process applies them in order, so side
rows of new items have the same numbers everywhere. A view is a value: applying changes gives a new one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from serve_app.errors import DamagedArtifact
from serve_app.ids import hash_id
from serve_app.ledger.protocol import CatalogueChange
from serve_app.release.rows import CatalogueRows
from serve_app.stages.features import ItemFacts
from serve_app.stages.retrieval import ItemChange, Overlay

__all__ = ["ITEM_CHANGE", "ItemsView", "encode_item_change"]

ITEM_CHANGE = "item"
"""Kind of the catalogue changes that this module writes and reads."""

_A_FEW = 64  # rows that are sooner looked up one by one than taken together
I32 = npt.NDArray[np.int32]
U64 = npt.NDArray[np.uint64]


def encode_item_change(
    item_id: str, *, available: bool, title: str | None = None, category: str | None = None, price: float | None = None
) -> bytes:
    """The payload of one change of kind ITEM_CHANGE."""
    return orjson.dumps({"item": item_id, "available": available, "title": title, "category": category, "price": price})


@dataclass(frozen=True, slots=True)
class ItemsView:
    """Items of one release with the changes up to `seq` applied. Rows: release rows, then side rows."""

    rows: CatalogueRows
    category_vectors: npt.NDArray[np.float32]
    overlay: Overlay
    facts: ItemFacts
    hashes: U64
    """u64 by row."""

    @classmethod
    def of_release(cls, rows: CatalogueRows, category_vectors: npt.NDArray[np.float32]) -> ItemsView:
        """No change yet. category_vectors f32[c + 1, d]: cold-start embedding per category, last for none."""
        overlay = Overlay.of_release(rows.item_available, category_vectors.shape[1])
        return cls(rows, category_vectors, overlay, ItemFacts(rows.item_category, rows.item_price), rows.item_hashes)

    @property
    def seq(self) -> int:
        """Sequence number of the last change that is in."""
        return self.overlay.seq

    def apply(self, changes: Sequence[CatalogueChange]) -> ItemsView:
        """The view after `changes`, which come in order; other kinds only move `seq` on."""
        new = [change for change in changes if change.seq > self.seq]
        if not new:
            return self
        items = [self._decode(change) for change in new if change.kind == ITEM_CHANGE]
        found = self.rows.item_rows(np.array([change.item for change in items], np.uint64))
        overlay = self.overlay.apply(list(zip(items, found.tolist(), strict=True)))
        overlay = replace(overlay, seq=new[-1].seq)
        return ItemsView(self.rows, self.category_vectors, overlay, self._facts(overlay), self._hashes(overlay))

    def _decode(self, change: CatalogueChange) -> ItemChange:
        try:
            said = orjson.loads(change.payload)
            item_id, category = str(said["item"]), said["category"]
            price = float("nan") if said["price"] is None else float(said["price"])
            index = self._category_index(category)
            return ItemChange(
                seq=change.seq,
                item=hash_id(item_id),
                available=bool(said["available"]),
                item_id=item_id,
                category=index,
                category_hash=hash_id(category) if category else 0,
                price=price,
                title=said["title"] or "",
                embedding=self.category_vectors[index],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedArtifact(f"catalogue change {change.seq} cannot be read: {error!r}", field="ledger") from error

    def _category_index(self, category: str | None) -> int:
        names = self.rows.category_names
        return names.index(category) if category in names else -1

    def _facts(self, overlay: Overlay) -> ItemFacts:
        if not len(overlay.side_hashes):
            return ItemFacts(self.rows.item_category, self.rows.item_price)
        category = np.concatenate([self.rows.item_category, overlay.side_categories])
        return ItemFacts(category, np.concatenate([self.rows.item_price, overlay.side_prices]))

    def _hashes(self, overlay: Overlay) -> U64:
        return np.concatenate([self.rows.item_hashes, overlay.side_hashes]) if len(overlay.side_hashes) else self.hashes

    def rows_of(self, hashes: U64) -> I32:
        """i32 row of each item hash, side rows included; -1: unknown."""
        found = self.rows.item_rows(hashes)
        if len(self.overlay.side_hashes):
            for at in np.flatnonzero(found < 0):
                found[at] = self.overlay.side_row(int(hashes[at]))
        return found

    def ids_of(self, rows: I32) -> list[str]:
        """The shop's id of each row (all rows known)."""
        release = self.overlay.release_items
        if len(rows) <= _A_FEW and rows.min(initial=0) >= 0 and rows.max(initial=-1) < release:
            return [self.rows.item_ids[row].as_py() for row in rows.tolist()]
        inside = np.minimum(rows, release - 1).clip(0)
        ids: list[str] = self.rows.item_ids.take(pa.array(inside)).to_pylist() if release else [""] * len(rows)
        for at in np.flatnonzero(rows >= release):
            ids[at] = self.overlay.side_ids[rows[at] - release]
        return ids
