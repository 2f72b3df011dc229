"""What the server says of itself before and after a run."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

from loadtests.scenarios.errors import LoadError

__all__ = ["facts_of", "openapi_of"]

_TIMEOUT_S = 30.0


def _get(url: str) -> Any:
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:
            return json.loads(answer.read())
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise LoadError(f"{url}: {error}; is the server up, and is --host right?") from None


def facts_of(host: str) -> dict[str, Any]:
    """Release, policy, topology; None where the server does not say (any more)."""
    try:
        ready = _get(f"{host}/readyz")
    except LoadError:
        ready = {}
    return {name: ready.get(name) for name in ("release", "policy", "topology")}


def openapi_of(host: str) -> dict[str, Any]:
    """The server's description of its answers."""
    document: dict[str, Any] = _get(f"{host}/openapi.json")
    return document
