"""What a release knows of its users: places by row, and histories, of one as of many."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from serve_app.catalogue import SCHEMAS, Catalogue, table_of
from serve_app.policy.zones import UNKNOWN_ZONE, zone_index
from serve_app.regions import UNKNOWN_REGION, region_index
from serve_app.release.histories import UserHistories
from serve_app.release.rows import CatalogueRows, in_row_order

PLACES = [("Asia/Seoul", "KR"), ("", ""), ("Europe/Paris", "fr"), ("Mars/Olympus", "KOREA"), ("Asia/Seoul", "")]


def rows(chunks: int) -> CatalogueRows:
    columns: dict[str, Any] = {"user_id": [f"u{at}" for at in range(len(PLACES))]}
    columns |= {"zone": [zone for zone, _ in PLACES], "region": [region for _, region in PLACES]}
    size = -(-len(PLACES) // chunks)
    columns["created_at"] = [0] * len(PLACES)
    whole = in_row_order(Catalogue(SCHEMAS["items"].empty_table(), table_of("users", columns)))
    parts = [whole.users.slice(start, size) for start in range(0, len(PLACES), size)]
    return CatalogueRows(replace(whole, users=pa.concat_tables(parts)))


@pytest.mark.parametrize("chunks", [1, 3])
def test_zone_and_region_by_row_and_none_for_row_minus_one(chunks: int) -> None:
    catalogue = rows(chunks)
    ids = catalogue.users["user_id"].to_pylist()
    for row, name in enumerate(ids):
        zone, region = PLACES[int(name[1:])]
        known = zone in ("Asia/Seoul", "Europe/Paris")
        assert catalogue.user_zones[row] == (zone_index(zone) if known else UNKNOWN_ZONE)
        assert catalogue.user_regions[row] == (region_index(region) if len(region) == 2 else UNKNOWN_REGION)
    assert catalogue.user_zones[np.array([-1], np.int32)].tolist() == [UNKNOWN_ZONE]
    assert catalogue.user_regions[np.array([-1], np.int32)].tolist() == [UNKNOWN_REGION]


def test_the_history_of_one_user_is_that_of_the_user_among_many() -> None:
    rng = np.random.default_rng(3)
    lengths, bought = np.array([0, 3, 1, 5]), np.array([2, 0, 4, 1])
    histories = UserHistories(
        np.r_[0, np.cumsum(lengths)],
        rng.integers(0, 99, lengths.sum()).astype(np.int32),
        rng.integers(0, 10**15, lengths.sum()),
        np.r_[0, np.cumsum(bought)],
        rng.integers(0, 99, bought.sum()).astype(np.int32),
    )
    asked, at = np.array([3, -1, 0, 1, 2], np.int32), np.arange(5) * 10**14 + 10**15
    many = histories.requests(asked, at)
    for place in range(len(asked)):
        one = histories.requests(asked[place : place + 1], at[place : place + 1])
        for name, column in many.items():
            assert one[name].values.dtype == column.values.dtype
            assert one[name].values.tobytes() == column[place].tobytes(), name
            assert one[name].offsets.tolist() == [0, len(column[place])]
