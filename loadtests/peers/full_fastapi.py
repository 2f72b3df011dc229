"""The lean chain with what a real server adds: this project's validation, authentication and log, and exact counts of sends.

``python -m loadtests.peers.full_fastapi RELEASE PORT DATA``. Every list is journalled with all its candidates and their
features before it is answered, every decision after its row is in SQLite, as the server does; no batching, no Ray.
"""

from __future__ import annotations

import secrets
import sqlite3
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import uvicorn
from fastapi import FastAPI, Request

from loadtests.peers.model import Lean
from serve_app.batch import Ragged
from serve_app.clock import now_us
from serve_app.ids import decision_id_text, hash_id, hash_ids
from serve_app.ingress.auth import KeyRing, Scope
from serve_app.ingress.calls import json_answer
from serve_app.ingress.problems import install_problem_handlers
from serve_app.ingress.schemas import GatewayRequest, RelatedRequest
from serve_app.ingress.schemas_notify import DecideRequest
from serve_app.log.filling import fill
from serve_app.log.journal import Journal
from serve_app.vocabulary import Surface

__all__ = ["app_of"]

_DAY_US = 86_400_000_000
_LIMIT = 3


class Kept:
    """The journal, and the sends of each user."""

    def __init__(self, data: Path, lean: Lean) -> None:
        self._journal = Journal(data, "peer")
        self._sends = sqlite3.connect(data / "sends.sqlite", check_same_thread=False, isolation_level=None)
        self._sends.execute("PRAGMA journal_mode=WAL")
        self._sends.execute("PRAGMA synchronous=NORMAL")
        self._sends.execute("CREATE TABLE IF NOT EXISTS sends (user INTEGER, at INTEGER, campaign TEXT)")
        self._sends.execute("CREATE INDEX IF NOT EXISTS by_user ON sends (user, at)")
        self._hashes = hash_ids(lean.items)

    def list_answered(
        self, surface: Surface, user: str | None, rows: npt.NDArray[np.int64], matrix: npt.NDArray[np.float32], slots: int
    ) -> tuple[int, list[str]]:
        """Journal one list; its request id and its decision ids."""
        request, at, owner = secrets.randbits(64), now_us(), hash_id(user or "")
        n = len(rows)
        same: dict[str, Any] = {
            "user": np.full(n, owner, np.uint64),
            "ts": np.full(n, at),
            "request_id": np.full(n, request, np.uint64),
        }
        one: dict[str, Any] = {name: values[:1] for name, values in same.items()}
        width = matrix.shape[1]
        offsets = np.arange(n + 1) * width
        shown = min(slots, n)
        self._journal.append(
            {
                "requests": fill("requests", 1, {**one, "surface": np.array([surface], np.int8), "decided_at": one["ts"]}),
                "candidates": fill("candidates", n, {
                    **same, "idx": np.arange(n, dtype=np.int32), "item": self._hashes[rows],
                    "features": Ragged(matrix.ravel(), offsets),
                    "feature_status": Ragged(np.zeros(matrix.size, np.uint8), offsets),
                }),
                "decisions": fill("decisions", shown, {
                    **{name: values[:shown] for name, values in same.items()}, "slot": np.arange(shown, dtype=np.int32),
                    "chosen_idx": np.arange(shown, dtype=np.int32), "item": self._hashes[rows[:shown]],
                }),
            }
        )  # fmt: skip
        return request, [decision_id_text(owner, request, slot) for slot in range(shown)]

    def decided(self, user: str, choose: Any) -> tuple[dict[str, Any], str]:
        """Count, choose, record and journal under one lock on the database."""
        request, at, owner = secrets.randbits(64), now_us(), hash_id(user)
        key = int(np.uint64(owner).astype(np.int64))
        self._sends.execute("BEGIN IMMEDIATE")
        try:
            (used,) = self._sends.execute(
                "SELECT count(*) FROM sends WHERE user = ? AND at > ?", (key, at - _DAY_US)
            ).fetchone()
            made: dict[str, Any] = choose() if used < _LIMIT else {"action": "suppress", "campaign": None, "channel": None}
            if made["action"] == "send":
                self._sends.execute("INSERT INTO sends VALUES (?, ?, ?)", (key, at, made["campaign"]))
            self._sends.execute("COMMIT")
        except BaseException:
            self._sends.execute("ROLLBACK")
            raise
        own: dict[str, Any] = {
            "user": np.array([owner], np.uint64),
            "ts": np.array([at]),
            "request_id": np.array([request], np.uint64),
        }
        surface = np.array([Surface.notification], np.int8)
        self._journal.append(
            {
                "requests": fill("requests", 1, {**own, "surface": surface, "decided_at": own["ts"]}),
                "candidates": fill("candidates", 1, {**own, "idx": np.zeros(1, np.int32)}),
                "decisions": fill("decisions", 1, {**own, "slot": np.zeros(1, np.int32)}),
            }
        )
        return made, decision_id_text(owner, request, 0)


def app_of(lean: Lean, kept: Kept) -> FastAPI:
    """The app. Bodies are read as the server reads them: straight from their bytes."""
    app, keys = FastAPI(), KeyRing(None)
    install_problem_handlers(app)

    def allowed(request: Request, scope: Scope) -> None:
        keys.authorize(request.headers, scope, now_us())

    @app.get("/readyz")
    def readyz() -> dict[str, str]:
        return {"status": "ready"}

    @app.post("/v1/recommendations/related")
    async def related(request: Request) -> Any:
        allowed(request, Scope.read)
        body = RelatedRequest.model_validate_json(await request.body())
        rows = lean.retrieve(body.item, body.exclude)
        matrix = lean.features("related", rows, body.user)
        items = lean.rank("related", rows, matrix, body.slots)
        asked, ids = kept.list_answered(Surface.related, body.user, rows, matrix, body.slots)
        shown = [{"id": item, "slot": n, "decision_id": ids[n]} for n, item in enumerate(items)]
        return json_answer({"request_id": f"{asked:016x}", "items": shown, "degraded": []})

    @app.post("/v1/recommendations/gateway")
    async def gateway(request: Request) -> Any:
        allowed(request, Scope.read)
        body = GatewayRequest.model_validate_json(await request.body())
        widgets, slots = body.widgets or 4, body.slots or 6
        rows = lean.taste(body.user)
        matrix = lean.features("gateway", rows, body.user)
        page = lean.gateway(body.user, widgets, slots)
        asked, _ = kept.list_answered(Surface.gateway, body.user, rows, matrix, widgets * slots)
        return json_answer({"request_id": f"{asked:016x}", "widgets": page, "degraded": []})

    @app.post("/v1/notifications/decide")
    async def decide(request: Request) -> Any:
        allowed(request, Scope.decide)
        body = DecideRequest.model_validate_json(await request.body())
        candidates = [one.model_dump(mode="json", exclude_none=True) for one in body.candidates or ()]
        made, name = kept.decided(body.user, lambda: lean.decide(body.user, candidates))
        return json_answer({**made, "user": body.user, "decision_id": name, "degraded": []})

    return app


if __name__ == "__main__":
    model = Lean(Path(sys.argv[1]))
    uvicorn.run(app_of(model, Kept(Path(sys.argv[3]), model)), port=int(sys.argv[2]), log_level="error", access_log=False)
