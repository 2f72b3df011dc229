"""The zone table against zoneinfo, and wall clock times that come twice or never."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from serve_app.errors import InvalidInput
from serve_app.policy.zones import (
    UNKNOWN_ZONE,
    local_day,
    local_second_of_day,
    utc_of_local,
    zone_index,
    zone_name,
    zone_table,
)
from serve_app.regions import UNKNOWN_REGION, region_index, region_name
from tests.unit.decision_support import DAY, SECOND, at, zone

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def test_local_time_equals_zoneinfo_in_every_zone() -> None:
    rng = np.random.default_rng(5)
    for index, name in enumerate(zone_table().names):
        times = rng.integers(0, 4_100_000_000, 40)  # 1970 to 2099
        days, seconds = local_day(times * SECOND, index), local_second_of_day(times * SECOND, index)
        for ts, day, second in zip(times.tolist(), days.tolist(), seconds.tolist(), strict=True):
            wall = (EPOCH + timedelta(seconds=ts)).astimezone(zone(name)).replace(tzinfo=None)
            assert wall == datetime(1970, 1, 1) + timedelta(days=day, seconds=second), name


@pytest.mark.parametrize("name", ["America/New_York", "Australia/Lord_Howe", "Africa/Casablanca", "Asia/Seoul", "Asia/Gaza"])
def test_every_second_round_a_switch_comes_back_from_its_wall_clock(name: str) -> None:
    index, table = zone_index(name), zone_table()
    rows = slice(table.first[index] + 1, table.first[index + 1])
    switches = [int(start) for start in table.starts[rows] if 0 < start < at("2030-01-01T00:00:00")][-12:]
    for switch in switches:
        times = switch + np.arange(-3 * 3600, 3 * 3600, 97) * SECOND
        days, seconds = local_day(times, index), local_second_of_day(times, index)
        early, late = (utc_of_local(days, seconds, index, later=later) for later in (False, True))
        assert ((early == times) | (late == times)).all()
        assert (early <= late).all()


def test_a_time_that_never_comes_is_the_moment_of_the_jump() -> None:
    index, day = zone_index("America/New_York"), 20_520  # 2026-03-08
    jump = at("2026-03-08T03:00:00", "America/New_York")
    assert utc_of_local(day, 2 * 3600 + 1800, index).tolist() == [jump]
    assert utc_of_local(day, 2 * 3600 + 1800, index, later=False).tolist() == [jump]


def test_a_day_that_never_came_in_apia_is_skipped() -> None:
    index = zone_index("Pacific/Apia")
    times = at("2011-12-29T12:00:00", "Pacific/Apia") + np.arange(3) * DAY
    assert np.diff(local_day(times, index)).tolist() == [2, 1]


def test_names_and_indices_are_each_others_inverse_and_wrong_ones_are_refused() -> None:
    assert all(zone_index(zone_name(i)) == i for i in range(len(zone_table().names)))
    assert zone_name(UNKNOWN_ZONE) == ""
    with pytest.raises(InvalidInput, match="'Mars/Olympus' is not a time zone"):
        zone_index("Mars/Olympus")
    with pytest.raises(InvalidInput, match="out of range"):
        local_day(np.zeros(2, np.int64), np.array([0, 30_000], np.int16))


def test_regions_need_no_table() -> None:
    assert region_name(region_index("kr")) == "KR"
    assert region_index("KR") == region_index("kr")
    assert region_name(UNKNOWN_REGION) == ""
    for bad in ("KOR", "k", "", "ß1"):
        with pytest.raises(InvalidInput, match="is not a region"):
            region_index(bad)
