"""Rows of any system's log: columns by name, faults counted, files in any order, the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from serve_app.errors import InvalidInput
from simulators.estimators import IPS, SNIPS, Per, Suite
from simulators.estimators.dataset import (
    RowColumns,
    _keyed,
    _of_block,
    _of_grouped,
    _of_share,
    _read,
    estimate_table,
    parquet_files,
)
from tests.unit.estimator_support import POLICIES, columns, rows_of

COLUMNS = RowColumns(
    "propensity", {one: f"pi_{one}" for one in POLICIES}, {"click": "click", "revenue": "revenue"}, user="user",
    send="send", target_send={one: f"send_{one}" for one in POLICIES},
)  # fmt: skip


def table_of(found: dict[str, np.ndarray]) -> pa.Table:
    return pa.table(
        {
            "user": found["user"],
            "propensity": found["propensity"],
            **{f"pi_{one}": found["target"][:, k] for k, one in enumerate(POLICIES)},
            "click": found["reward"][:, 0],
            "revenue": found["reward"][:, 1],
            "send": found["send"],
            **{f"send_{one}": found["target_send"][:, k] for k, one in enumerate(POLICIES)},
        }
    )


def bytes_of(suite: Suite) -> bytes:
    return b"".join(array.tobytes() for _, array in sorted(suite.to_arrays().items()))


def test_named_columns_give_what_checked_rows_give() -> None:
    found = columns(31, 80)
    direct = Suite([IPS(POLICIES, ("click", "revenue")), SNIPS(POLICIES, ("click", "revenue"))])
    direct.update(rows_of({k: v for k, v in found.items() if k not in ("q_logged", "q_target", "groups", "extra")}))
    suite = estimate_table(table_of(found), COLUMNS)
    for label in ("ips", "snips"):
        (value, interval), (other, expected) = (one[label].interval("bold", "revenue", Per.send) for one in (suite, direct))
        assert (value, interval.low, interval.high) == pytest.approx((other, expected.low, expected.high), rel=1e-12)


def test_the_order_of_rows_changes_no_byte() -> None:
    table = table_of(columns(32, 60))
    mixed = table.take(np.random.default_rng(3).permutation(len(table)))
    assert bytes_of(estimate_table(mixed, COLUMNS)) == bytes_of(estimate_table(table, COLUMNS))


def test_rows_that_differ_only_in_what_a_target_would_do_have_an_order_of_their_own() -> None:
    table = table_of(columns(42, 25))
    for name in ("propensity", "click", "revenue"):  # what rows without a reward have in common
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(np.full(len(table), 0.3)))
    expected = bytes_of(estimate_table(table, COLUMNS))
    for seed in range(5):
        mixed = table.take(np.random.default_rng(seed).permutation(len(table)))
        assert bytes_of(estimate_table(mixed, COLUMNS)) == expected


def test_a_user_of_many_rows_is_ordered_too() -> None:
    table = table_of(columns(43, 3, most=4000))
    assert len(table) > 1000
    mixed = table.take(np.random.default_rng(1).permutation(len(table)))
    assert bytes_of(estimate_table(mixed, COLUMNS)) == bytes_of(estimate_table(table, COLUMNS))


def test_which_of_two_rows_with_one_identity_stays_does_not_depend_on_their_order() -> None:
    table = table_of(columns(44, 20))
    identity = pa.array(np.arange(len(table)) // 2)
    table = table.append_column("id", identity)
    named = replace(COLUMNS, row_id="id")
    mixed = table.take(np.arange(len(table))[::-1].copy())
    found = estimate_table(table, named)
    assert found.weights_of("ips", "bold").excluded["duplicated"] > 0
    assert bytes_of(estimate_table(mixed, named)) == bytes_of(found)


def test_a_user_has_one_bucket_however_it_is_written() -> None:
    table = table_of(columns(45, 30))
    small = pa.array(table["user"].to_numpy() % 1000)
    buckets = []
    for users in (small, small.cast(pa.int16()), small.cast(pa.int64()).dictionary_encode()):
        keyed = _keyed(table.set_column(0, "user", users), COLUMNS, 256)
        assert keyed["user"].to_pylist() == small.to_pylist()
        buckets.append(keyed.column(keyed.num_columns - 1).to_pylist())
    assert buckets[0] == buckets[1] == buckets[2]
    assert len(set(buckets[0])) > 10


def test_parts_of_whole_users_add_up_to_the_same_bytes() -> None:
    found = columns(33, 50)
    table = _keyed(table_of(found), COLUMNS, 8)
    cut = int(np.flatnonzero(np.diff(found["user"]))[20]) + 1
    empty = COLUMNS.suite(("ips", "snips"))
    parts = [_of_block(one, COLUMNS, ("ips", "snips")) for one in (table.slice(cut), table.slice(0, cut))]
    merged = _read(empty, parts[0]["sums"][0]) + _read(empty, parts[1]["sums"][0])
    assert bytes_of(merged) == bytes_of(estimate_table(table, COLUMNS))
    assert sum(one["rows"][0] for one in parts) == len(table)


@pytest.mark.parametrize("shares", [1, 2, 5])
def test_shares_of_the_users_of_several_files_add_up_to_the_same_bytes(
    shares: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simulators.estimators.dataset._READ_AT_ONCE", 9)
    table = table_of(columns(40, 30))
    users = [None if row % 11 == 0 else user for row, user in enumerate(table["user"].to_pylist())]
    table = table.set_column(0, "user", pa.array(users, pa.uint64()))
    for name, part in (("one", table.slice(0, 17)), ("two", table.slice(17)), ("three", table.slice(0, 0))):
        pq.write_table(part, tmp_path / f"{name}.parquet")
    files, total, rows = parquet_files(tmp_path), COLUMNS.suite(("ips", "snips")), 0
    for share in range(shares):
        found = _of_share({"share": share}, files, COLUMNS, shares, ("ips", "snips"))
        total, rows = total + _read(total, found["sums"]), rows + found["rows"]
    assert bytes_of(total) == bytes_of(estimate_table(table, COLUMNS))
    assert rows == len(table)


def test_a_grouped_file_is_read_in_pieces_that_tear_no_user_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = table_of(columns(34, 70))
    pq.write_table(table, tmp_path / "one.parquet")
    whole = _of_grouped({"file": str(tmp_path / "one.parquet")}, COLUMNS, ("ips",))
    monkeypatch.setattr("simulators.estimators.dataset._BATCH", 7)
    pieces = _of_grouped({"file": str(tmp_path / "one.parquet")}, COLUMNS, ("ips",))
    assert pieces["rows"] == len(table)
    assert pieces["sums"] == whole["sums"]


def test_a_grouped_file_with_a_torn_user_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = table_of(columns(35, 40))
    pq.write_table(pa.concat_tables([table, table.slice(0, 1)]), tmp_path / "torn.parquet")
    monkeypatch.setattr("simulators.estimators.dataset._BATCH", 16)
    found = _of_grouped({"file": str(tmp_path / "torn.parquet")}, COLUMNS, ("ips",))
    assert "not next to each other" in found["error"]
    assert found["sums"] == b""


def test_bad_rows_are_left_out_and_counted_by_fault() -> None:
    found = columns(36, 50)
    found["propensity"][3], found["propensity"][5], found["target"][7, 0] = 0.0, np.nan, 1.5
    table = table_of(found)
    users = table["user"].to_pylist()
    users[9] = None
    table = table.set_column(0, "user", pa.array(users, pa.uint64()))
    suite = estimate_table(table, COLUMNS)
    left_out = suite.weights_of("ips", "bold").excluded
    assert left_out == {"propensity_zero": 1, "propensity_missing": 1, "target_out_of_range": 1, "user_missing": 1}


def test_users_may_be_texts() -> None:
    found = columns(37, 40)
    table = table_of(found)
    named = table.set_column(0, "user", pa.array([f"user {one}" for one in found["user"]]))
    of_texts, of_numbers = estimate_table(named, COLUMNS), estimate_table(table, COLUMNS)
    assert of_texts["ips"].interval("bold", "click") == of_numbers["ips"].interval("bold", "click")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"propensity": "absent"}, "no such column"),
        ({"user": "revenue"}, "whole numbers or texts"),
        ({"target_send": {"quiet": "send_quiet"}}, "no column is named for 'bold'"),
    ],
)
def test_what_is_wrong_with_columns_is_named(given: dict[str, object], message: str) -> None:
    wrong = RowColumns(**{**{name: getattr(COLUMNS, name) for name in COLUMNS.__dataclass_fields__}, **given})
    with pytest.raises(InvalidInput, match=message):
        estimate_table(table_of(columns(38, 20)), wrong)


def test_an_estimator_without_its_columns_is_named() -> None:
    with pytest.raises(InvalidInput, match="no estimator 'best'"):
        COLUMNS.suite(("best",))
    with pytest.raises(InvalidInput, match="dr needs the outcome model"):
        COLUMNS.suite(("dr",))


def test_the_command_prints_and_writes_what_the_rows_say(tmp_path: Path) -> None:
    from hindcast.cli import _register, app

    _register()
    folder = tmp_path / "rows"
    folder.mkdir()
    table = table_of(columns(39, 1500))
    pq.write_table(table.slice(0, 1000), folder / "b.parquet")
    pq.write_table(table.slice(1000), folder / "a.parquet")
    assert len(parquet_files(folder)) == 2
    asked = [
        "estimate", "--rows", str(folder), "--propensity", "propensity", "--target", "bold=pi_bold",
        "--target", "same=propensity", "--control", "same",
        "--reward", "click", "--user", "user", "--out", str(tmp_path / "said.json"), "--in-process",
    ]  # fmt: skip
    done = CliRunner().invoke(app, asked)
    said = json.loads((tmp_path / "said.json").read_text())
    found = {(one["estimator"], one["per"], one["versus"]): one for one in said["estimates"] if one["policy"] == "same"}
    assert said["weights"]["bold"]["users"] == 1500
    assert done.exit_code == 0
    assert found["ips", "decision", None]["low"] < found["ips", "decision", None]["value"]
    assert found["ips", "decision", None]["standing"] == "usable"
    assert all("value" not in one for one in said["estimates"] if one["standing"] == "refused")
    assert ("ips", "user", None) in found
    assert "bold" in done.output
    nothing = CliRunner().invoke(app, [*asked[:2], str(tmp_path / "none"), *asked[3:]])
    assert isinstance(nothing.exception, InvalidInput)
