"""The catalogue of a release, in row order, with look-ups from hash to row.

Items, users and campaigns stand in ascending order of their hash, reviews by item row and then id, widgets by id, so the
same catalogue gives the same rows whatever order it was imported in. Category indices number the non-empty category names in
ascending order. Rows (i32) mean nothing outside one release; hashes (u64) do.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from serve_app.batch import lengths_to_offsets
from serve_app.catalogue import Catalogue, read_catalogue
from serve_app.errors import DamagedArtifact, InvalidInput
from serve_app.ids import hash_ids
from serve_app.policy.zones import UNKNOWN_ZONE, zone_index
from serve_app.regions import UNKNOWN_REGION, region_index

__all__ = ["CatalogueRows", "find_rows", "in_row_order"]

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
I16 = npt.NDArray[np.int16]


def find_rows(sorted_hashes: U64, hashes: npt.ArrayLike) -> I32:
    """Row i32 of each hash in an ascending array; -1 where it is not there."""
    wanted = np.asarray(hashes, np.uint64)
    if len(sorted_hashes) == 0:
        return np.full(wanted.shape, -1, np.int32)
    at = np.searchsorted(sorted_hashes, wanted)
    at[at == len(sorted_hashes)] = 0
    return np.where(sorted_hashes[at] == wanted, at, -1).astype(np.int32)


def in_row_order(catalogue: Catalogue) -> Catalogue:
    """The same catalogue with every table in the order a release keeps."""
    items = catalogue.items.sort_by("item")
    reviews, campaigns = catalogue.reviews, catalogue.campaigns
    if len(reviews):
        row = find_rows(items["item"].to_numpy(), hash_ids(reviews["item_id"].to_pylist()))
        keyed = reviews.append_column("row", pa.array(row))
        reviews = keyed.sort_by([("row", "ascending"), ("review_id", "ascending")]).drop_columns(["row"])
    if len(campaigns):
        campaigns = campaigns.take(np.argsort(hash_ids(campaigns["campaign_id"].to_pylist())))
    return Catalogue(items, catalogue.users.sort_by("user"), reviews, catalogue.widgets.sort_by("widget_id"), campaigns)


def _flat(table: pa.Table, name: str, dtype: npt.DTypeLike) -> npt.NDArray[np.generic]:
    return np.ascontiguousarray(table[name].to_numpy(zero_copy_only=False), dtype)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.cast(pa.large_string()).chunks) if column.num_chunks else pa.array([], column.type)


def _numbered(column: pa.ChunkedArray, number: Callable[[str], int], unknown: int) -> I16:
    """The number of each row's name, and `unknown` behind the last. So is what is empty, or a name of another tzdata."""

    def numbered(name: str) -> int:
        try:
            return number(name) if name else unknown
        except InvalidInput:
            return unknown

    encoded = _whole(column).dictionary_encode()
    numbers = [numbered(name) for name in encoded.dictionary.to_pylist()]
    codes = encoded.indices.fill_null(len(numbers)).to_numpy(zero_copy_only=False)
    out = np.empty(len(codes) + 1, np.int16)
    out[:-1], out[-1] = np.array([*numbers, unknown], np.int16)[codes], unknown
    return out


