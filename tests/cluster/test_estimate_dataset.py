"""Estimates over Ray Data: shuffled, grouped, few rows, a dataset in memory: the same sums to the byte."""

from __future__ import annotations

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

pytestmark = pytest.mark.cluster


@pytest.fixture
def table(ray_cluster: object) -> pa.Table:
    return table_of(columns(51, 300))


def test_however_rows_come_the_sums_are_the_same_bytes(table: pa.Table, tmp_path: Path) -> None:
    import ray.data

    expected = bytes_of(estimate_table(table, COLUMNS))
    mixed = table.take(np.random.default_rng(2).permutation(len(table)))
    (tmp_path / "mixed").mkdir()
    cuts = [0, len(table) // 3, 2 * len(table) // 3, len(table)]
    for k, (start, end) in enumerate(pairwise(cuts)):
        pq.write_table(mixed.slice(start, end - start), tmp_path / f"mixed/{k}.parquet")
    pq.write_table(table, tmp_path / "grouped.parquet")
    assert bytes_of(estimate_dataset(tmp_path / "mixed", COLUMNS)) == expected
    assert bytes_of(estimate_dataset(tmp_path / "mixed", COLUMNS, partitions=4)) == expected
    assert bytes_of(estimate_dataset(tmp_path / "grouped.parquet", COLUMNS, grouped=True)) == expected
    assert bytes_of(estimate_dataset(ray.data.from_arrow(mixed), COLUMNS, partitions=3)) == expected


def test_a_dataset_cannot_be_taken_for_grouped(table: pa.Table) -> None:
    import ray.data

    with pytest.raises(InvalidInput, match="do not say where users end"):
        estimate_dataset(ray.data.from_arrow(table), COLUMNS, grouped=True)
