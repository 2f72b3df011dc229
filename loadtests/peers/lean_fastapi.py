"""FastAPI and uvicorn in one process, the least one would write. ``python -m loadtests.peers.lean_fastapi RELEASE PORT``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from loadtests.peers.model import Lean

__all__ = ["app_of"]


class Related(BaseModel):
    """As a user would declare it."""

    item: str
    user: str | None = None
    exclude: list[str] = []
    slots: int = 10


class Gateway(BaseModel):
    """As a user would declare it."""

    user: str | None = None
    widgets: int = 4
    slots: int = 6


class Decide(BaseModel):
    """As a user would declare it."""

    user: str
    candidates: list[dict[str, Any]]


def app_of(lean: Lean) -> FastAPI:
    """The app."""
    app = FastAPI()

    @app.get("/readyz")
    def readyz() -> dict[str, str]:
        return {"status": "ready"}

    @app.post("/v1/recommendations/related")
    async def related(body: Related) -> dict[str, Any]:
        return {"items": lean.related(body.item, body.user, body.exclude, body.slots)}

    @app.post("/v1/recommendations/gateway")
    async def gateway(body: Gateway) -> dict[str, Any]:
        return {"widgets": lean.gateway(body.user, body.widgets, body.slots)}

    @app.post("/v1/notifications/decide")
    async def decide(body: Decide) -> dict[str, Any]:
        return lean.decide(body.user, body.candidates)

    return app


if __name__ == "__main__":
    uvicorn.run(app_of(Lean(Path(sys.argv[1]))), port=int(sys.argv[2]), log_level="error", access_log=False)
