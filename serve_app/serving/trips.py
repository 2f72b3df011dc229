"""Lists and pages on their way through the stages, in one thread: retrieval, features, ranking, each here or elsewhere.

A trip says how far it came, so that whoever waits for it knows which fall-back takes the place of what is missing. Trips are
plain data: a page's is sent to where lists are ranked, which asks the other stages itself, and what became of it comes back.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from serve_app.batch import Batch
from serve_app.errors import HindcastError
from serve_app.serving.budgets import over_at
from serve_app.serving.hosts import FeatureMatrix, RankCall, RankingHost
from serve_app.serving.library import Edition, Library, Pins
from serve_app.serving.list_requests import PageFill, Shelves, child_batch
from serve_app.serving.meters import count, timed
from serve_app.serving.relay import Baton, Limit, alone
from serve_app.stages.extend import extended

__all__ = [
    "FeaturesSource",
    "ListTrip",
    "LocalScores",
    "PageAnswer",
    "PageTrip",
    "RetrievalSource",
    "StageFailed",
    "TripTimes",
    "Trips",
]

_LOG = logging.getLogger("hindcast.serving")
_PAGE_SHARE = 0.85  # of its time a page is waited for elsewhere; then a process hangs, and its stages are asked once more
_WAIT_SHARE = 0.88  # of that time a page waits for retrieval and features; what is found by then is ranked


class RetrievalSource(Protocol):
    """Candidates of one batch, from this process or another; the calling thread waits for them."""

    def run(self, batch: Batch, pins: Pins, kinds: Sequence[str] | None = None) -> Batch:
        """See RetrievalHost."""


class FeaturesSource(Protocol):
    """Features of one batch, from this process or another; the calling thread waits for them."""

    def run(self, batch: Batch, pins: Pins) -> FeatureMatrix:
        """See FeaturesHost."""


class StageFailed(HindcastError):
    """A stage elsewhere failed, or took too long; the trip says which one."""


class LocalScores:
    """Features and ranking in the calling thread."""

    def __init__(self, features: FeaturesSource, ranking: RankingHost, *, features_ms: float) -> None:
        self._features, self._ranking, self.features_s = features, ranking, features_ms / 1000

    def scored(self, call: RankCall, baton: Baton, legs: int) -> Batch:
        """Features, the leg after the first `legs`, and ranking; on declared defaults where features fail."""
        kept = self._ranking.kept(call)
        try:
            with timed("hindcast_stage_ms", stage="features"):
                matrix = self._features.run(kept, call.pins)
        except Exception as error:  # noqa: BLE001 - any failure of features has the one declared fall-back
            baton.past(legs + 1)
            return self.on_defaults(call, error)
        baton.past(legs + 1)
        return self._ranking.run(call, kept, matrix, degraded=False)

    def on_defaults(self, call: RankCall, error: BaseException) -> Batch:
        """Ranking without features. error: what became of them."""
        count("hindcast_degraded", stage="features")
        _LOG.warning("features fell back to their defaults: %s: %s", type(error).__name__, error)
        kept = self._ranking.kept(call)
        return self._ranking.run(call, kept, self._ranking.defaults(call, kept.candidates.rows), degraded=True)


@dataclass(frozen=True, slots=True)
class TripTimes:
    """Budgets of the stages, and when all must be over, from the start of a trip."""

    retrieval_s: float
    ranking_s: float
    latest_s: float

    def limits(self, legs: int) -> tuple[Limit, Limit]:
        """Of a ListTrip that follows so many legs."""
        latest_s = self.latest_s
        return (
            Limit(legs + 1, self.retrieval_s, legs, latest_s),
            Limit(legs + 3, self.ranking_s, legs + 1, latest_s),
        )

    @property
    def page_s(self) -> float:
        """How long a page that is made elsewhere is waited for."""
        return min(2 * self.ranking_s + self.retrieval_s, _PAGE_SHARE * self.latest_s)

    @property
    def wait_s(self) -> float:
        """How long such a page may wait for other stages."""
        return _WAIT_SHARE * self.page_s


@dataclass(slots=True)
class ListTrip:
    """One batch on its way from requests to lists. shelves: where they stand, kinds: of widget they fill (None: on no page).
    call: made of the candidates once they are found (None: not yet)."""

    batch: Batch
    pins: Pins
    explain: bool
    log: bool
    shelves: Shelves | None = None
    kinds: Sequence[str] | None = None
    call: RankCall | None = None

    def ranking(self, candidates: Batch) -> RankCall:
        """The call that ranks them. On a page they carry the widget they would fill, so that the log says which shelf a list
        stood on. Whoever ranks them must know the catalogue changes that retrieval knew: new items among them."""
        known = max(candidates.requests["availability_seq"].tolist(), default=0)
        pins = replace(self.pins, seq=max(self.pins.seq, known))
        if self.shelves is None:
            return RankCall(candidates, pins, self.explain, self.log)
        widget = np.repeat(self.shelves.widget, np.diff(candidates.offsets))
        marked = extended(candidates, {}, widget=widget)
        return RankCall(marked, pins, self.explain, self.log, self.shelves.page)


@dataclass(slots=True)
class PageTrip:
    """Pages on their way: what lists stand on is ranked (`root`), then those shown are filled. wait_s: see TripTimes.
    page: root's answer, lists: what it asks for; each None until it is known, lists also where nothing is shown."""

    root: RankCall
    fill: PageFill
    wait_s: float = math.inf
    page: Batch | None = None
    lists: ListTrip | None = None

    @property
    def most(self) -> int:
        """Lists there can be."""
        return int(self.root.batch.requests["slots"].sum())

    def asked_by(self, page: Batch, edition: Edition) -> ListTrip | None:
        """What root's answer asks for; None: nothing is shown."""
        shelves, root = Shelves.of(page), self.root
        if not len(shelves):
            return None
        batch, known = child_batch(page, shelves, root.batch, self.fill, edition), edition.release.catalogue.widget_kinds
        kinds = [known[widget] for widget in shelves.widget.tolist()]
        return ListTrip(batch, root.pins, root.explain, root.log, shelves, kinds)


