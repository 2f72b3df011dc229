"""The catalogue: what is read is what was written, and what is wrong is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serve_app.catalogue import SCHEMAS, Catalogue, read_catalogue, table_of, write_catalogue
from serve_app.errors import DamagedArtifact, InvalidInput
from serve_app.ids import hash_id


def items(ids: list[str], **changes: Any) -> pa.Table:
    n = len(ids)
    columns = {
        "item_id": ids,
        "title": [f"title of {one}" for one in ids],
        "category": ["cups"] * n,
        "price": [1.5] * n,
        "currency": ["GBP"] * n,
        "created_at": [0] * n,
        "available": [True] * n,
    }
    return table_of("items", {**columns, **changes})


def campaigns(ids: list[str], **changes: Any) -> pa.Table:
    n = len(ids)
    columns = {
        "campaign_id": ids,
        "title": ["sale"] * n,
        "text": ["(광고) sale"] * n,
        "item_id": [None] * n,
        "category": [""] * n,
        "message_class": ["advertising"] * n,
        "channels": [["push", "email"]] * n,
        "starts_at": [0] * n,
        "expires_at": [0] * n,
        "cost": [0.01] * n,
        "margin": [2.0] * n,
        "priority": [0] * n,
        "delivery": ["caller"] * n,
        "segment": [None] * n,
    }
    return table_of("campaigns", {**columns, **changes})


def test_a_catalogue_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = Catalogue(items=items(["a", "찻잔 🍵"]), campaigns=campaigns(["c"], item_id=["a"]))
    write_catalogue(written, tmp_path)
    read = read_catalogue(tmp_path)
    for name, schema in SCHEMAS.items():
        assert getattr(read, name).equals(getattr(written, name))
        assert getattr(read, name).schema.equals(schema)
    assert read.items["item"].to_pylist() == [hash_id("a"), hash_id("찻잔 🍵")]


def test_no_items_is_a_catalogue_too(tmp_path: Path) -> None:
    write_catalogue(Catalogue(items=items([])), tmp_path)
    assert len(read_catalogue(tmp_path).items) == 0


def test_a_folder_without_catalogue_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="hindcast import"):
        read_catalogue(tmp_path)


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    write_catalogue(Catalogue(items=items(["a"])), tmp_path)
    path = tmp_path / "items.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DamagedArtifact, match=r"items\.parquet"):
        read_catalogue(tmp_path)


@pytest.mark.parametrize(
    ("table", "field", "message"),
    [
        (lambda: items(["a", "a"]), "items.item_id", "several rows"),
        (lambda: items([""]), "items.item_id", "empty"),
        (lambda: items(["a"], price=[-1.0]), "items.price", "below 0"),
        (lambda: items(["a"], price=[np.inf]), "items.price", "not finite"),
        (lambda: items(["a"], title=[None]), "items.title", "null"),
        (lambda: items(["a"]).drop_columns(["price"]), "items", "missing column price"),
        (lambda: items(["a"]).append_column("colour", pa.array([1])), "items", "unknown column colour"),
        (lambda: items(["a"]).set_column(3, "category", pa.array([["x"]])), "items.category", "must be string"),
        (lambda: items(["a"]).set_column(1, "item", pa.array([1], pa.uint64())), "items.item", "not the hash"),
    ],
)
def test_wrong_items_are_refused_and_the_column_is_named(table: Any, field: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as caught:
        Catalogue(items=table()).validated()
    assert caught.value.field == f"catalogue.{field}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"message_class": ["spam"]}, "'spam' is not one of transactional"),
        ({"delivery": ["pigeon"]}, "pigeon"),
        ({"channels": [["push", "fax"]]}, "fax"),
        ({"item_id": ["gone"]}, "no item has id 'gone'"),
    ],
)
def test_wrong_campaigns_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        Catalogue(items=items(["a"]), campaigns=campaigns(["c"], **changes)).validated()


def test_a_refused_catalogue_changes_nothing_on_disk(tmp_path: Path) -> None:
    write_catalogue(Catalogue(items=items(["a"])), tmp_path)
    with pytest.raises(InvalidInput):
        write_catalogue(Catalogue(items=items(["b", "b"])), tmp_path)
    assert pq.read_table(tmp_path / "items.parquet")["item_id"].to_pylist() == ["a"]
