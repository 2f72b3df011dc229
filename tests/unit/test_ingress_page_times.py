"""A page made in a chain keeps its deadline and its own fall-backs, however long it had waited before."""

from __future__ import annotations

import asyncio
import dataclasses
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest

from serve_app.batch import Batch
from serve_app.clock import monotonic_s
from serve_app.ingress import recommend
from serve_app.ingress.asks import Ask, Known, users_of
from serve_app.ingress.deadlines import leaving_by
from serve_app.ingress.gateway import PageAsk, Pages
from serve_app.ingress.recommend import ListsOptions, Recommender
from serve_app.ledger.columns import UserState
from serve_app.ledger.memory import MemoryLedger
from serve_app.remote_stages import RemoteFeatures, RemoteRetrieval, RemoteStages
from serve_app.serving.hosts import RankCall, flagged, news
from serve_app.serving.library import Library
from serve_app.serving.owner import LiveAnswer
from serve_app.serving.pages import unranked
from serve_app.serving.relay import Baton
from serve_app.serving.stages import Stages
from serve_app.serving.trips import LocalScores, PageTrip, Trips
from serve_app.settings import BudgetSettings
from serve_app.vocabulary import StageBit, Surface
from tests.unit.decision_support import at
from tests.unit.sweep_support import Shop, open_shop

NOW = at("2026-03-10T12:00:00")
USUAL = BudgetSettings()
SLOWER = 4
BUDGETS = BudgetSettings(
    request_ms=SLOWER * USUAL.request_ms, retrieval_ms=SLOWER * USUAL.retrieval_ms, features_ms=SLOWER * USUAL.features_ms,
    ranking_ms=SLOWER * USUAL.ranking_ms,
)  # fmt: skip
"""The usual ones, for a machine that has other things to do."""
HANGS = 60.0


@dataclasses.dataclass
class Slow:
    """Seconds that each part takes, by the usual budgets."""

    root: float = 0.0
    retrieval: float = 0.0
    features: float = 0.0
    lists: float = 0.0


def takes(seconds: float, budget_s: float = HANGS) -> bool:
    """Whether it was done within the budget."""
    threading.Event().wait(min(SLOWER * seconds, budget_s))
    return SLOWER * seconds < budget_s


class SlowHop:
    """A way to another process whose answer takes so many seconds."""

    def __init__(self, seconds: float, answer: Callable[[Batch], Any]) -> None:
        self._seconds, self._answer = seconds, answer

    def wait(self, turns: None, within_s: float, batch: Batch, *_: Any) -> Any:
        """As Hop."""
        assert turns is None
        if not takes(self._seconds, within_s):
            raise TimeoutError
        return self._answer(batch)

    async def __call__(self, batch: Batch, *_: Any) -> Any:
        """As Hop."""
        await asyncio.sleep(SLOWER * self._seconds)
        return self._answer(batch)


class Scores:
    """As LocalScores: features of elsewhere, defaults without them, then ranking."""

    def __init__(self, slow: Slow) -> None:
        self._slow = slow
        self._features = RemoteFeatures(
            cast(Any, SlowHop(slow.features, lambda _: None)), cast(Any, None), BUDGETS.features_ms
        )

    def scored(self, call: RankCall, baton: Baton, legs: int) -> Batch:
        """As LocalScores, in retrieval's order."""
        batch = call.batch
        try:
            self._features.run(batch, call.pins)
        except TimeoutError:
            batch = flagged(batch, StageBit.features)
        baton.past(legs + 1)
        root = int(batch.requests["surface"][0]) == Surface.widgets
        takes(self._slow.root if root else self._slow.lists)
        return unranked(batch, call.page)


