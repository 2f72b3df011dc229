"""How a promotion of a policy reaches a running server: as that of a release, on the calls for policies."""

from __future__ import annotations

import json
from pathlib import Path

import httpx

from serve_app.errors import NotReady
from serve_app.release.flip import HttpFlip, find_flip

__all__ = ["PolicyFlip", "find_policy_flip"]


class PolicyFlip(HttpFlip):
    """POST /v1/policies/prepare and /v1/policies/commit."""

    def _ask(self, phase: str, version: str) -> None:
        try:
            answer = self._client.post(f"/v1/policies/{phase}", json={"version": version})
        except httpx.HTTPError as error:
            hint = "is it up? `hindcast status`"
            raise NotReady(f"the server did not answer {phase}: {error}", field="server", hint=hint) from error
        if answer.status_code >= 400:
            raise NotReady(f"the server refused to {phase} policy {version}: {answer.text[:500]}", field="server")


def find_policy_flip(data: Path) -> PolicyFlip | None:
    """The server that runs on this data folder, or None when none is up."""
    if find_flip(data) is None:
        return None
    described = json.loads((data / "run" / "server.json").read_text(encoding="utf-8"))
    return PolicyFlip(described["admin_url"], described["admin_token"])
