"""API keys: closed without one, scoped, expiring, rotated while the server runs."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from serve_app.errors import DamagedArtifact
from serve_app.ingress.auth import KeyRing, Scope
from serve_app.ingress.problems import ProblemError

NOW = 1_800_000_000_000_000


def keys(path: Path, *entries: dict[str, Any]) -> Path:
    path.write_text(json.dumps(list(entries)))
    return path


def key(secret: str, *scopes: str, **more: Any) -> dict[str, Any]:
    return {"name": secret, "sha256": hashlib.sha256(secret.encode()).hexdigest(), "scopes": list(scopes), **more}


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


def refused(ring: KeyRing, headers: dict[str, str], scope: Scope) -> int:
    with pytest.raises(ProblemError) as error:
        ring.authorize(headers, scope, NOW)
    assert error.value.problem.field == "Authorization"
    return error.value.problem.status


def test_loopback_without_a_file_needs_no_key() -> None:
    assert KeyRing(None).authorize({}, Scope.decide, NOW).name == "local"


def test_operators_calls_need_the_token_even_on_loopback() -> None:
    ring = KeyRing(None, "token")
    assert refused(ring, {}, Scope.admin) == 401
    assert ring.authorize(bearer("token"), Scope.admin, NOW).name == "operator"


def test_a_key_opens_its_scopes_and_no_other(tmp_path: Path) -> None:
    ring = KeyRing(keys(tmp_path / "keys.json", key("shop", "read", "events")))
    assert ring.authorize(bearer("shop"), Scope.read, NOW).name == "shop"
    assert ring.authorize({"x-api-key": "shop"}, Scope.events, NOW).name == "shop"
    assert refused(ring, bearer("shop"), Scope.decide) == 403


@pytest.mark.parametrize("headers", [{}, bearer("wrong"), bearer(""), {"authorization": "Basic shop"}, bearer("\ud800")])
def test_no_key_or_a_wrong_one_is_refused(tmp_path: Path, headers: dict[str, str]) -> None:
    assert refused(KeyRing(keys(tmp_path / "keys.json", key("shop", "read"))), headers, Scope.read) == 401


def test_an_expired_key_is_refused(tmp_path: Path) -> None:
    path = keys(tmp_path / "keys.json", key("old", "read", expires_at="2020-01-01T00:00:00Z"))
    assert refused(KeyRing(path), bearer("old"), Scope.read) == 401


def test_keys_rotate_without_a_restart_and_a_broken_file_changes_nothing(tmp_path: Path) -> None:
    path = keys(tmp_path / "keys.json", key("first", "read"))
    ring = KeyRing(path)
    keys(path, key("second", "read", "decide"))
    os.utime(path, ns=(1, 1))
    assert ring.authorize(bearer("second"), Scope.decide, NOW).name == "second"
    assert refused(ring, bearer("first"), Scope.read) == 401
    path.write_text("[{")
    assert ring.authorize(bearer("second"), Scope.read, NOW).name == "second"


def test_a_broken_file_at_the_start_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text('[{"name": "x", "sha256": "short", "scopes": ["read"]}]')
    with pytest.raises(DamagedArtifact, match=r"keys\.json"):
        KeyRing(path)