def found(batch: Batch) -> Batch:
    n = len(batch)
    return batch.with_candidates(
        np.arange(n + 1, dtype=np.int64) * 2, item=np.tile(np.array([0, 1], np.int32), n),
        category=np.zeros(2 * n, np.uint64), sources=np.ones(2 * n, np.uint32), retrieval_score=np.zeros(2 * n),
        drop_reason=np.zeros(2 * n, np.int8),
    )  # fmt: skip


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    monkeypatch.setattr(recommend, "_popular", lambda batch, _: flagged(found(batch), StageBit.retrieval))
    made = open_shop(tmp_path, MemoryLedger())
    held = dataclasses.replace(made.edition.held, heads={"widgets": ("x",), "gateway": ("x",)})
    made.edition = dataclasses.replace(made.edition, held=held)
    return made


def state_of(shop: Shop, page: PageAsk) -> UserState:
    return shop.ledger.read(users_of([page.root])).state


def asked(shop: Shop, slow: Slow, waited_s: float) -> dict[str, Any]:
    """The answer to a page that had waited so long, by the usual budgets."""
    library = cast(Library, SimpleNamespace(seq=0, learn=lambda _: None, edition=lambda _: shop.edition))
    find = SlowHop(slow.retrieval, lambda batch: news(batch, found(batch)))
    retrieval = RemoteRetrieval(cast(Any, find), cast(Any, None), BUDGETS.retrieval_ms)
    trips = Trips(retrieval, cast(LocalScores, Scores(slow)), library)

    def ranked(call: RankCall | PageTrip) -> Any:
        if isinstance(call, RankCall):
            return trips.scores.scored(call, cast(Baton, SimpleNamespace(past=lambda _: None)), 0)
        return pickle.loads(pickle.dumps(trips.answer(call, monotonic_s()), 5))

    async def live(users: npt.NDArray[np.uint64], _: int) -> LiveAnswer:
        state = shop.ledger.read(users).state
        return cast(LiveAnswer, SimpleNamespace(changes=[], head=0, recents=shop.ledger.recents(users), state=state))

    async def answer(pool: ThreadPoolExecutor) -> dict[str, Any]:
        loop, stages = asyncio.get_running_loop(), object.__new__(RemoteStages)
        stages._library, stages._retrieve = library, cast(Any, find)
        stages._rank = cast(Any, lambda call: loop.run_in_executor(pool, ranked, pickle.loads(pickle.dumps(call, 5))))
        made = Recommender(
            library, cast(Stages, stages), live, shop.journal, pool, BUDGETS, recents_kept=5, log_rate=1.0
        )  # fmt: skip
        page = PageAsk(Ask(Surface.widgets, 7, NOW, NOW + 1, "ann", slots=3), 2)
        made.requests([page.root], shop.edition, Known(shop.ledger.recents(users_of([page.root])), state_of(shop, page)))
        with leaving_by(loop.time() + BUDGETS.request_ms / 1000 - SLOWER * waited_s):
            [one] = await Pages(made).pages([page], ListsOptions("r", "p", explain=False, log=False))
        return one

    with ThreadPoolExecutor(8) as pool:
        return asyncio.run(answer(pool))


@pytest.mark.parametrize(
    ("slow", "waited_s", "degraded"),
    [
        (Slow(), 0.0, []),
        (Slow(root=0.1, retrieval=0.15, lists=0.2), 0.0, []),
        (Slow(root=0.05, retrieval=0.05, lists=0.1), 0.25, []),
        (Slow(retrieval=HANGS), 0.0, ["retrieval"]),
        (Slow(retrieval=HANGS), 0.25, ["retrieval"]),
        (Slow(retrieval=HANGS), 0.35, ["retrieval"]),
        (Slow(features=HANGS), 0.0, ["features"]),
        (Slow(features=HANGS), 0.25, ["features"]),
        (Slow(features=HANGS, lists=0.06), 0.35, ["features"]),
        (Slow(root=0.9), 0.0, ["ranking"]),
    ],
    ids=str,
)
def test_only_what_is_late_falls_back(shop: Shop, slow: Slow, waited_s: float, degraded: list[str]) -> None:
    answer = asked(shop, slow, waited_s)
    assert answer["degraded"] == degraded
    assert [len(widget["items"]) for widget in answer["widgets"]] == [2]  # two items in all, none twice on a page
