"""Estimates over Ray Data: shares, a shuffle, grouped files, a dataset in memory: the same sums to the byte."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serve_app.errors import InvalidInput
from simulators.estimators.dataset import estimate_dataset, estimate_table
from tests.unit.estimator_support import columns
from tests.unit.test_estimator_dataset import COLUMNS, bytes_of, table_of


@pytest.fixture
def table(ray_cluster: object) -> pa.Table:
    return table_of(columns(51, 300))


def write_parts(folder: Path, table: pa.Table, cuts: list[int]) -> Path:
    folder.mkdir()
    for k, (start, end) in enumerate(pairwise([0, *cuts, len(table)])):
        pq.write_table(table.slice(start, end - start), folder / f"{k}.parquet")
    return folder


def test_however_rows_come_the_sums_are_the_same_bytes(
    table: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray.data

    expected = bytes_of(estimate_table(table, COLUMNS))
    order = np.random.default_rng(2).permutation(len(table))
    mixed = table.take(order)
    folder = write_parts(tmp_path / "mixed", mixed, [len(table) // 3, 2 * len(table) // 3])
    turned = table.take(order[np.argsort(table["user"].to_numpy()[order], kind="stable")])
    pq.write_table(turned, tmp_path / "grouped.parquet")
    assert bytes_of(estimate_dataset(tmp_path / "grouped.parquet", COLUMNS, grouped=True)) == expected
    assert bytes_of(estimate_dataset(folder, COLUMNS)) == expected
    assert bytes_of(estimate_dataset(folder, COLUMNS, partitions=3)) == expected
    monkeypatch.setattr("simulators.estimators.dataset._READS", 1)
    assert bytes_of(estimate_dataset(folder, COLUMNS, partitions=3)) == expected
    assert bytes_of(estimate_dataset(ray.data.from_arrow(mixed), COLUMNS, partitions=2)) == expected


def test_users_written_in_several_ways_are_not_torn_by_a_shuffle(
    table: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simulators.estimators.dataset._READS", 1)
    users = pa.array(table["user"].to_numpy() % 30_000)
    small = table.set_column(0, "user", users)
    half = len(table) // 2
    mixed = small.take(np.random.default_rng(3).permutation(len(table)))
    folder = write_parts(tmp_path / "parts", mixed, [half])
    narrow = mixed.slice(0, half)
    pq.write_table(narrow.set_column(0, "user", narrow["user"].cast(pa.int16())), folder / "0.parquet")
    assert bytes_of(estimate_dataset(folder, COLUMNS, partitions=3)) == bytes_of(estimate_table(small, COLUMNS))


def test_a_user_in_two_grouped_files_is_an_error(table: pa.Table, tmp_path: Path) -> None:
    users = table["user"].to_numpy()
    inside = int(np.flatnonzero(users[1:] == users[:-1])[50]) + 1
    with pytest.raises(InvalidInput, match="one user came in several parts"):
        estimate_dataset(write_parts(tmp_path / "torn", table, [inside]), COLUMNS, grouped=True)


def test_an_error_in_a_task_says_what_is_wrong_in_our_words(table: pa.Table, tmp_path: Path) -> None:
    named = table.set_column(4, "click", pa.array(["a text"] * len(table)))
    pq.write_table(named, tmp_path / "rows.parquet")
    with pytest.raises(InvalidInput, match="holds no numbers") as caught:
        estimate_dataset(tmp_path / "rows.parquet", COLUMNS)
    assert caught.value.field == "click"


def test_a_dataset_cannot_be_taken_for_grouped(table: pa.Table) -> None:
    import ray.data

    data = ray.data.from_arrow(table)
    with pytest.raises(InvalidInput, match="do not say where users end"):
        estimate_dataset(data, COLUMNS, grouped=True)
    with pytest.raises(InvalidInput, match="no such column"):
        estimate_dataset(data, replace(COLUMNS, user="absent"))
    with pytest.raises(InvalidInput, match="whole numbers or texts"):
        estimate_dataset(data, replace(COLUMNS, user="revenue"))
