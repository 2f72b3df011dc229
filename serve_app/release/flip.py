"""How a promotion reaches a running server: two phases over its administration calls.

A server that is up leaves ``DATA/run/server.json`` with its `admin_url`, `admin_token`, and `pid` and `started_at` of its
process; one elsewhere is reached by its address and a key with the scope admin.
`prepare` returns when every replica has loaded the release (or policy) beside the one it serves; `commit` then flips the
pins, and the old one stays until its last pinned request is gone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, Protocol

import psutil

from serve_app.errors import DamagedArtifact, InvalidInput, NotReady

__all__ = ["Flip", "HttpFlip", "PromotionPath", "find_flip"]

PromotionPath = Literal["releases", "policies"]
"""What is promoted, as its calls are named: /v1/releases/prepare."""


class Flip(Protocol):
    """The two phases of a promotion, as a running server offers them."""

    def prepare(self, version: str) -> None:
        """Load `version` in every replica. Raises, and changes nothing, when one cannot."""

    def commit(self, version: str) -> None:
        """New requests are pinned to `version` from now on."""


class HttpFlip:
    """Asks a server over HTTP. Raises NotReady with the server's own words when it refuses, and where none answers."""

    def __init__(self, url: str, token: str, kind: PromotionPath = "releases", *, prepare_timeout_s: float = 120.0) -> None:
        """url: http:// or https://. token: the server's own, or an API key with the scope admin. InvalidInput where the
        address is none."""
        import httpx  # here: replicas import this module and never ask

        self._kind, self._failure = kind, httpx.HTTPError
        try:
            address = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise InvalidInput(f"{url!r} is no address: {error}", field="server") from None
        if address.scheme not in ("http", "https") or not address.host:
            raise InvalidInput(f"{url!r} is no address", field="server", hint="http://host:port, or https://")
        self._client = httpx.Client(base_url=url, headers={"authorization": f"Bearer {token}"}, timeout=prepare_timeout_s)

    def prepare(self, version: str) -> None:
        """POST /v1/releases/prepare, or /v1/policies/prepare."""
        self._ask("prepare", version)

    def commit(self, version: str) -> None:
        """POST /v1/releases/commit, or /v1/policies/commit."""
        self._ask("commit", version)

    def _ask(self, phase: str, version: str) -> None:
        try:
            answer = self._client.post(f"/v1/{self._kind}/{phase}", json={"version": version})
        except self._failure as error:
            raise NotReady(f"the server did not answer {phase}: {type(error).__name__}", field="server") from error
        if answer.status_code >= 400:
            raise NotReady(f"the server refused to {phase} {version}: {answer.text[:500]}", field="server")
        if not _says(answer.text, {"version": version, "done": phase}):  # a redirect, somebody else's page
            raise NotReady(
                f"what answers {phase} with {answer.status_code} is no server of ours",
                field="server",
                hint="name the server itself, with https:// where it is behind TLS",
            )


def _says(text: str, wanted: dict[str, str]) -> bool:
    try:
        return bool(json.loads(text) == wanted)
    except ValueError:
        return False


def find_flip(data: Path, kind: PromotionPath = "releases") -> HttpFlip | None:
    """The server that runs on this data folder on this machine, or None when none is up (or one was killed and left its
    file)."""
    path = data / "run" / "server.json"
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        if not _alive(described["pid"], described["started_at"]):
            return None
        return HttpFlip(described["admin_url"], described["admin_token"], kind)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError) as error:
        raise DamagedArtifact(
            f"cannot be read: {error!r}", field=str(path), hint="stop the server and start it again"
        ) from error


def _alive(pid: int, started_at: float) -> bool:
    """Whether the process that wrote the file still runs (the time tells it from a later one with its number)."""
    try:
        return abs(psutil.Process(pid).create_time() - started_at) <= 1
    except psutil.NoSuchProcess:
        return False
