"""`hindcast keys`: prints a key once, keeps its hash, lists and revokes."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from hindcast import cli
from serve_app.errors import InvalidInput
from serve_app.ingress.auth import KeyRing, Scope

NOW = 1_800_000_000_000_000


def keys(*arguments: str) -> Result:
    cli._register()
    return CliRunner().invoke(cli.app, ["keys", *arguments], catch_exceptions=False, env={"COLUMNS": "200"})


def test_a_key_is_printed_once_opens_and_is_revoked(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    made = keys(
        "new", "shop", "--file", str(file), "--scope", "read", "--scope", "events", "--per-s", "50", "--days", "3650"
    )
    secret = made.stdout.strip()
    assert len(secret) >= 40
    assert secret not in file.read_text()
    ring = KeyRing(file, recheck_s=0)
    assert ring.authorize({"authorization": f"Bearer {secret}"}, Scope.events, NOW).name == "shop"
    listed = keys("list", "--file", str(file)).stdout
    assert "shop" in listed
    assert "read events" in listed
    assert secret not in listed
    assert "revoked" in keys("revoke", "shop", "--file", str(file)).stdout
    assert file.read_text().strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "field"), [(["--scope", "reed"], "--scope"), (["--scope", "read", "--per-s", "-1"], "per_s")]
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, arguments: list[str], field: str) -> None:
    file = tmp_path / "keys.json"
    with pytest.raises(InvalidInput) as error:
        keys("new", "shop", "--file", str(file), *arguments)
    assert error.value.field == field
    assert not file.exists()
