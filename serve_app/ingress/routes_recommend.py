"""The four list surfaces: related products, the gateway page, widgets, reviews."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from serve_app.batch import Batch
from serve_app.errors import UnknownIdentifier
from serve_app.ids import hash_id
from serve_app.ingress.admission import Admitted, admitted
from serve_app.ingress.answers import envelope, explained, ranked_items
from serve_app.ingress.asks import Ask
from serve_app.ingress.auth import Scope
from serve_app.ingress.batcher import MicroBatcher, overloaded
from serve_app.ingress.calls import Call, Incoming, json_answer
from serve_app.ingress.gateway import PageAsk, Pages
from serve_app.ingress.quality import Quality
from serve_app.ingress.recommend import Lists, ListsOptions, Recommender
from serve_app.ingress.schemas import (
    Asked,
    GatewayAnswer,
    GatewayRequest,
    RelatedAnswer,
    RelatedRequest,
    ReviewsAnswer,
    ReviewsRequest,
    WidgetsAnswer,
    WidgetsRequest,
)
from serve_app.ingress.throttle import Throttle, throttled
from serve_app.release.rows import CatalogueRows
from serve_app.serving.given import given_reviews, given_widgets
from serve_app.serving.library import Library, Pins
from serve_app.settings import Settings
from serve_app.vocabulary import Surface

__all__ = ["RecommendRoutes"]

Answers = list[dict[str, Any] | Exception]


class RecommendRoutes:
    """Handlers of the list surfaces, with a micro-batcher for each."""

    def __init__(
        self, recommender: Recommender, library: Library, settings: Settings, lanes: int, throttle: Throttle | None = None
    ) -> None:
        self._recommender, self._library, self._settings = recommender, library, settings
        self._pages = Pages(recommender)
        # Widgets and reviews are given, by the catalogue or the caller: there is nothing to look for less widely.
        budget_ms = settings.budgets.request_ms
        self.qualities = {name: Quality(settings.quality, budget_ms) for name in ("related", "gateway")}

        def batcher(name: str, run: Callable[[Sequence[Any]], Awaitable[Answers]]) -> MicroBatcher[Any, dict[str, Any]]:
            own = settings.batching
            return MicroBatcher(
                throttled(run, throttle), max_requests=own.max_requests, lanes=lanes, max_queued=own.max_queued,
                run_s=own.run_share * budget_ms / 1000, wait_share=own.wait_share, quality=self.qualities.get(name),
                places=settings.http.places_of_one_surface,
            )  # fmt: skip

        self.batchers = {
            "related": batcher("related", self._run_related),
            "gateway": batcher("gateway", self._run_gateway),
            "widgets": batcher("widgets", self._run_widgets),
            "reviews": batcher("reviews", self._run_reviews),
        }

    def calls(self) -> list[Call]:
        """The calls of this module."""
        size, budget_s = self._settings.limits.body_bytes, self._settings.budgets.request_ms / 1000

        table: list[tuple[str, str, str, Any, type[Asked], Any]] = [
            (
                "related",
                "recommendations/related",
                "Products related to one product",
                self._related,
                RelatedRequest,
                RelatedAnswer,
            ),
            (
                "gateway",
                "recommendations/gateway",
                "A personal page of widgets",
                self._gateway,
                GatewayRequest,
                GatewayAnswer,
            ),
            ("widgets", "widgets/rank", "Widgets by their value to the user", self._widgets, WidgetsRequest, WidgetsAnswer),
            (
                "reviews",
                "reviews/rank",
                "A product's reviews, most helpful first",
                self._reviews,
                ReviewsRequest,
                ReviewsAnswer,
            ),
        ]
        gates = {name: partial(batcher.refuse_if_full, budget_s) for name, batcher in self.batchers.items()}
        return [
            Call("POST", f"/v1/{path}", summary, handler, Scope.read, body, answer, size, gate=gates[name])
            for name, path, summary, handler, body, answer in table
        ]

    async def _submit(self, name: str, incoming: Incoming, make: Callable[[Admitted], Any]) -> Any:
        body: Asked = incoming.body
        with admitted(incoming, body, self._library, self._settings.budgets.request_ms) as one:
            ask = make(one)
            key = ListsOptions(*one.pins, body.explain, not one.dry)
            try:
                answer = await self.batchers[name].submit((ask, key, body), key=key, leave_by_s=one.leave_by_s)
            except TimeoutError:
                raise overloaded("the list was not made in time") from None
        return json_answer(answer)

    def _quality(self, name: str, options: ListsOptions) -> float:
        """Share of the policy's width for a micro-batch that runs now. A rehearsal sees what the policy says."""
        if not options.log:
            return 1.0
        return self.qualities[name].factor(asyncio.get_running_loop().time(), busy=True)

    async def _related(self, incoming: Incoming) -> Any:
        body: RelatedRequest = incoming.body
        return await self._submit(
            "related", incoming, lambda one: _ask(Surface.related, one, body, anchor=body.item, slots=body.slots)
        )

    async def _gateway(self, incoming: Incoming) -> Any:
        body: GatewayRequest = incoming.body
        serving = self._settings.serving
        widgets, items = body.widgets or serving.page_widgets, body.slots or serving.page_items
        return await self._submit(
            "gateway", incoming, lambda one: PageAsk(_ask(Surface.widgets, one, body, slots=widgets), items)
        )

    async def _widgets(self, incoming: Incoming) -> Any:
        body: WidgetsRequest = incoming.body
        return await self._submit("widgets", incoming, lambda one: _ask(Surface.widgets, one, body, slots=body.slots))

    async def _reviews(self, incoming: Incoming) -> Any:
        body: ReviewsRequest = incoming.body
        return await self._submit(
            "reviews", incoming, lambda one: _ask(Surface.reviews, one, body, anchor=body.item, slots=body.slots)
        )

    async def _run_related(self, batch: Sequence[tuple[Ask, ListsOptions, Any]]) -> Answers:
        options = batch[0][1]
        asks = [ask for ask, _, _ in batch]
        edition, known = await self._recommender.admit(asks, options)
        requests = self._recommender.requests(asks, edition, known, self._quality("related", options))
        good = np.flatnonzero(requests.requests["anchor"] >= 0)
        answers: Answers = [_unknown_item(ask) for ask in asks]
        if len(good):
            part = requests.take(good) if len(good) < len(asks) else requests
            pins = Pins(options.release, options.policy, edition.view.seq)
            lists = await self._recommender.listed(part, pins, edition, options)
            for row, at in enumerate(good.tolist()):
                answers[at] = _answer(lists, row, asks[at], options, "items", "item")
        return answers

    async def _run_gateway(self, batch: Sequence[tuple[PageAsk, ListsOptions, Any]]) -> Answers:
        options = batch[0][1]
        made = await self._pages.pages([ask for ask, _, _ in batch], options, self._quality("gateway", options))
        return list(made)

    async def _run_widgets(self, batch: Sequence[tuple[Ask, ListsOptions, WidgetsRequest]]) -> Answers:
        options, asks = batch[0][1], [ask for ask, _, _ in batch]
        edition, known = await self._recommender.admit(asks, options)
        catalogue = edition.release.catalogue
        index = {text: row for row, text in enumerate(catalogue.widget_ids)}
        named, answers = _named([body.widgets for _, _, body in batch], index, "widgets")
        good = [at for at, answer in enumerate(answers) if answer is None]

        def candidates(requests: Batch) -> Batch:
            return given_widgets(requests, catalogue, edition.view.overlay, [named[at] for at in good])

        lists = await self._given(asks, good, edition, known, options, candidates)
        return self._fill(answers, good, lists, asks, options, "widgets", "widget")

    async def _run_reviews(self, batch: Sequence[tuple[Ask, ListsOptions, ReviewsRequest]]) -> Answers:
        options, asks = batch[0][1], [ask for ask, _, _ in batch]
        edition, known = await self._recommender.admit(asks, options)
        catalogue = edition.release.catalogue
        named, answers = _named_reviews(batch, catalogue)
        good = [at for at, answer in enumerate(answers) if answer is None]

        def candidates(requests: Batch) -> Batch:
            return given_reviews(requests, catalogue, [named[at] for at in good])

        lists = await self._given(asks, good, edition, known, options, candidates)
        return self._fill(answers, good, lists, asks, options, "reviews", "review")

    async def _given(
        self,
        asks: Sequence[Ask],
        good: Sequence[int],
        edition: Any,
        known: Any,
        options: ListsOptions,
        candidates: Callable[[Batch], Batch],
    ) -> Lists | None:
        """Rank candidates that were given, for the asks at `good`."""
        if not good:
            return None
        requests = self._recommender.requests(asks, edition, known)
        if len(good) < len(asks):
            requests = requests.take(good)
        pins = Pins(options.release, options.policy, edition.view.seq)
        return await self._recommender.rank(candidates(requests), pins, edition, options)

    @staticmethod
    def _fill(
        answers: list[Any], good: Sequence[int], lists: Lists | None, asks: Sequence[Ask], options: ListsOptions,
        name: str, kind: str,
    ) -> Answers:  # fmt: skip
        for row, at in enumerate(good):
            assert lists is not None
            answers[at] = _answer(lists, row, asks[at], options, name, kind)
        return answers


