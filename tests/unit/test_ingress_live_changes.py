"""Catalogue changes that land while a list is made, and what a list says of itself where its ranking fell back."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from serve_app.batch import Batch
from serve_app.clock import now_us
from serve_app.errors import NotReady
from serve_app.ingress.asks import Ask
from serve_app.ingress.gateway import PageAsk, Pages
from serve_app.ingress.recommend import ListsOptions, Recommender
from serve_app.ledger.memory import MemoryLedger
from serve_app.serving.board import Board
from serve_app.serving.hosts import RetrievalHost, news, with_found
from serve_app.serving.library import Held, Library, Pins, Role
from serve_app.serving.list_requests import Shelves
from serve_app.serving.live import ITEM_CHANGE, encode_item_change
from serve_app.serving.owner import StateOwner
from serve_app.serving.stages import Stages
from serve_app.serving.trips import ListTrip
from serve_app.settings import BudgetSettings
from serve_app.vocabulary import Surface
from tests.unit.sweep_support import Shop, open_shop

OPTIONS = ListsOptions("r", "p", explain=False, log=False)


class TwoItems:
    """Finds the shop's two items for everybody."""

    def run(self, batch: Batch, context: Any) -> Batch:
        n = len(batch)
        return batch.with_candidates(
            np.arange(n + 1, dtype=np.int64) * 2,
            item=np.tile(np.array([0, 1], np.int32), n),
            retrieval_score=np.zeros(2 * n),
            drop_reason=np.zeros(2 * n, np.int8),
            sources=np.ones(2 * n, np.uint32),
        )


class Server:
    """An ingress and a replica of Retrieval, each with its own view of the catalogue. between: done before retrieval."""

    def __init__(self, shop: Shop, ledger: MemoryLedger) -> None:
        held = dataclasses.replace(shop.edition.held, retrieval=cast(Any, TwoItems()))
        self.ledger, self.owner = ledger, StateOwner(ledger, Board("r", "p", epoch=1))
        self.ingress, self._replica = (self._library(shop, held) for _ in range(2))
        self._retrieval, self.between = RetrievalHost(self._replica), list[Callable[[], Any]]()
        self.pool = ThreadPoolExecutor(1)
        stages = cast(Stages, self)
        self.recommender = Recommender(
            self.ingress, stages, self.owner.live, shop.journal, self.pool, BudgetSettings(), recents_kept=5, log_rate=1.0
        )

    @staticmethod
    def _library(shop: Shop, held: Held) -> Library:
        made = Library(shop.folder, {Role.ingress}, lambda _: held)
        made.releases._loaded["r"] = held
        made._compiled["r", "p"] = shop.edition.policy
        return made

    async def retrieve(self, batch: Batch, pins: Pins, kinds: Sequence[str] | None = None) -> Batch:
        for act in self.between:
            act()
        if self._replica.seq < pins.seq:
            self._replica.learn((await self.owner.live(np.empty(0, np.uint64), self._replica.seq)).changes)
        return with_found(batch, news(batch, self._retrieval.run(batch, pins, kinds)))

    def change(self, item: str, *, available: bool = False) -> int:
        return self.ledger.append_catalogue_change(ITEM_CHANGE, encode_item_change(item, available=available))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    ledger = MemoryLedger()
    shop = open_shop(tmp_path, ledger)
    made = Server(shop, ledger)
    yield made
    made.owner.close()
    made.pool.shutdown()
    shop.close()


def asked(surface: Surface, **more: Any) -> Ask:
    now = now_us()
    return Ask(surface, 7, now, now + 10_000_000, **more)


def test_a_change_that_lands_while_a_list_is_made_is_learned_and_the_list_served(server: Server) -> None:
    ask = [asked(Surface.related, slots=2, anchor="sock")]
    server.change("shoe")
    server.between.append(lambda: server.change("sock"))
    server.change("shoe")
    lists = asyncio.run(server.recommender.lists(ask, OPTIONS))
    assert lists.batch.requests["availability_seq"].tolist() == [3]
    assert lists.edition.view.seq >= 3
    assert server.ingress.seq >= 3


def test_where_the_change_cannot_be_learned_nothing_unverified_is_served(server: Server) -> None:
    ask = [asked(Surface.related, slots=2, anchor="sock")]
    live, turns = server.owner.live, iter(range(9))

    async def only_at_first(*asked: Any) -> Any:
        if next(turns):
            raise NotReady("away", field="availability")
        return await live(*asked)

    server.recommender._live = only_at_first
    server.change("shoe")
    server.between.append(lambda: server.change("sock"))
    with pytest.raises(NotReady):
        asyncio.run(server.recommender.lists(ask, OPTIONS))


def test_whoever_ranks_must_know_what_retrieval_knew(server: Server) -> None:
    async def found() -> tuple[Batch, Pins]:
        edition, known = await server.recommender.admit([asked(Surface.related, slots=2, anchor="sock")], OPTIONS)
        batch = server.recommender.requests([asked(Surface.related, slots=2, anchor="sock")], edition, known)
        pins = Pins("r", "p", edition.view.seq)
        server.change("shoe")
        server.change("sock")
        return await server.retrieve(batch, dataclasses.replace(pins, seq=2)), pins

    candidates, pins = asyncio.run(found())
    assert pins.seq == 0
    assert ListTrip(candidates, pins, False, False).ranking(candidates).pins.seq == 2
    shelves = Shelves(*(np.zeros(len(candidates), kind) for kind in (np.int32, np.int32, np.int64)))
    assert ListTrip(candidates, pins, False, False, shelves).ranking(candidates).pins.seq == 2


@pytest.mark.parametrize("explain", [False, True])
def test_a_page_whose_ranking_fell_back_explains_itself_only_where_that_is_asked(server: Server, explain: bool) -> None:
    options = dataclasses.replace(OPTIONS, explain=explain)
    (page,) = asyncio.run(Pages(server.recommender).pages([PageAsk(asked(Surface.widgets, slots=3), 2)], options))
    assert page["degraded"] == ["ranking"]
    assert ("explain" in page) is explain
    assert page["widgets"]
    assert all(("explain" in widget) is explain for widget in page["widgets"])
