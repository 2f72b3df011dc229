"""`hindcast import` and `hindcast log` from the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from hindcast.commands import importing, log
from serve_app.errors import InvalidInput
from serve_app.ids import hash_id
from serve_app.ledger.opening import ledger_path
from serve_app.ledger.sqlite import SqliteLedger
from serve_app.log.journal import Journal, journal_files
from serve_app.log.reader import read_log
from serve_app.log.rows import fill
from tests.unit.decision_support import compiled
from tests.unit.truth_support import asked, decide_on, user_of


@pytest.fixture
def app() -> typer.Typer:
    out = typer.Typer()
    importing.register(out)
    log.register(out)
    return out


@pytest.fixture
def clicks(tmp_path: Path) -> Path:
    (tmp_path / "train_sessions.csv").write_text("session_id,items\n0,1 2 1\n1,3\n")
    (tmp_path / "test_prefixes.csv").write_text("row_id,prefix,target\n0,1 2,3\n")
    return tmp_path


def _run(app: typer.Typer, *arguments: str | Path) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


def test_an_import_prints_its_counts_and_leaves_them_beside_the_log(app: typer.Typer, clicks: Path) -> None:
    data = clicks / "data"
    code, text = _run(app, "import", "sessions", "--from", clicks, "--data", data)
    assert code == 0
    assert "2 rows in" in text
    assert "synthetic" in text
    report = json.loads((data / "log" / "import.json").read_text())
    assert report["kept"] == {"session": 2}
    assert report["written"]["log.events"] == 4
    with pytest.raises(InvalidInput, match="not empty"):
        _run(app, "import", "sessions", "--from", clicks, "--data", data)
    assert _run(app, "import", "sessions", "--from", clicks, "--data", data, "--replace")[0] == 0


def test_the_log_is_shown_compacted_and_checked(app: typer.Typer, tmp_path: Path) -> None:
    with Journal(tmp_path, "w") as journal:
        for one in (1, 2):
            journal.append(
                {"events": fill("events", 1, {"user": np.array([one], np.uint64), "event_id": np.array([one], np.uint64)})}
            )
    assert _run(app, "log", "check", "--data", tmp_path)[0] == 0
    code, text = _run(app, "log", "compact", "--data", tmp_path)
    assert code == 0
    assert "events: 2 rows, 0 repeated" in text
    _, text = _run(app, "log", "show", "events", "--data", tmp_path, "--rows", "1")
    assert json.loads(text)["user"] == 1
    assert "events" in _run(app, "log", "show", "--data", tmp_path)[1]
    (path,) = (tmp_path / "log" / "events").glob("*/*/*.parquet")
    path.write_bytes(b"PAR1")
    code, text = _run(app, "log", "check", "--data", tmp_path)
    assert code == 1
    assert path.name in text.replace("\n", "")


def test_a_torn_journal_fails_the_check(app: typer.Typer, tmp_path: Path) -> None:
    with Journal(tmp_path, "w") as journal:
        journal.append({"events": fill("events", 1, {"user": np.ones(1, np.uint64)})})
    (name,) = journal_files(tmp_path)
    path = tmp_path / "journal" / name
    path.write_bytes(path.read_bytes()[:-1])
    code, text = _run(app, "log", "check", "--data", tmp_path)
    assert code == 1
    assert "torn" in text


def test_the_command_s_modules_import_nothing_heavy() -> None:
    code = (
        "import sys, hindcast.commands.log, hindcast.commands.importing;"
        "print('pandas' in sys.modules, 'pyarrow' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout.split() == ["False", "False"]


def test_compacting_copies_records_and_erasing_leaves_nothing(app: typer.Typer, tmp_path: Path) -> None:
    user, policy = hash_id("ann"), compiled()
    ledger = SqliteLedger(ledger_path(tmp_path), durability="process")
    decided = decide_on(ledger, policy, asked([user, user_of(1)], [policy]))
    ledger.close()
    code, text = _run(app, "log", "compact", "--data", tmp_path)
    assert code == 0
    assert "2 copied from the ledger, 0 already logged, 0 left for later" in text
    assert "ledger snapshot of today: 2 users" in text
    assert sorted(read_log(tmp_path, "decisions")["user"].to_pylist()) == sorted([user, user_of(1)])
    code, text = _run(app, "log", "erase", "ann", "--data", tmp_path)
    assert code == 0
    for table in ("requests", "candidates", "decisions", "ledger_snapshot"):
        assert set(read_log(tmp_path, table)["user"].to_pylist()) == {user_of(1)}
    for path in (tmp_path / "log").rglob("*.parquet"):
        rows = pq.read_table(path, partitioning=None)
        assert "user" not in rows.column_names or user not in rows["user"].to_pylist()
    again = SqliteLedger(ledger_path(tmp_path), durability="process")
    assert again.get_user(user) is None
    assert again.find_decision(user, int(decided.batch.requests["request_id"][0])) is None
    again.close()


def test_a_log_goes_by_a_store(app: typer.Typer, tmp_path: Path) -> None:
    data, copy, url = tmp_path / "data", tmp_path / "copy", f"file://{tmp_path}/store"
    event = {"user": np.array([1], np.uint64), "event_id": np.array([1], np.uint64)}
    with Journal(data, "w") as journal:
        journal.append({"events": fill("events", 1, event)})
        assert _run(app, "log", "compact", "--data", data)[0] == 0
        journal.append({"events": fill("events", 1, event)})
        _, text = _run(app, "log", "push", "--data", data, "--url", url)
    assert "files sent" in text
    assert "not among them" in text
    _, text = _run(app, "log", "pull", "--data", copy, "--url", url)
    assert "0 there already, 0 removed" in text
    assert _run(app, "log", "check", "--data", copy)[0] == 0
    _, text = _run(app, "log", "show", "events", "--data", copy)
    assert json.loads(text)["user"] == 1
