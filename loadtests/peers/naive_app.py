"""A Ray Serve application as its tutorial would have it: four deployments, default settings, a matrix that travels.
It does what the leanest server does (`model.Lean`), each step where it belongs.

Annotations are types here, not texts: the app travels to its replicas by value, and there FastAPI could not find what texts
name.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from fastapi import FastAPI
from ray import serve

from loadtests.peers.lean_fastapi import Decide, Gateway, Related
from loadtests.peers.model import Lean, dealt

__all__ = ["Features", "Ingress", "Ranking", "Retrieval"]

Rows = npt.NDArray[np.int64]
Matrix = npt.NDArray[np.float32]
api = FastAPI()


@serve.deployment
class Retrieval:
    """Candidates."""

    def __init__(self, release: str) -> None:
        self.lean = Lean(Path(release))

    def related(self, item: str, exclude: list[str]) -> Rows:
        return self.lean.retrieve(item, exclude)

    def taste(self, user: str | None) -> Rows:
        return self.lean.taste(user)


@serve.deployment
class Features:
    """The matrix."""

    def __init__(self, release: str) -> None:
        self.lean = Lean(Path(release))

    def matrix(self, surface: str, rows: Rows, user: str | None) -> Matrix:
        return self.lean.features(surface, rows, user)

    def message_matrix(self, user: str, candidates: list[dict[str, Any]]) -> Matrix:
        return self.lean.message_features(user, candidates)


@serve.deployment
class Ranking:
    """Scores and order."""

    def __init__(self, release: str) -> None:
        self.lean = Lean(Path(release))

    def rank(self, surface: str, rows: Rows, matrix: Matrix, slots: int) -> list[str]:
        return self.lean.rank(surface, rows, matrix, slots)

    def order(self, widgets: int) -> list[dict[str, str]]:
        return self.lean.order(widgets)

    def decide(self, user: str, candidates: list[dict[str, Any]], matrix: Matrix) -> dict[str, Any]:
        return self.lean.choose(user, candidates, matrix)


@serve.deployment
@serve.ingress(api)
class Ingress:
    """HTTP."""

    def __init__(self, retrieval: Any, features: Any, ranking: Any) -> None:
        self.retrieval, self.features, self.ranking = retrieval, features, ranking

    @api.get("/readyz")
    def readyz(self) -> dict[str, str]:
        return {"status": "ready"}

    @api.post("/v1/recommendations/related")
    async def related(self, body: Related) -> dict[str, Any]:
        rows = await self.retrieval.related.remote(body.item, body.exclude)
        matrix = await self.features.matrix.remote("related", rows, body.user)
        return {"items": await self.ranking.rank.remote("related", rows, matrix, body.slots)}

    @api.post("/v1/recommendations/gateway")
    async def gateway(self, body: Gateway) -> dict[str, Any]:
        order = await self.ranking.order.remote(body.widgets)
        rows = await self.retrieval.taste.remote(body.user)
        matrix = await self.features.matrix.remote("gateway", rows, body.user)
        items = await self.ranking.rank.remote("gateway", rows, matrix, body.widgets * body.slots)
        return {"widgets": dealt(order, items, body.slots)}

    @api.post("/v1/notifications/decide")
    async def decide(self, body: Decide) -> dict[str, Any]:
        matrix = await self.features.message_matrix.remote(body.user, body.candidates)
        made: dict[str, Any] = await self.ranking.decide.remote(body.user, body.candidates, matrix)
        return made
