"""Whatever is wrong with a log, `hindcast replay` says so by name, or leaves it out and counts it in the report."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from serve_app.log.erasure import erase_user
from serve_app.log.snapshot import commit, load_snapshot
from serve_app.vocabulary import Surface
from simulators.world.publish import BEHAVIOUR, publish
from simulators.world.settings import world_settings
from tests.command_line import Done, hindcast
from tests.unit.bad_logs import changed, files_of, with_column

Spoil = Callable[[Path], object]
DECIDED = ("requests", "candidates", "decisions")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("world") / "data"
    publish(world_settings(users=40, items=40, days=4, seed=3), data)
    return data


@pytest.fixture
def data(world: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(world, tmp_path / "data"))


def replay(data: Path, *arguments: object, policy: Path = BEHAVIOUR) -> Done:
    return hindcast("replay", "--log", data, "--policy", policy, "--out", data.parent / "out", "--in-process", *arguments)


def report(data: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((data.parent / "out" / "report.json").read_text())
    return found


def twice(*tables: str) -> Spoil:
    return lambda data: [changed(data, one, lambda rows: pa.concat_tables([rows, rows])) for one in tables]


def without_the_first(table: str) -> Spoil:
    return lambda data: changed(data, table, lambda rows: rows.slice(1))


def without_the_second_day(*tables: str) -> Spoil:
    def spoil(data: Path) -> None:
        snapshot = load_snapshot(data)
        day = sorted({one.day for one in snapshot.files if one.table == "requests"})[1]
        snapshot.files = [one for one in snapshot.files if one.day != day or one.table not in tables]
        commit(data, snapshot)

    return spoil


def of_version(text: str, table: str) -> Spoil:
    def spoil(data: Path) -> None:
        path = files_of(data, table)[0]
        pq.write_table(pq.read_table(path).replace_schema_metadata({"schema_version": text}), path)

    return spoil


def cut_short(table: str) -> Spoil:
    def spoil(data: Path) -> None:
        path = files_of(data, table)[0]
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return spoil


def gone(table: str) -> Spoil:
    return lambda data: files_of(data, table)[0].unlink()


def no_documents(data: Path) -> None:
    shutil.rmtree(data / "policies")
    (data / "world" / "behaviour.json").unlink()


def two_revisions_nobody_has(data: Path) -> None:
    def change(rows: pa.Table) -> pa.Table:
        texts = ["a" * 20 if place % 2 else "b" * 20 for place in range(len(rows))]
        place = rows.column_names.index("policy_revision")
        return rows.set_column(place, rows.schema.field(place), pa.array(texts).dictionary_encode())

    changed(data, "requests", change)
    no_documents(data)


def no_notifications(data: Path) -> None:
    for table in ("requests", "decisions"):
        changed(data, table, lambda rows: rows.filter(pc.not_equal(rows["surface"], int(Surface.notification))))
    changed(data, "candidates", lambda rows: rows.filter(pc.equal(rows["channel"], -1)))


def snapshot_torn(data: Path) -> None:
    (data / "log" / "snapshot.json").write_text('{"sequence": 1')


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda data: shutil.rmtree(data / "log"), ["log:", "no compacted requests", "hindcast log compact"]),
        (snapshot_torn, ["snapshot.json is not a log snapshot", "backup"]),
        (no_notifications, ["log:", "no notification that a policy decided"]),
        (twice(*DECIDED), ["log.requests:", "requests stand twice", "copied"]),
        (twice("requests"), ["log.requests:", "requests stand twice"]),
        (twice("candidates"), ["log.candidates:", "has more candidates than it was decided over"]),
        (twice("decisions"), ["log.decisions:", "has not one decision for each of its sends"]),
        (without_the_first("requests"), ["is not among the requests"]),
        (without_the_first("candidates"), ["log.candidates:", "has lost candidates"]),
        (without_the_first("decisions"), ["log.decisions:"]),
        (without_the_second_day("candidates"), ["log.candidates:", "has lost candidates"]),
        (without_the_second_day("decisions"), ["log.decisions:", "has no decision", "more like it"]),
        (of_version("9", "requests"), ["log.schema_version:", "schema version 9, this code reads", "use the version"]),
        (of_version("none", "events"), ["log.schema_version:", "schema version none"]),
        (of_version("1", "requests"), ["log:", "is not readable"]),
        (cut_short("requests"), ["requests/day=", "is not readable", "restore or rebuild"]),
        (cut_short("events"), ["events/day=", "is not readable"]),
        (gone("candidates"), ["candidates/day=", "is not readable"]),
        (no_documents, ["baseline:", "whose document is not in this data folder", "--baseline FILE"]),
        (two_revisions_nobody_has, ["baseline:", "a" * 20, "--baseline FILE"]),
    ],
)
def test_a_log_that_cannot_be_replayed_says_why(data: Path, spoil: Spoil, words: list[str]) -> None:
    spoil(data)
    done = replay(data)
    assert done.exit_code == 2, done.text
    for one in words:
        assert one in done.err
    assert not (data.parent / "out" / "report.json").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--from", "2030-01-01"], ["--from, --to:", "none of the", "lies in the window"]),
        (["--from", "soon"], ["--from/--to", "is no date"]),
        (["--baseline", "nowhere.yaml"], ["nowhere.yaml"]),
        (["--start", "sometimes"], ["--start", "switch, steady"]),
    ],
)
def test_what_cannot_be_asked_is_refused(data: Path, arguments: list[str], words: list[str]) -> None:
    done = replay(data, *arguments)
    assert done.exit_code == 2, done.text
    for one in words:
        assert one in done.err


def test_a_head_that_was_not_logged_is_named(data: Path, tmp_path: Path) -> None:
    asks = tmp_path / "asks.yaml"
    asks.write_text(BEHAVIOUR.read_text().replace("uplift: 2.0}", "uplift: 2.0, p_regret: 1.0}"))
    done = replay(data, policy=asks)
    assert done.exit_code == 2, done.text
    assert "p_regret" in done.err
    assert "--release" in done.err


@pytest.mark.parametrize("name", ["logged", "logged again", "other/behaviour"])
def test_a_policy_is_not_called_what_something_else_is(data: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{name}.yaml"
    path.parent.mkdir(exist_ok=True)
    shutil.copy(BEHAVIOUR, path)
    done = replay(data, "--policy", path)
    assert done.exit_code == 2, done.text
    assert "policy:" in done.err
    assert "rename the file" in done.err


def impossible(value: float) -> Spoil:
    """Probabilities of the first sends are that value."""

    def change(rows: pa.Table) -> pa.Table:
        p, sent = rows["p_choice"].to_numpy().copy(), np.flatnonzero(rows["slot"].to_numpy() == 0)[:2]
        p[sent] = value
        place = rows.column_names.index("p_choice")
        return rows.set_column(place, rows.schema.field(place), pa.array(p))

    return lambda data: changed(data, "candidates", change)


@pytest.mark.parametrize(
    ("value", "fault"), [(np.nan, "propensity_missing"), (0.0, "propensity_zero"), (1.5, "propensity_above_one")]
)
def test_an_impossible_probability_is_a_mismatch_and_left_out_of_estimates(data: Path, value: float, fault: str) -> None:
    impossible(value)(data)
    done = replay(data)
    assert done.exit_code == 13, done.text
    assert "verdict: parity" in done.err
    found = report(data)
    lost = found["parity"]["requests"] - found["parity"]["same"]
    assert lost > 0
    assert found["parity"]["columns"]["p_choice"] == lost
    assert found["parity"]["examples"][0]["column"] == "p_choice"
    assert found["left_out"]["excluded"][fault] > 0
    assert f"{fault.replace('_', ' ')}" in (data.parent / "out" / "report.html").read_text()
    assert replay(data, "--allow-mismatch").exit_code == 0


def test_a_day_that_is_missing_in_the_middle_is_told_and_stops_the_run(data: Path) -> None:
    without_the_second_day(*DECIDED)(data)
    done = replay(data)
    assert done.exit_code == 13, "histories lack what the server knew"
    found = report(data)["left_out"]
    assert [one["table"] for one in found["missing"]] == ["candidates", "decisions", "requests"]
    assert {one["found"] for one in found["missing"]} == {0}
    assert "requests of" in done.err
    assert "are not in the log any more" in (data.parent / "out" / "report.html").read_text()


def test_lost_events_are_told_though_every_decision_comes_out_again(data: Path) -> None:
    without_the_second_day("events")(data)
    done = replay(data)
    assert done.exit_code == 0, done.text
    assert [one["table"] for one in report(data)["left_out"]["missing"]] == ["events"]
    assert "warning:" in done.err


def test_rows_out_of_order_and_events_that_stand_twice_change_nothing(data: Path, world: Path, tmp_path: Path) -> None:
    whole = Path(shutil.copytree(world, tmp_path / "whole" / "data"))
    assert replay(whole).exit_code == 0
    draws = np.random.default_rng(5)
    events = sum(len(pq.read_table(one)) for one in files_of(data, "events"))
    twice("events")(data)
    for table in (*DECIDED, "events"):
        changed(data, table, lambda rows: rows.take(pa.array(draws.permutation(len(rows)))))
    assert replay(data).exit_code == 0
    found, expected = report(data), report(whole)
    assert found["left_out"].pop("copies_of_events") == events
    assert expected["left_out"].pop("copies_of_events") == 0
    for key in ("volume", "outcomes", "reasons", "parity", "left_out", "incrementality"):
        assert found[key] == expected[key], key
    assert "events that stood twice" in (data.parent / "out" / "report.html").read_text()


def test_erased_users_are_in_no_number(data: Path) -> None:
    users = np.unique(np.concatenate([pq.read_table(one)["user"].to_numpy() for one in files_of(data, "decisions")]))
    assert replay(data).exit_code == 0
    before = report(data)["volume"][0]["users"]
    asked = {*users.tolist()}
    for user in users[:3].tolist():
        erase_user(data, user, 2**62)
    assert replay(data).exit_code == 0
    after = report(data)
    assert before - 3 <= after["volume"][0]["users"] < before <= len(asked)
    assert after["parity"]["same"] == after["parity"]["requests"]


def test_a_log_of_the_first_schema_is_brought_up_to_date(data: Path) -> None:
    """Zones and regions as indices, no count of refunds: what version 1 wrote (see `serve_app.log.migrations`)."""
    from serve_app.log.migrations import schema_as_of
    from serve_app.policy.zones import zone_index
    from serve_app.regions import region_index

    assert replay(data).exit_code == 0
    expected = report(data)
    numbers = {"zone": zone_index, "region": region_index}
    for table in ("requests", "ledger_snapshot"):
        then = schema_as_of(table, 1)
        for path in files_of(data, table):
            rows = pq.read_table(path)
            for name, index_of in numbers.items() if table == "requests" else ():
                codes = [index_of(one) if one else -1 for one in rows[name].to_pylist()]
                rows = rows.set_column(rows.column_names.index(name), name, pa.array(codes, pa.int16()))
            old = rows.select(then.names).cast(then)
            pq.write_table(old.replace_schema_metadata({"schema_version": "1"}), path)
    shutil.rmtree(data / "replay-packs")
    shutil.rmtree(data.parent / "out")
    assert replay(data).exit_code == 0
    for key in ("volume", "reasons", "parity"):
        assert report(data)[key] == expected[key], key


def test_the_column_helper_changes_what_it_says(data: Path) -> None:
    changed(data, "decisions", with_column("p_none", lambda values: np.full_like(values, 0.5)))
    assert {one for path in files_of(data, "decisions") for one in pq.read_table(path)["p_none"].to_pylist()} == {0.5}
