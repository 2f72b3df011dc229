"""The catalogue as one release sees it after the live changes up to a sequence number.

Changes are JSON payloads in the ledger's catalogue log (`encode_item_change`). Every process applies them in order, so side
rows of new items have the same numbers everywhere. A view is a value: applying changes gives a new one. `KeptChanges` are
those that a view may still have to be given.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import NamedTuple

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

__all__ = ["ITEM_CHANGE", "ItemsView", "KeptChanges", "encode_item_change"]

ITEM_CHANGE = "item"
"""Kind of the catalogue changes that this module writes and reads."""

_A_FEW = 64  # rows that are sooner looked up one by one than taken together
_RECENT = 1_000  # changes kept one and all: a view that is no further behind need not look through every item
I32 = npt.NDArray[np.int32]
U64 = npt.NDArray[np.uint64]


def encode_item_change(
    item_id: str, *, available: bool, title: str | None = None, category: str | None = None, price: float | None = None
) -> bytes:
    """The payload of one change of kind ITEM_CHANGE."""
    return orjson.dumps({"item": item_id, "available": available, "title": title, "category": category, "price": price})


class _Said(NamedTuple):
    """A change of kind ITEM_CHANGE. price: NaN where nothing is said of it."""

    item: int  # u64 hash
    item_id: str
    available: bool
    title: str
    category: str | None
    price: float


def _read(change: CatalogueChange) -> _Said:
    try:
        said = orjson.loads(change.payload)
        item_id, category = str(said["item"]), said["category"] and sys.intern(said["category"])
        price = float("nan") if said["price"] is None else float(said["price"])
        return _Said(hash_id(item_id), item_id, bool(said["available"]), said["title"] or "", category, price)
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedArtifact(f"catalogue change {change.seq} cannot be read: {error!r}", field="ledger") from error


class _OfItem:
    """What is kept of one item's changes; often they are all the same one."""

    __slots__ = ("categories", "category", "first", "newest", "priced", "stated")

    def __init__(self, first: CatalogueChange) -> None:
        self.first = self.newest = first
        self.priced: CatalogueChange | None = None
        self.category: str | None = None
        self.stated: CatalogueChange | None = None
        self.categories: dict[str, CatalogueChange] | None = None  # those stated before `category`: hardly any item has one

    def take(self, change: CatalogueChange, said: _Said) -> None:
        self.newest = change
        if not math.isnan(said.price):
            self.priced = change
        if not said.category:
            return
        if self.category and self.stated and said.category != self.category:
            self.categories = self.categories or {}
            self.categories[self.category] = self.stated
        self.category, self.stated = said.category, change

    def __iter__(self) -> Iterator[CatalogueChange]:
        yield self.first
        yield self.newest
        if self.priced:
            yield self.priced
        if self.stated:
            yield self.stated
        if self.categories:
            yield from self.categories.values()


class KeptChanges:
    """Of the catalogue changes so far, those that bring a view of any release from any sequence number to the newest: all
    views go there, none is ever asked for as of an earlier number. So their number follows from that of the items, not of
    the changes.

    Of each item these are the first (side rows are numbered by it, and it gives id and title), the newest, and, since a
    change may leave them unsaid, the newest with a price and the newest of each category: not every release knows every
    category. The newest of all stays, of whatever kind."""

    def __init__(self) -> None:
        self._items: dict[int, _OfItem] = {}
        self._unreadable: list[CatalogueChange] = []
        self._recent: deque[CatalogueChange] = deque(maxlen=_RECENT)

    @property
    def newest(self) -> int:
        """Sequence number of the last change taken in; 0: none yet."""
        return self._recent[-1].seq if self._recent else 0

    def take(self, change: CatalogueChange) -> None:
        """Take in the next change. One that cannot be read stays, for views to refuse."""
        self._recent.append(change)
        if change.kind != ITEM_CHANGE:
            return
        try:
            said = _read(change)
        except DamagedArtifact:
            self._unreadable.append(change)
            return
        known = self._items.get(said.item)
        if known is None:
            known = self._items[said.item] = _OfItem(change)
        known.take(change, said)

    def after(self, seq: int) -> list[CatalogueChange]:
        """What a view at `seq` lacks, in order. Applied to it, the outcome is that of all changes since."""
        if not self._recent or self._recent[0].seq <= seq + 1:
            newer = list(takewhile(lambda one: one.seq > seq, reversed(self._recent)))
            return newer[::-1]
        kept = {one.seq: one for item in self._items.values() for one in item if one.seq > seq}
        kept |= {one.seq: one for one in (*self._unreadable, self._recent[-1]) if one.seq > seq}
        return [kept[one] for one in sorted(kept)]


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
        numbers = {name: at for at, name in enumerate(self.rows.category_names)}
        items = [self._decode(change, numbers) for change in new if change.kind == ITEM_CHANGE]
        found = self.rows.item_rows(np.array([change.item for change in items], np.uint64))
        overlay = self.overlay.apply(list(zip(items, found.tolist(), strict=True)))
        overlay = replace(overlay, seq=new[-1].seq)
        return ItemsView(self.rows, self.category_vectors, overlay, self._facts(overlay), self._hashes(overlay))

    def _decode(self, change: CatalogueChange, categories: Mapping[str, int]) -> ItemChange:
        said = _read(change)
        index = categories.get(said.category, -1) if said.category else -1
        return ItemChange(
            seq=change.seq,
            item=said.item,
            available=said.available,
            item_id=said.item_id,
            category=index,
            category_hash=hash_id(said.category) if said.category else 0,
            price=said.price,
            title=said.title,
            embedding=self.category_vectors[index],
        )

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
            lacking = found < 0
            found[lacking] = self.overlay.side_rows(hashes[lacking])
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
