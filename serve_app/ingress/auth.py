"""API keys: who may call what, how often. Compared in constant time, rotated without a restart (`key_file`: what is kept).

Without a keys file (loopback only) every call is allowed that this machine's own programs make; a web page open in a browser
on it is somebody else's program, and its calls are refused.
"""

from __future__ import annotations

import hmac
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit

from serve_app.clock import micros_of, monotonic_s
from serve_app.errors import DamagedArtifact
from serve_app.ingress.key_file import Key, Scope, hash_of_key, read_keys
from serve_app.ingress.problems import ProblemError
from serve_app.serving.meters import count
from serve_app.settings import is_loopback

__all__ = ["Caller", "KeyRing", "Scope"]

_LOG = logging.getLogger("hindcast.ingress")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: the key's name, or `local` where no key is needed. Idempotency keys are scoped to it."""

    name: str
    scopes: frozenset[Scope]


_LOCAL = Caller("local", frozenset(Scope))
_OPERATOR = Caller("operator", frozenset(Scope))


@dataclass(slots=True)
class _Bucket:
    """A key's calls: `level` may be made at once, and it fills by `per_s` up to `burst`."""

    per_s: float
    burst: float
    level: float
    at_s: float

    def wait_s(self, now_s: float) -> float:
        """Take one call, or say how long until there is one."""
        self.level = min(self.burst, self.level + (now_s - self.at_s) * self.per_s)
        self.at_s = now_s
        if self.level >= 1:
            self.level -= 1
            return 0.0
        return (1 - self.level) / self.per_s


@dataclass
class KeyRing:
    """The keys in force. The file is looked at every `recheck_s` and read again when it changed; a broken new version leaves
    the old keys in force and is said in the log."""

    path: Path | None
    admin_token: str = ""
    """A secret of this server's run that allows everything; the command reads it from the data folder."""
    recheck_s: float = 1.0
    _stamp: tuple[int, ...] | None = None
    _trouble: str = ""
    _looked_s: float = -math.inf
    _keys: list[Key] = field(default_factory=list)
    _callers: dict[str, Caller] = field(default_factory=dict)
    _buckets: dict[str, _Bucket] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._admin_hash = hash_of_key(self.admin_token)
        if self.path is not None:
            self._stamp = _stamp_of(self.path)
            self._take(read_keys(self.path))

    def authorize(self, headers: Mapping[str, str], scope: Scope, now_us: int) -> Caller:
        """The caller, or ProblemError 401 (no or wrong key), 403 (the key lacks the scope) or 429 (too many calls)."""
        secret = _presented(headers)
        if secret and self.admin_token and hmac.compare_digest(hash_of_key(secret), self._admin_hash):
            return _OPERATOR
        if self.path is None:
            if scope is Scope.admin and self.admin_token:
                raise _refused(
                    401, "unauthorized", "this call needs the server's own token", "unknown" if secret else "missing"
                )
            _from_this_machine(headers)
            return _LOCAL
        self._refresh()
        key = self._match(secret, now_us) if secret else None
        if key is None:
            hint = "send the header Authorization: Bearer KEY"
            cause = "unknown" if secret else "missing"
            raise _refused(401, "unauthorized", "the API key is missing, unknown or expired", cause, hint=hint)
        if scope not in key.scopes:
            raise _refused(403, "forbidden", f"the key {key.name!r} lacks the scope {scope}", "scope")
        self._ration(key)
        return self._callers[key.name]

    def _match(self, secret: str, now_us: int) -> Key | None:
        digest, found = hash_of_key(secret), None
        for key in self._keys:  # all are compared, so that the time taken does not tell which one fits
            fits = hmac.compare_digest(digest, key.sha256)
            if fits and (key.expires_at is None or micros_of(key.expires_at) > now_us):
                found = key
        return found

    def _ration(self, key: Key) -> None:
        bucket = self._buckets.get(key.name)
        if bucket is None:
            return
        wait_s = bucket.wait_s(monotonic_s())
        if wait_s:
            raise _refused(
                429, "too-many-requests", f"the key {key.name!r} may make {bucket.per_s:g} calls a second", "rate",
                hint="retry after the time in Retry-After", retry_after_s=math.ceil(wait_s),
            )  # fmt: skip

    def _refresh(self) -> None:
        assert self.path is not None
        now_s = monotonic_s()
        if now_s - self._looked_s < self.recheck_s:
            return
        self._looked_s = now_s
        stamp = _stamp_of(self.path)
        if stamp == self._stamp:
            self._trouble = ""
            return
        try:
            self._take(read_keys(self.path))
            self._stamp, self._trouble = stamp, ""
        except DamagedArtifact as error:  # looked at again each time: what stood in the way may leave no trace in the file
            if str(error) != self._trouble:
                _LOG.error("the keys read before stay in force: %s", error)
            self._trouble = str(error)

    def _take(self, keys: list[Key]) -> None:
        """Put keys in force; those that keep their name and limits keep what they have used up."""
        self._keys = keys
        self._callers = {key.name: Caller(key.name, frozenset(key.scopes)) for key in keys}
        kept, self._buckets = self._buckets, {}
        for key in keys:
            if key.per_s is not None:
                burst = key.burst if key.burst is not None else max(1.0, 2 * key.per_s)
                old = kept.get(key.name)
                same = old is not None and (old.per_s, old.burst) == (key.per_s, burst)
                self._buckets[key.name] = old if old and same else _Bucket(key.per_s, burst, burst, monotonic_s())


def _from_this_machine(headers: Mapping[str, str]) -> None:
    """Refuse what a web page in a browser sends: its Origin is elsewhere, or its own name was pointed at this machine."""
    origin = headers.get("origin")
    if not _is_here(f"//{headers.get('host', 'localhost')}") or (origin is not None and not _is_here(origin)):
        raise ProblemError(
            403,
            "forbidden",
            "without API keys only programs of this machine may call",
            field="Origin" if origin else "Host",
            hint="call 127.0.0.1, or set security.keys_file",
        )


@lru_cache(maxsize=256)
def _is_here(address: str) -> bool:
    """Whether an address's host is this machine; not where there is none, or nobody can tell."""
    try:
        return is_loopback(urlsplit(address).hostname or "")
    except ValueError:
        return False


def _refused(
    status: int, kind: str, detail: str, cause: str, *, hint: str | None = None, retry_after_s: int | None = None
) -> ProblemError:
    count("hindcast_key_refusals", cause=cause)
    return ProblemError(status, kind, detail, field="Authorization", hint=hint, retry_after_s=retry_after_s)


def _presented(headers: Mapping[str, str]) -> str:
    authorization = headers.get("authorization", "")
    scheme, _, secret = authorization.partition(" ")
    return secret.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")


def _stamp_of(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino
