"""`hindcast ledger`: looks without owning, says what it finds."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from hindcast.commands import ledger as command
from serve_app.errors import InvalidInput, UnknownIdentifier
from serve_app.ids import hash_id
from serve_app.ledger.opening import ledger_path, open_ledger
from serve_app.ledger.protocol import Consent, UserChanges
from serve_app.log.reader import read_log
from tests.unit.ledger_support import NOW, commit_one, real_record

app = typer.Typer()
command.register(app)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    ledger = open_ledger(tmp_path, durability="process")
    user = hash_id("minji")
    changes = UserChanges(consent_ad=Consent(NOW, NOW, "form 7"), zone="Asia/Seoul", region="KR", reachable=0b101)
    ledger.put_user(user, changes)
    commit_one(ledger, user, 11, grants=2, records=[real_record(user, 11)])
    ledger.close()
    return tmp_path


def run(*arguments: str):
    return CliRunner().invoke(app, ["ledger", *arguments])


def test_a_sound_ledger_is_said_to_be_sound(data: Path) -> None:
    result = run("check", "--data", str(data))
    assert (result.exit_code, result.output.strip().endswith("1 users, sound")) == (0, True)


def test_damage_is_named_and_ends_with_an_error(data: Path) -> None:
    with sqlite3.connect(ledger_path(data)) as connection:
        connection.execute("UPDATE blocks SET body = zeroblob(length(body))")
    connection.close()
    result = run("check", "--data", str(data))
    assert result.exit_code == 1
    assert "fails its checksum" in result.output


def test_a_user_is_shown_with_consents_and_grants(data: Path) -> None:
    output = run("show", "minji", "--data", str(data)).output
    for text in ("zone Asia/Seoul, region KR", "proof: form 7", "reachable by push, email", "at night: none", "last 2 of 2"):
        assert text in output
    assert f"{11:016x}" in output  # whole, however narrow the terminal


def test_an_unknown_user_is_an_error(data: Path) -> None:
    with pytest.raises(UnknownIdentifier, match="knows no user 'nobody'"):
        CliRunner().invoke(app, ["ledger", "show", "nobody", "--data", str(data)], catch_exceptions=False)


def test_a_snapshot_is_written_beside_the_owner(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path, durability="process")
    for request in (1, 2):
        commit_one(ledger, 5, request, records=[real_record(5, request)], at=NOW + request)
    result = run("snapshot", "--data", str(tmp_path), "--day", "2027-01-01")
    assert result.exit_code == 0, result.output
    assert "1 users as of 2027-01-01" in result.output
    (row,) = read_log(tmp_path, "ledger_snapshot").to_pylist()
    assert [one["request_id"] for one in row["sends"]] == [1, 2]
    assert row["version"] == 2
    ledger.close()
    with pytest.raises(InvalidInput, match="not a day"):
        CliRunner().invoke(app, ["ledger", "snapshot", "--data", str(tmp_path), "--day", "x"], catch_exceptions=False)
