"""The file of API keys: what it may hold, reading it, and adding to it. Keys themselves are in it as SHA-256 only.

``[{"name": "shop", "sha256": "<64 hex>", "scopes": ["read", "events"], "expires_at": null, "per_s": 200, "burst": 400}]``

A plain hash is enough because keys are 32 random bytes (`hindcast keys new`), which nobody finds by trying; it would not be
for words that people think of.
"""

from __future__ import annotations

import hashlib
import secrets
from datetime import datetime
from enum import StrEnum
from pathlib import Path

import orjson
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from serve_app.errors import DamagedArtifact, InvalidInput, UnknownIdentifier
from serve_app.release.manifest import write_text_atomically

__all__ = ["Key", "Scope", "add_key", "hash_of_key", "read_keys", "remove_key"]


class Scope(StrEnum):
    """What a key allows."""

    read = "read"
    decide = "decide"
    events = "events"
    outbox = "outbox"
    admin = "admin"


class Key(BaseModel):
    """One key. per_s, burst: calls a second on average, and at once, of each ingress replica; None: no limit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, max_length=100)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    scopes: list[Scope] = Field(min_length=1)
    expires_at: AwareDatetime | None = None
    per_s: float | None = Field(None, gt=0, le=1_000_000)
    burst: float | None = Field(None, ge=1, le=1_000_000)


_KEYS = TypeAdapter(list[Key])


def hash_of_key(secret: str) -> str:
    """SHA-256 of a key in hex, as the file holds it."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def read_keys(path: Path) -> list[Key]:
    """The keys of a file. DamagedArtifact says what is wrong, and never what a key is."""
    try:
        found = _KEYS.validate_json(path.read_bytes())
    except OSError as error:
        raise DamagedArtifact(f"cannot be read: {error.strerror}", field=str(path), hint="hindcast keys new") from error
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DamagedArtifact(
            f"{where}: {first['msg']}" if where else str(first["msg"]),
            field=str(path),
            hint="see serve_app/ingress/key_file.py",
        ) from None
    names = [key.name for key in found]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DamagedArtifact(
            f"two keys are named {twice!r}", field=str(path), hint="rename one; names scope idempotency keys"
        )
    return found


def add_key(
    path: Path,
    name: str,
    scopes: list[Scope],
    *,
    expires_at: datetime | None = None,
    per_s: float | None = None,
    burst: float | None = None,
) -> str:
    """Put a new key into the file (made where there is none) and give it. It is nowhere else."""
    keys = read_keys(path) if path.exists() else []
    if any(key.name == name for key in keys):
        raise InvalidInput("the file has a key of that name", field="name", hint="choose another, or revoke it first")
    secret = secrets.token_urlsafe(32)
    try:
        added = Key(name=name, sha256=hash_of_key(secret), scopes=scopes, expires_at=expires_at, per_s=per_s, burst=burst)
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidInput(str(first["msg"]), field=str(first["loc"][0])) from None
    _write(path, [*keys, added])
    return secret


def remove_key(path: Path, name: str) -> None:
    """Take a key out. UnknownIdentifier where there is none of that name."""
    keys = read_keys(path)
    if all(key.name != name for key in keys):
        raise UnknownIdentifier("no key has that name", field=name, hint="known: " + ", ".join(key.name for key in keys))
    _write(path, [key for key in keys if key.name != name])


def _write(path: Path, keys: list[Key]) -> None:
    """By one rename: a server that reads at this moment sees the old file or the new one."""
    text = orjson.dumps(
        [key.model_dump(mode="json", exclude_none=True) for key in keys], option=orjson.OPT_INDENT_2
    ).decode()
    write_text_atomically(path, text + "\n")
    path.chmod(0o600)
