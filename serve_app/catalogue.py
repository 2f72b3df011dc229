"""The catalogue: items, users, reviews, widgets and campaigns as five validated Parquet tables.

Ids are text; `hash` columns (`item`, `user`) are `serve_app.ids.hash_id` of them. Times are i64 microseconds UTC, 0 for
"unknown" or "no limit". An absent table is an empty one; an unknown column, a wrong dtype, a null where a value is needed,
a repeated id or a reference to nothing is an InvalidInput that names table and column.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import IntEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from serve_app.errors import DamagedArtifact, InvalidInput
from serve_app.ids import hash_ids
from serve_app.vocabulary import Channel, Delivery, MessageClass

__all__ = ["SCHEMAS", "Catalogue", "empty", "read_catalogue", "table_of", "write_catalogue"]


def _column(name: str, dtype: pa.DataType, doc: str, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, dtype, nullable=nullable, metadata={"doc": doc})


_STR, _I64, _F64 = pa.string(), pa.int64(), pa.float64()

SCHEMAS: MappingProxyType[str, pa.Schema] = MappingProxyType(
    {
        "items": pa.schema(
            [
                _column("item_id", _STR, "the shop's id"),
                _column("item", pa.uint64(), "hash of item_id"),
                _column("title", _STR, "empty: unknown"),
                _column("category", _STR, "empty: unknown"),
                _column("price", _F64, "one piece, in currency; 0: unknown"),
                _column("currency", _STR, "ISO 4217; empty: unknown"),
                _column("created_at", _I64, "first offered; 0: unknown"),
                _column("available", pa.bool_(), "may be shown"),
            ]
        ),
        "users": pa.schema(
            [
                _column("user_id", _STR, "the caller's id"),
                _column("user", pa.uint64(), "hash of user_id"),
                _column("zone", _STR, "IANA time zone; empty: unknown"),
                _column("region", _STR, "ISO 3166-1 alpha-2 (serve_app.regions); empty: unknown"),
                _column("created_at", _I64, "first seen; 0: unknown"),
            ]
        ),
        "reviews": pa.schema(
            [
                _column("review_id", _STR, "unique"),
                _column("item_id", _STR, "item reviewed"),
                _column("user_id", _STR, "who wrote it; empty: unknown"),
                _column("at", _I64, "when it was written; 0: unknown"),
                _column("stars", pa.float32(), "1..5"),
                _column("text", _STR, "as written"),
                _column("helpful_votes", pa.int32(), "null: never counted", nullable=True),
                _column("verified", pa.bool_(), "the reviewer bought it"),
            ]
        ),
        "widgets": pa.schema(
            [
                _column("widget_id", _STR, "unique"),
                _column("title", _STR, "heading of the row on the page"),
                _column("kind", _STR, "which source fills it: taste, popular, recent, category, covisited, fresh"),
                _column("argument", _STR, "the kind's argument, such as a category; empty: none"),
            ]
        ),
        "campaigns": pa.schema(
            [
                _column("campaign_id", _STR, "unique"),
                _column("title", _STR, "subject or heading"),
                _column("text", _STR, "the message"),
                _column("item_id", _STR, "the item it is about; null: none", nullable=True),
                _column("category", _STR, "cap scope; empty: none"),
                _column("message_class", _STR, "MessageClass name"),
                _column("channels", pa.list_(_STR), "Channel names it may use"),
                _column("starts_at", _I64, "never sent before; 0: no limit"),
                _column("expires_at", _I64, "never sent after; 0: never expires"),
                _column("cost", _F64, "of one send"),
                _column("margin", _F64, "of one conversion"),
                _column("priority", pa.int16(), "higher first"),
                _column("delivery", _STR, "Delivery name"),
                _column("segment", _STR, "policy segment it is limited to; null: all", nullable=True),
            ]
        ),
    }
)

_KEYS = {"items": "item_id", "users": "user_id", "reviews": "review_id", "widgets": "widget_id", "campaigns": "campaign_id"}
_HASHES = {"items": ("item_id", "item"), "users": ("user_id", "user")}
_LOWER_BOUNDS = {("items", "price"): 0.0, ("campaigns", "cost"): 0.0, ("reviews", "stars"): 0.0}


def empty(name: str) -> pa.Table:
    """Zero rows of catalogue table `name`."""
    return SCHEMAS[name].empty_table()


@dataclass(frozen=True)
class Catalogue:
    """Five tables with the schemas of `SCHEMAS`; `validated()` checks them."""

    items: pa.Table
    users: pa.Table = field(default_factory=lambda: empty("users"))
    reviews: pa.Table = field(default_factory=lambda: empty("reviews"))
    widgets: pa.Table = field(default_factory=lambda: empty("widgets"))
    campaigns: pa.Table = field(default_factory=lambda: empty("campaigns"))

    def validated(self) -> Catalogue:
        """The same tables cast to their schemas; InvalidInput names the first thing that is wrong."""
        tables = {one.name: _validate(one.name, getattr(self, one.name)) for one in fields(self)}
        _check_references(tables)
        return Catalogue(**tables)


def table_of(name: str, columns: Mapping[str, Any]) -> pa.Table:
    """Catalogue table `name` from arrays or lists; hash columns are filled in from the ids."""
    data = dict(columns)
    if name in _HASHES:
        text, hashed = _HASHES[name]
        ids = data[text]
        data[hashed] = pa.array(hash_ids(ids.to_pylist() if isinstance(ids, pa.Array | pa.ChunkedArray) else ids))
    schema = SCHEMAS[name]
    _check_names(name, list(data), schema)
    return pa.table({one.name: pa.array(data[one.name], one.type, from_pandas=True) for one in schema}, schema=schema)


def read_catalogue(folder: str | os.PathLike[str]) -> Catalogue:
    """Read `folder`/{items,users,reviews,widgets,campaigns}.parquet and validate.

    InvalidInput: no items table, or contents that break the schema. DamagedArtifact: a file that is not readable Parquet.
    """
    root = Path(folder)
    if not (root / "items.parquet").is_file():
        raise InvalidInput(f"{root} holds no catalogue", field="catalogue", hint="run `hindcast world` or `hindcast import`")
    tables = {}
    for name in SCHEMAS:
        path = root / f"{name}.parquet"
        if not path.is_file():
            continue
        try:
            tables[name] = pq.read_table(path, partitioning=None)
        except (pa.ArrowException, OSError) as error:
            raise DamagedArtifact(f"{path} is not readable: {error}", field=name, hint="restore or rebuild it") from error
    return Catalogue(**tables).validated()


def write_catalogue(catalogue: Catalogue, folder: str | os.PathLike[str]) -> None:
    """Validate and write every table, each one aside and then renamed."""
    checked = catalogue.validated()
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    for name in SCHEMAS:
        aside = root / f".{name}.parquet.tmp"
        pq.write_table(getattr(checked, name), aside, compression="zstd")
        aside.replace(root / f"{name}.parquet")


def _check_names(name: str, found: list[str], schema: pa.Schema) -> None:
    missing = [one for one in schema.names if one not in found]
    unknown = [one for one in found if one not in schema.names]
    if missing:
        raise InvalidInput(f"missing column {', '.join(missing)}", field=f"catalogue.{name}")
    if unknown:
        raise InvalidInput(f"unknown column {', '.join(unknown)}", field=f"catalogue.{name}", hint="remove or rename it")


def _validate(name: str, table: pa.Table) -> pa.Table:
    schema = SCHEMAS[name]
    _check_names(name, table.column_names, schema)
    arrays = []
    for spec in schema:
        where = f"catalogue.{name}.{spec.name}"
        column = table[spec.name]
        try:
            column = column.cast(spec.type)
        except pa.ArrowException as error:
            raise InvalidInput(f"is {table[spec.name].type}, must be {spec.type}: {error}", field=where) from error
        if not spec.nullable and column.null_count:
            raise InvalidInput(f"{column.null_count} null values where a value is needed", field=where)
        arrays.append(column)
    checked = pa.Table.from_arrays(arrays, schema=schema)
    _check_unique(name, checked)
    _check_values(name, checked)
    return checked


def _check_unique(name: str, table: pa.Table) -> None:
    key = _KEYS[name]
    if pc.any(pc.equal(table[key], "")).as_py():
        raise InvalidInput("an id is empty", field=f"catalogue.{name}.{key}")
    if name in _HASHES:
        hashed = _HASHES[name][1]
        if not table[hashed].combine_chunks().equals(pa.array(hash_ids(table[key].to_pylist()))):
            raise InvalidInput("is not the hash of the id", field=f"catalogue.{name}.{hashed}", hint="see serve_app.ids")
        # Two ids of one hash would be one item everywhere else.
        _check_distinct(table[key], f"catalogue.{name}.{key}")
        _check_distinct(table[hashed], f"catalogue.{name}.{hashed}")
    else:
        _check_distinct(table[key], f"catalogue.{name}.{key}")


def _check_distinct(column: pa.ChunkedArray, where: str) -> None:
    if pc.count_distinct(column).as_py() < len(column):
        counts = column.value_counts()
        repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
        raise InvalidInput(f"{repeated[0].as_py()!r} stands in several rows", field=where)


def _check_values(name: str, table: pa.Table) -> None:
    for spec in table.schema:
        where = f"catalogue.{name}.{spec.name}"
        if pa.types.is_floating(spec.type) and not pc.all(pc.is_finite(table[spec.name]), min_count=0).as_py():
            raise InvalidInput("a value is not finite", field=where)
        bound = _LOWER_BOUNDS.get((name, spec.name))
        if bound is not None and pc.any(pc.less(table[spec.name], bound)).as_py():
            raise InvalidInput(f"a value is below {bound:g}", field=where)
    if name == "campaigns":
        _check_choice(table["message_class"], MessageClass, "catalogue.campaigns.message_class")
        _check_choice(table["delivery"], Delivery, "catalogue.campaigns.delivery")
        _check_choice(pc.list_flatten(table["channels"]), Channel, "catalogue.campaigns.channels")


def _check_choice(column: pa.ChunkedArray, choices: type[IntEnum], where: str) -> None:
    allowed = [one.name for one in choices]
    for value in pc.unique(column).to_pylist():
        if value not in allowed:
            raise InvalidInput(f"{value!r} is not one of {', '.join(allowed)}", field=where)


def _check_references(tables: Mapping[str, pa.Table]) -> None:
    known = tables["items"]["item_id"]
    for name in ("reviews", "campaigns"):
        referred = tables[name]["item_id"].drop_null()
        lost = referred.filter(pc.invert(pc.is_in(referred, value_set=known.combine_chunks())))
        if len(lost):
            raise InvalidInput(f"no item has id {lost[0].as_py()!r}", field=f"catalogue.{name}.item_id")