def _ask(surface: Surface, one: Admitted, body: Asked, *, anchor: str | None = None, slots: int | None = None) -> Ask:
    return Ask(
        surface=surface,
        request_id=one.request_id,
        decided_at=one.decided_at,
        deadline_at=one.deadline_at,
        user=body.user,
        anchor=anchor,
        region=body.region,
        device=body.device.value,
        recent_items=body.recent_items,
        exclude=body.exclude,
        categories=body.categories,
        slots=slots,
    )


def _answer(lists: Lists, row: int, ask: Ask, options: ListsOptions, name: str, kind: str) -> dict[str, Any]:
    answer = envelope(lists, row, ask)
    answer[name] = ranked_items(lists, row, ask, kind)
    if kind == "widget":
        rows = lists.edition.release.catalogue
        known = dict(zip(rows.widget_ids, rows.widget_titles, strict=True))
        for one in answer[name]:
            one["title"] = known[one["id"]]
    if options.explain:
        answer["explain"] = explained(lists, row, kind)
    return answer


def _unknown_item(ask: Ask) -> UnknownIdentifier:
    return UnknownIdentifier(
        f"no item {str(ask.anchor)[:60]!r} is known",
        field="item",
        hint="offer it with PUT /v1/items/{id}, or correct the id",
    )


