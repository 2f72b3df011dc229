"""API keys: who may call what. Keys are stored as SHA-256 hashes, compared in constant time, rotated without a restart.

The keys file is JSON: ``[{"name": "shop", "sha256": "<64 hex>", "scopes": ["read", "events"], "expires_at": null}]``.
Make a hash with ``printf %s "$KEY" | sha256sum``. Without a keys file (loopback only) every call is allowed.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from serve_app.clock import micros_of
from serve_app.errors import DamagedArtifact
from serve_app.ingress.problems import ProblemError

__all__ = ["Caller", "KeyRing", "Scope"]


class Scope(StrEnum):
    """What a key allows."""

    read = "read"
    decide = "decide"
    events = "events"
    outbox = "outbox"
    admin = "admin"


class _Key(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, max_length=100)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    scopes: list[Scope] = Field(min_length=1)
    expires_at: AwareDatetime | None = None


_KEYS = TypeAdapter(list[_Key])


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: the key's name, or `local` where no key is needed. Idempotency keys are scoped to it."""

    name: str
    scopes: frozenset[Scope]


_LOCAL = Caller("local", frozenset(Scope))


@dataclass
class KeyRing:
    """The keys in force. The file is read again when it changes; a broken new version leaves the old keys in force."""

    path: Path | None
    admin_token: str = ""
    """A secret of this server's run that allows everything; the command reads it from the data folder."""
    _stamp: tuple[int, int] | None = None
    _keys: list[_Key] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.path is not None:
            self._keys = _read(self.path)
            self._stamp = _stamp_of(self.path)

    def authorize(self, headers: Mapping[str, str], scope: Scope, now_us: int) -> Caller:
        """The caller, or ProblemError 401 (no or wrong key) or 403 (the key lacks the scope)."""
        secret = _presented(headers)
        if self.admin_token and hmac.compare_digest(secret.encode(), self.admin_token.encode()):
            return Caller("operator", frozenset(Scope))
        if self.path is None:
            if scope is Scope.admin and self.admin_token:
                raise ProblemError(401, "unauthorized", "this call needs the server's own token", field="Authorization")
            return _LOCAL
        self._refresh()
        key = self._match(secret, now_us)
        if key is None:
            raise ProblemError(
                401,
                "unauthorized",
                "the API key is missing, unknown or expired",
                field="Authorization",
                hint="send the header Authorization: Bearer KEY",
            )
        if scope not in key.scopes:
            raise ProblemError(403, "forbidden", f"the key {key.name!r} lacks the scope {scope}", field="Authorization")
        return Caller(key.name, frozenset(key.scopes))

    def _match(self, secret: str, now_us: int) -> _Key | None:
        digest = hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
        found = None
        for key in self._keys:  # all are compared, so that the time taken does not tell which one fits
            fits = hmac.compare_digest(digest, key.sha256)
            if fits and (key.expires_at is None or micros_of(key.expires_at) > now_us):
                found = key
        return found

    def _refresh(self) -> None:
        assert self.path is not None
        stamp = _stamp_of(self.path)
        if stamp is None or stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._keys = _read(self.path)
        except DamagedArtifact:
            return  # the keys read before stay in force until the file is whole again


def _presented(headers: Mapping[str, str]) -> str:
    authorization = headers.get("authorization", "")
    scheme, _, secret = authorization.partition(" ")
    return secret.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")


def _stamp_of(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _read(path: Path) -> list[_Key]:
    try:
        return _KEYS.validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise DamagedArtifact(f"cannot be read: {error}", field=str(path), hint="see serve_app/ingress/auth.py") from error
