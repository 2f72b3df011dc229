"""A BentoML service of the same chain. Runs in the peers' environment: ``bentoml serve loadtests.peers.bento:Front``.

RELEASE names the release's folder. Stages are services of their own, as its documentation composes them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import bentoml

from loadtests.peers.model import Lean, dealt

__all__ = ["Front", "Ranking", "Retrieval"]


def _lean() -> Lean:
    return Lean(Path(os.environ["RELEASE"]))


@bentoml.service
class Retrieval:
    """Candidates."""

    def __init__(self) -> None:
        self.lean = _lean()

    @bentoml.api
    def related(self, item: str, exclude: list[str]) -> list[int]:
        rows: list[int] = self.lean.retrieve(item, exclude).tolist()
        return rows

    @bentoml.api
    def taste(self, user: str | None = None) -> list[int]:
        rows: list[int] = self.lean.taste(user).tolist()
        return rows


@bentoml.service
class Ranking:
    """Features, scores and order."""

    def __init__(self) -> None:
        self.lean = _lean()

    @bentoml.api
    def rank(self, surface: str, rows: list[int], slots: int, user: str | None = None) -> list[str]:
        import numpy as np

        found = np.array(rows)
        return self.lean.rank(surface, found, self.lean.features(surface, found, user), slots)

    @bentoml.api
    def order(self, widgets: int) -> list[dict[str, str]]:
        return self.lean.order(widgets)

    @bentoml.api
    def decide(self, user: str, candidates: list[dict[str, Any]]) -> dict[str, Any]:
        return self.lean.decide(user, candidates)


@bentoml.service
class Front:
    """HTTP."""

    retrieval = bentoml.depends(Retrieval)
    ranking = bentoml.depends(Ranking)

    @bentoml.api(route="/v1/recommendations/related")
    async def related(
        self, item: str, user: str | None = None, exclude: list[str] | None = None, slots: int = 10
    ) -> dict[str, Any]:
        rows = await self.retrieval.to_async.related(item=item, exclude=exclude or [])
        return {"items": await self.ranking.to_async.rank(surface="related", rows=rows, slots=slots, user=user)}

    @bentoml.api(route="/v1/recommendations/gateway")
    async def gateway(self, user: str | None = None, widgets: int = 4, slots: int = 6) -> dict[str, Any]:
        order = await self.ranking.to_async.order(widgets=widgets)
        rows = await self.retrieval.to_async.taste(user=user)
        items = await self.ranking.to_async.rank(surface="gateway", rows=rows, slots=widgets * slots, user=user)
        return {"widgets": dealt(order, items, slots)}

    @bentoml.api(route="/v1/notifications/decide")
    async def decide(self, user: str, candidates: list[dict[str, Any]]) -> dict[str, Any]:
        made: dict[str, Any] = await self.ranking.to_async.decide(user=user, candidates=candidates)
        return made