def _named(lists: Sequence[Sequence[str] | None], index: dict[str, int], field: str) -> tuple[list[Any], list[Any]]:
    """Rows of the things named (None: all), and the problem of each request that names something unknown."""
    rows: list[list[int] | None] = []
    problems: list[Exception | None] = []
    for names in lists:
        unknown = [name for name in names or () if name not in index]
        problems.append(
            UnknownIdentifier(f"{unknown[0][:60]!r} is not known", field=field, hint="correct the id, or leave it out")
            if unknown
            else None
        )
        rows.append(None if names is None else [index[name] for name in dict.fromkeys(names) if name in index])
    return rows, problems


def _named_reviews(
    batch: Sequence[tuple[Ask, ListsOptions, ReviewsRequest]], catalogue: CatalogueRows
) -> tuple[list[list[int] | None], list[Any]]:
    rows: list[list[int] | None] = []
    problems: list[Any] = []
    offsets = catalogue.review_offsets
    for ask, _, body in batch:
        item = int(catalogue.item_rows(np.array([hash_id(body.item)], np.uint64))[0])
        if item < 0:
            rows.append(None)
            problems.append(_unknown_item(ask))
            continue
        span = range(int(offsets[item]), int(offsets[item + 1]))
        index = {catalogue.reviews["review_id"][row].as_py(): row for row in span} if body.reviews is not None else {}
        own, problem = _named([body.reviews], index, "reviews")
        rows += own
        problems += problem
    return rows, problems