class CatalogueRows:
    """Tables `items`, `users`, `reviews`, `widgets`, `campaigns` (pyarrow, see serve_app.catalogue) and arrays by row."""

    def __init__(self, tables: Catalogue) -> None:
        self.items, self.users, self.reviews = tables.items, tables.users, tables.reviews
        self.widgets, self.campaigns = tables.widgets, tables.campaigns
        self.item_hashes: U64 = tables.items["item"].to_numpy()
        self.user_hashes: U64 = tables.users["user"].to_numpy()
        for name, hashes in (("items", self.item_hashes), ("users", self.user_hashes)):
            if np.any(hashes[1:] <= hashes[:-1]):
                raise DamagedArtifact("rows are not in ascending order of their hash", field=f"catalogue/{name}.parquet")

    @classmethod
    def load(cls, folder: Path) -> CatalogueRows:
        """From the `catalogue` folder of a release."""
        return cls(read_catalogue(folder))

    def item_rows(self, hashes: npt.ArrayLike) -> I32:
        """i32 row of each item hash; -1: not in this release."""
        return find_rows(self.item_hashes, hashes)

    def user_rows(self, hashes: npt.ArrayLike) -> I32:
        """i32 row of each user hash; -1: not in this release."""
        return find_rows(self.user_hashes, hashes)

    @cached_property
    def user_zones(self) -> I16:
        """i16[users + 1] zone index; UNKNOWN_ZONE: none is known, so too behind the last, where row -1 looks."""
        return _numbered(self.users["zone"], zone_index, UNKNOWN_ZONE)

    @cached_property
    def user_regions(self) -> I16:
        """i16[users + 1] region index; UNKNOWN_REGION: none is known, so too behind the last, where row -1 looks."""
        return _numbered(self.users["region"], region_index, UNKNOWN_REGION)

    @cached_property
    def item_ids(self) -> pa.Array:
        """Text[items] the shop's ids, in one piece: taking rows of a chunked column costs ten times as much."""
        return _whole(self.items["item_id"])

    @cached_property
    def widget_ids(self) -> list[str]:
        """The shop's id of each widget row."""
        ids: list[str] = self.widgets["widget_id"].to_pylist()
        return ids

    @cached_property
    def widget_titles(self) -> list[str]:
        """Title of each widget row."""
        titles: list[str] = self.widgets["title"].to_pylist()
        return titles

    @cached_property
    def widget_kinds(self) -> list[str]:
        """Kind of each widget row; see serve_app.serving.given."""
        kinds: list[str] = self.widgets["kind"].to_pylist()
        return kinds

    @cached_property
    def widget_arguments(self) -> list[str]:
        """Argument of each widget row's kind."""
        arguments: list[str] = self.widgets["argument"].to_pylist()
        return arguments

    @cached_property
    def category_names(self) -> list[str]:
        """Name of each category index."""
        names = pc.unique(self.items["category"]).to_pylist()
        return sorted(name for name in names if name)

    @cached_property
    def category_hashes(self) -> U64:
        """u64 hash of each category index (not sorted)."""
        return hash_ids(self.category_names)

    @cached_property
    def item_category(self) -> I32:
        """i32[items] category index; -1: unknown."""
        if not self.category_names:
            return np.full(len(self.items), -1, np.int32)
        found = pc.index_in(self.items["category"], value_set=pa.array(self.category_names, pa.string()))
        return np.ascontiguousarray(pc.fill_null(found, -1).to_numpy(), np.int32)

    @cached_property
    def item_category_hash(self) -> U64:
        """u64[items] hash of the item's category; 0: unknown."""
        padded = np.r_[self.category_hashes, np.uint64(0)]
        return padded[self.item_category]

    @cached_property
    def item_price(self) -> npt.NDArray[np.float32]:
        """f32[items] price of one piece; NaN: unknown."""
        price = np.asarray(_flat(self.items, "price", np.float32), np.float32)
        return np.where(price > 0, price, np.float32(np.nan)).astype(np.float32)

    @cached_property
    def item_available(self) -> npt.NDArray[np.bool_]:
        """bool[items]: may be shown, as far as the release knows."""
        return np.asarray(_flat(self.items, "available", np.bool_), np.bool_)

    @cached_property
    def item_created_at(self) -> I64:
        """i64[items] first offered, microseconds UTC; 0: unknown."""
        return np.asarray(_flat(self.items, "created_at", np.int64), np.int64)

    @cached_property
    def campaign_hashes(self) -> U64:
        """u64[campaigns], ascending."""
        return hash_ids(self.campaigns["campaign_id"].to_pylist())

    @cached_property
    def widget_hashes(self) -> U64:
        """u64[widgets] by widget row (not sorted)."""
        return hash_ids(self.widget_ids)

    @cached_property
    def review_hashes(self) -> U64:
        """u64[reviews] by review row (not sorted)."""
        return hash_ids(self.reviews["review_id"].to_pylist())

    @cached_property
    def review_item(self) -> I32:
        """i32[reviews] item row of each review, ascending."""
        return self.item_rows(hash_ids(self.reviews["item_id"].to_pylist()))

    @cached_property
    def review_offsets(self) -> I64:
        """i64[items + 1]: reviews of item row i stand in review rows [offsets[i], offsets[i + 1])."""
        return lengths_to_offsets(np.bincount(self.review_item, minlength=len(self.items)))
