"""A page made elsewhere says how far it came, in the time it was given."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from serve_app.batch import Batch
from serve_app.clock import monotonic_s
from serve_app.errors import InvalidInput
from serve_app.ingress.asks import Ask, Known, request_batch, users_of
from serve_app.ledger.memory import MemoryLedger
from serve_app.serving.budgets import left_of, over_at
from serve_app.serving.given import given_widgets
from serve_app.serving.hosts import RankCall
from serve_app.serving.library import Library, Pins
from serve_app.serving.list_requests import PageFill
from serve_app.serving.pages import unranked
from serve_app.serving.relay import Baton
from serve_app.serving.trips import LocalScores, PageAnswer, PageTrip, StageFailed, Trips
from serve_app.vocabulary import Surface
from tests.unit.decision_support import at
from tests.unit.sweep_support import Shop, open_shop

NOW = at("2026-03-10T12:00:00")
PINS = Pins("r", "p", 0)


@dataclasses.dataclass
class Elsewhere:
    """Stages that do as they are told. failing: what ranking of a surface raises; waits: for retrieval."""

    waits: Callable[[], None] = lambda: None
    failing: dict[Surface, Exception] = dataclasses.field(default_factory=dict)
    asked: list[str] = dataclasses.field(default_factory=list)

    def run(self, batch: Batch, pins: Pins, kinds: Sequence[str] | None = None) -> Batch:
        """As RetrievalHost: two items a list."""
        assert pins == PINS
        assert kinds is not None
        self.asked.append(f"retrieval of {','.join(kinds)}")
        self.waits()
        n = len(batch)
        return batch.with_candidates(
            np.arange(n + 1, dtype=np.int64) * 2, item=np.tile(np.array([0, 1], np.int32), n),
            retrieval_score=np.zeros(2 * n), drop_reason=np.zeros(2 * n, np.int8),
        )  # fmt: skip

    def scored(self, call: RankCall, baton: Baton, legs: int) -> Batch:
        """As LocalScores, in retrieval's order."""
        surface = Surface(int(call.batch.requests["surface"][0]))
        self.asked.append(f"ranking of {surface.name}")
        baton.past(legs + 1)
        if surface in self.failing:
            raise self.failing[surface]
        return unranked(call.batch, call.page)


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return open_shop(tmp_path, MemoryLedger())


def trips_of(shop: Shop, elsewhere: Elsewhere) -> Trips:
    library = cast(Library, SimpleNamespace(edition=lambda _: shop.edition))
    return Trips(elsewhere, cast(LocalScores, elsewhere), library)


def page_of(shop: Shop, *, slots: int = 2, wait_s: float = 30.0) -> PageTrip:
    """Two pages of a shop of three widgets, as they arrive."""
    asks = [Ask(Surface.widgets, 10 + n, NOW, NOW + 1, user, slots=slots) for n, user in enumerate((None, "ann"))]
    known = Known(shop.ledger.recents(users_of(asks)), shop.ledger.read(users_of(asks)).state)
    batch = request_batch(asks, shop.edition, known, recents_kept=5, log_rate=1.0)
    named = [[2, 1, 0]] * len(asks)
    given = given_widgets(batch, shop.edition.release.catalogue, shop.edition.view.overlay, named)
    fill = PageFill(np.array([1, 2], np.int32), [(), ()], 1.0)
    return cast(PageTrip, sent(PageTrip(RankCall(given, PINS, explain=False, log=True), fill, wait_s)))


def sent(said: Any) -> Any:
    return pickle.loads(pickle.dumps(said, 5))


def answered(trips: Trips, trip: PageTrip) -> PageAnswer:
    return cast(PageAnswer, sent(trips.answer(trip, monotonic_s())))


def told(answer: PageAnswer, trip: PageTrip, shop: Shop) -> str:
    with pytest.raises(StageFailed) as failed:
        answer.told(trip, shop.edition)
    return str(failed.value)


def test_a_whole_page_comes_back_with_its_lists(shop: Shop) -> None:
    elsewhere, trip = Elsewhere(), page_of(shop)
    page, lists = answered(trips_of(shop, elsewhere), trip).told(trip, shop.edition)
    assert elsewhere.asked == ["ranking of widgets", "retrieval of popular,category,popular,category", "ranking of gateway"]
    assert page.requests["request_id"].tolist() == [10, 11]
    assert lists is not None
    assert lists.requests["parent_request_id"].tolist() == [10, 10, 11, 11]
    assert lists.requests["slots"].tolist() == [1, 1, 2, 2]
    assert lists.candidates["widget"].tolist() == [2, 2, 1, 1] * 2
    # No item stands twice on a page.
    assert lists.candidates["slot"].tolist() == [0, -1, -1, 0, 0, 1, -1, -1]


def test_a_page_that_shows_nothing_has_no_lists(shop: Shop) -> None:
    elsewhere, trip = Elsewhere(), page_of(shop, slots=0)
    page, lists = answered(trips_of(shop, elsewhere), trip).told(trip, shop.edition)
    assert (len(page), lists, elsewhere.asked) == (2, None, ["ranking of widgets"])


def test_where_candidates_fail_the_page_is_known(shop: Shop) -> None:
    def fails() -> None:
        raise InvalidInput("no luck", field="retrieval")

    trip = page_of(shop)
    answer = answered(trips_of(shop, Elsewhere(waits=fails)), trip)
    assert "no luck" in told(answer, trip, shop)
    assert trip.page is not None
    assert trip.lists is not None
    assert (len(trip.lists.batch), trip.lists.call) == (4, None)


def test_where_ranking_the_lists_fails_their_candidates_are_known(shop: Shop) -> None:
    trip = page_of(shop)
    answer = answered(trips_of(shop, Elsewhere(failing={Surface.gateway: ValueError("no luck")})), trip)
    assert told(answer, trip, shop) == "ValueError: no luck"
    assert trip.lists is not None
    assert trip.lists.call is not None
    assert trip.lists.call.batch.candidates["item"].tolist() == [0, 1] * 4
    assert trip.lists.call.page is not None
    assert trip.lists.call.page.tolist() == [0, 0, 1, 1]


def test_where_the_page_cannot_be_ranked_its_caller_hears_why(shop: Shop) -> None:
    elsewhere = Elsewhere(failing={Surface.widgets: ValueError("no luck")})
    with pytest.raises(ValueError, match="no luck"):
        trips_of(shop, elsewhere).answer(page_of(shop), monotonic_s())
    assert elsewhere.asked == ["ranking of widgets"]


def test_a_page_out_of_time_waits_for_nobody_and_says_what_it_has(shop: Shop) -> None:
    """A stage elsewhere is waited for as long as there is time; none is left here."""
    trip = page_of(shop, wait_s=5.0)
    elsewhere = Elsewhere(waits=lambda: cast(None, left_of(60.0)))
    late = cast(PageAnswer, sent(trips_of(shop, elsewhere).answer(trip, monotonic_s() - 5.0)))
    assert told(late, trip, shop).startswith("TimeoutError")
    assert trip.page is not None


def test_a_wait_is_as_long_as_its_budget_and_no_longer_than_the_whole() -> None:
    assert left_of(7.0) == 7.0
    with over_at(monotonic_s() + 5.0):
        assert left_of(2.0) == 2.0
        assert 4.0 < left_of(60.0) <= 5.0
        with over_at(monotonic_s()), pytest.raises(TimeoutError):
            left_of(2.0)
    assert left_of(60.0) == 60.0