@dataclass(slots=True)
class PageAnswer:
    """What became of a page elsewhere. lists: None where nothing is shown, and where a stage failed. failed: what it said.
    unranked: candidates that could not be ranked."""

    page: Batch
    lists: Batch | None = None
    failed: str | None = None
    unranked: Batch | None = None

    def told(self, trip: PageTrip, edition: Edition) -> tuple[Batch, Batch | None]:
        """The page and its lists. StageFailed where the trip did not come to its end; it says then how far it came."""
        if self.failed is None:
            return self.page, self.lists
        trip.page, trip.lists = self.page, trip.asked_by(self.page, edition)
        if trip.lists is not None and self.unranked is not None:
            trip.lists.call = trip.lists.ranking(self.unranked)
        raise StageFailed(self.failed)


class Trips:
    """What a thread does for a trip, stage after stage."""

    def __init__(self, retrieval: RetrievalSource, scores: LocalScores, library: Library) -> None:
        self._retrieval, self.scores, self._library = retrieval, scores, library

    def lists(self, trip: ListTrip, baton: Baton, legs: int) -> Batch:
        """The three legs after the first `legs`: retrieval, features, ranking."""
        with timed("hindcast_stage_ms", stage="retrieval"):
            found = self._retrieval.run(trip.batch, trip.pins, trip.kinds)
        call = trip.ranking(found)
        baton.past(legs + 1)
        trip.call = call
        with timed("hindcast_stage_ms", stage="ranking"):
            return self.scores.scored(call, baton, legs + 1)

    def page(self, trip: PageTrip, baton: Baton) -> tuple[Batch, Batch | None]:
        """Features and ranking of the root, then of its lists: the page, and the lists or None where nothing is shown."""
        with timed("hindcast_stage_ms", stage="ranking"):
            page = self.scores.scored(trip.root, baton, 0)
        return self.filled(trip, page, baton)

    def filled(self, trip: PageTrip, page: Batch, baton: Baton) -> tuple[Batch, Batch | None]:
        """A page whose root is ranked, and its lists."""
        lists = trip.asked_by(page, self._library.edition(trip.root.pins))
        baton.past(2)
        trip.page, trip.lists = page, lists
        return page, None if lists is None else self.lists(lists, baton, 2)

    def answer(self, trip: PageTrip, asked_s: float) -> PageAnswer:
        """For a caller in another process, who has the fall-backs of retrieval and ranking; raises where root fails.
        asked_s: when the call came, on the monotonic clock."""
        try:
            with over_at(asked_s + trip.wait_s):
                return PageAnswer(*self.page(trip, alone()))
        except Exception as error:
            if trip.page is None:
                raise
            unranked = trip.lists.call if trip.lists is not None else None
            failed = f"{type(error).__name__}: {error}"
            return PageAnswer(trip.page, failed=failed, unranked=None if unranked is None else unranked.batch)
