"""Where a decision can be asked for from outside: a running server, else the ledger's file or Redis, else the log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx

from serve_app.audit.kept import decision_in_log
from serve_app.audit.names import FolderNames
from serve_app.errors import NotReady, UnknownIdentifier
from serve_app.ids import parse_decision_id
from serve_app.ledger.opening import ledger_path
from serve_app.ledger.record import unpack_record
from serve_app.ledger.redis import RedisLedger
from serve_app.ledger.sqlite_glance import glance_campaigns, glance_record
from serve_app.release.flip import find_flip

__all__ = ["explain_decision", "find_server"]


def find_server(data: Path) -> httpx.Client | None:
    """A client with the operator's token of the server that runs on `data`; None when none is up."""
    if find_flip(data) is None:
        return None
    said = json.loads((data / "run" / "server.json").read_text(encoding="utf-8"))
    token = {"authorization": f"Bearer {said['admin_token']}"}
    return httpx.Client(base_url=said["admin_url"], headers=token, timeout=60.0)


def explain_decision(data: Path, decision_id: str, *, redis_url: str | None = None) -> dict[str, Any]:
    """Everything that is kept of a decision, in the words of GET /v1/decisions/{id}.

    InvalidInput: not a decision id. UnknownIdentifier: neither server nor ledger nor log has it."""
    from serve_app.ingress.stored import told

    user, request_id, _ = parse_decision_id(decision_id)
    server = find_server(data)
    if server is not None:
        with server:
            answered = _ask(server, decision_id)
        if answered is not None:
            return answered
    if redis_url is not None:
        found = _in_redis(redis_url, user, request_id)
        names = FolderNames(data)
    else:
        path = ledger_path(data)
        found = _in_file(path, user, request_id) if path.exists() else None
        names = FolderNames(data, tuple(glance_campaigns(path)) if path.exists() else ())
    if found is not None:
        return told(found, names, "ledger")
    logged = decision_in_log(data, user, request_id)
    if logged is None:
        raise UnknownIdentifier(
            f"no decision {decision_id} is in the ledger or the log of {data}", field="id", hint="check the id and --data"
        )
    return told(logged, names, "log")


def _ask(server: httpx.Client, decision_id: str) -> dict[str, Any] | None:
    try:
        answer = server.get(f"/v1/decisions/{decision_id}")
    except httpx.HTTPError as error:
        raise NotReady(f"the server did not answer: {error}", field="server", hint="is it up? `hindcast status`") from error
    if answer.status_code == 404:
        return None
    if answer.status_code >= 400:
        raise NotReady(f"the server refused: {answer.text[:500]}", field="server")
    said: dict[str, Any] = answer.json()
    return said


def _in_file(path: Path, user: int, request_id: int) -> dict[str, Any] | None:
    found = glance_record(path, user, request_id)
    if found is None:
        return None
    record = unpack_record(found[0])
    record["request"]["commit_version"] = found[1]
    return record


def _in_redis(url: str, user: int, request_id: int) -> dict[str, Any] | None:
    ledger = RedisLedger(url, require="weaker")
    try:
        record = ledger.find_decision(user, request_id)
    finally:
        ledger.close()
    return unpack_record(record) if record else None
