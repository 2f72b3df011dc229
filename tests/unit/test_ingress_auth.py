"""API keys: closed without one, scoped, expiring, rotated while the server runs."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from serve_app.errors import DamagedArtifact, InvalidInput, UnknownIdentifier
from serve_app.ingress import auth
from serve_app.ingress.auth import KeyRing, Scope
from serve_app.ingress.key_file import add_key, read_keys, remove_key
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
    ring = KeyRing(path, recheck_s=0)
    keys(path, key("second", "read", "decide"))
    os.utime(path, ns=(1, 1))
    assert ring.authorize(bearer("second"), Scope.decide, NOW).name == "second"
    assert refused(ring, bearer("first"), Scope.read) == 401
    path.write_text("[{")
    assert ring.authorize(bearer("second"), Scope.read, NOW).name == "second"


def test_keys_whose_file_is_gone_stay_in_force_and_that_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = keys(tmp_path / "keys.json", key("first", "read"))
    ring = KeyRing(path, recheck_s=0)
    path.unlink()
    for _ in range(3):
        assert ring.authorize(bearer("first"), Scope.read, NOW).name == "first"
    assert caplog.text.count("cannot be read") == 1
    keys(path, key("second", "read"))
    assert ring.authorize(bearer("second"), Scope.read, NOW).name == "second"


def test_a_key_is_revoked_once_the_file_can_be_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = keys(tmp_path / "keys.json", key("first", "read"))
    ring = KeyRing(path, recheck_s=0)

    def denied(path: Path) -> list[Any]:
        raise DamagedArtifact("cannot be read: Permission denied", field=str(path))

    with monkeypatch.context() as once:
        once.setattr("serve_app.ingress.auth.read_keys", denied)
        keys(path, key("second", "read"))
        assert ring.authorize(bearer("first"), Scope.read, NOW).name == "first"
    assert refused(ring, bearer("first"), Scope.read) == 401


def test_a_broken_file_at_the_start_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text('[{"name": "x", "sha256": "short", "scopes": ["read"]}]')
    with pytest.raises(DamagedArtifact, match=r"keys\.json"):
        KeyRing(path)


def test_two_keys_of_one_name_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DamagedArtifact, match="two keys are named 'shop'"):
        KeyRing(keys(tmp_path / "keys.json", key("shop", "read"), {**key("other", "read"), "name": "shop"}))


def test_a_broken_file_is_told_without_what_stands_in_it(tmp_path: Path) -> None:
    path = keys(tmp_path / "keys.json", {**key("shop", "read"), "sha256": "a-key-somebody-put-here-by-mistake"})
    with pytest.raises(DamagedArtifact) as error:
        KeyRing(path)
    assert "by-mistake" not in str(error.value)
    assert "0.sha256" in str(error.value)


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({"host": "127.0.0.1:8000"}, True),
        ({"host": "localhost:8000", "origin": "http://localhost:8000"}, True),
        ({"host": "[::1]:8000"}, True),
        ({"host": "127.0.0.1:8000", "origin": "https://evil.example"}, False),
        ({"host": "rebound.example:8000"}, False),
        ({"host": "127.0.0.1:8000", "origin": "null"}, False),
        ({"host": "[::1"}, False),
        ({"host": "127.0.0.1:8000", "origin": "http://[x"}, False),
    ],
)
def test_without_keys_a_web_page_open_on_this_machine_may_not_call(headers: dict[str, str], allowed: bool) -> None:
    ring = KeyRing(None)
    if allowed:
        assert ring.authorize(headers, Scope.decide, NOW).name == "local"
    else:
        with pytest.raises(ProblemError) as error:
            ring.authorize(headers, Scope.decide, NOW)
        assert error.value.problem.status == 403


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_key_has_its_calls_a_second_and_one_key_does_not_use_up_anothers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(auth, "monotonic_s", clock)
    path = keys(tmp_path / "keys.json", key("a", "read", per_s=2, burst=3), key("b", "read", per_s=1), key("c", "read"))
    ring = KeyRing(path)
    for _ in range(3):
        ring.authorize(bearer("a"), Scope.read, NOW)
    with pytest.raises(ProblemError) as error:
        ring.authorize(bearer("a"), Scope.read, NOW)
    assert error.value.problem.status == 429
    assert error.value.headers == {"Retry-After": "1"}
    for _ in range(100):
        ring.authorize(bearer("c"), Scope.read, NOW)
    ring.authorize(bearer("b"), Scope.read, NOW)
    clock.now += 1.0
    for _ in range(2):
        ring.authorize(bearer("a"), Scope.read, NOW)
    assert refused(ring, bearer("a"), Scope.read) == 429


def test_rotation_gives_nobody_his_calls_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "monotonic_s", Clock())
    path = keys(tmp_path / "keys.json", key("a", "read", per_s=1, burst=1))
    ring = KeyRing(path, recheck_s=0)
    ring.authorize(bearer("a"), Scope.read, NOW)
    keys(path, key("a", "read", per_s=1, burst=1), key("b", "read"))
    os.utime(path, ns=(1, 1))
    assert refused(ring, bearer("a"), Scope.read) == 429
    assert ring.authorize(bearer("b"), Scope.read, NOW).name == "b"


def test_a_refused_key_counts_against_nobody(tmp_path: Path) -> None:
    ring = KeyRing(keys(tmp_path / "keys.json", key("a", "read", per_s=1, burst=1)))
    for _ in range(20):
        assert refused(ring, bearer("wrong"), Scope.read) == 401
        assert refused(ring, bearer("a"), Scope.decide) == 403
    assert ring.authorize(bearer("a"), Scope.read, NOW).name == "a"


def test_a_made_key_opens_and_the_file_does_not_hold_it(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    secret = add_key(path, "shop", [Scope.read], per_s=10)
    assert secret not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    ring = KeyRing(path, recheck_s=0)
    assert ring.authorize(bearer(secret), Scope.read, NOW).name == "shop"
    with pytest.raises(InvalidInput, match="that name"):
        add_key(path, "shop", [Scope.read])
    other = add_key(path, "other", [Scope.admin])
    assert ring.authorize(bearer(other), Scope.admin, NOW).name == "other"
    remove_key(path, "shop")
    assert refused(ring, bearer(secret), Scope.read) == 401
    assert [one.name for one in read_keys(path)] == ["other"]
    with pytest.raises(UnknownIdentifier, match="known: other"):
        remove_key(path, "shop")
