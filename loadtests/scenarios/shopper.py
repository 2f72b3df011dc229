"""A shopper's visit: a page, a product, what goes with it, perhaps the basket and an order; and the events of all that.

It draws from its own generator only, so a seed gives the same visits to the same answers.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from loadtests.scenarios.audience import Audience
from loadtests.scenarios.lists import faults_of_explained, faults_of_list, faults_of_page
from loadtests.scenarios.step import Answer, Behaviour, Step, post

__all__ = ["event", "visit"]

_RELATED, _GATEWAY = "/v1/recommendations/related", "/v1/recommendations/gateway"
_WIDGETS, _REVIEWS, _EVENTS = "/v1/widgets/rank", "/v1/reviews/rank", "/v1/events"
Looking = Generator[Step, Answer, str | None]
"""Steps, and in the end the product to look at next."""
_DEVICES = ("app", "mobile_web", "desktop")
_AGAIN, _EXPLAIN, _WRONG, _STRANGER, _LIMITED = 0.02, 0.02, 0.02, 0.05, 0.05
_CLICKS, _READS_REVIEWS, _ADDS, _BUYS, _MOVES_ON = 0.8, 0.3, 0.25, 0.4, 0.65


def event(kind: str, user: str, number: str, **data: Any) -> dict[str, Any]:
    """A CloudEvent of now."""
    return {
        "specversion": "1.0",
        "id": number,
        "source": "/load-test",
        "type": kind,
        "subject": user,
        "time": datetime.now(UTC).isoformat(),
        "data": data,
    }


def visit(audience: Audience, rng: random.Random, run: str) -> Behaviour:
    """One visit. run: text that makes event ids unique among runs."""
    user = rng.choice(audience.users) if rng.random() > _STRANGER else f"stranger-{rng.getrandbits(48):x}"
    shopper = _Shopper(audience, rng, user, f"{run}-{rng.getrandbits(64):016x}")
    item = yield from shopper.opens_page()
    while item is not None:
        item = yield from shopper.looks_at(item)
    yield from shopper.leaves()


class _Shopper:
    """What one visit remembers."""

    def __init__(self, audience: Audience, rng: random.Random, user: str, session: str) -> None:
        self._audience, self._rng, self._user, self._session = audience, rng, user, session
        self._asked = {"user": user, "device": rng.choice(_DEVICES)}
        self._seen: list[str] = []
        self._waiting: list[dict[str, Any]] = []
        self._sent = 0

    def opens_page(self) -> Looking:
        """The gateway page; the product clicked, or None."""
        widgets, slots = self._rng.randint(2, 4), self._rng.randint(3, 8)
        excluded = self._rng.sample(self._audience.items, min(3, len(self._audience.items)))
        body = {**self._asked, "widgets": widgets, "slots": slots, "exclude": excluded}

        def check(answer: Answer) -> Iterable[str]:
            return faults_of_page(answer.content, widgets=widgets, slots=slots, excluded=excluded)

        answer = yield post(_GATEWAY, body, check)
        if not answer.good:
            return None
        shown = [item for widget in answer.content["widgets"] for item in widget["items"]]
        self._note("seen", *(shown[:1]))
        return self._clicked(shown)

    def looks_at(self, item: str) -> Looking:
        """A product's page: related products, sometimes its reviews and the basket; the next product, or None."""
        rng = self._rng
        self._seen.append(item)
        self._waiting.append(self._event("view", item=item))
        if rng.random() < _WRONG:
            yield self._wrong()
        answer = yield self._related(item)
        shown = answer.content["items"] if answer.good else []
        if rng.random() < _READS_REVIEWS and self._audience.reviewed:
            yield self._reviews(item)
        if rng.random() < _ADDS:
            yield from self._adds(item)
        if rng.random() < 0.2:
            yield self._widgets()
        yield from self._tells()
        return self._clicked(shown) if rng.random() < _MOVES_ON else None

    def leaves(self) -> Behaviour:
        """What was not told yet."""
        yield from self._tells()

    def _clicked(self, shown: Sequence[Mapping[str, Any]]) -> str | None:
        if not shown or self._rng.random() > _CLICKS:
            return None
        one = shown[min(int(self._rng.expovariate(0.5)), len(shown) - 1)]
        self._note("click", one)
        clicked: str = one["id"]
        return clicked

    def _note(self, kind: str, *shown: Mapping[str, Any]) -> None:
        self._waiting += [self._event(kind, item=one["id"], decision_id=one["decision_id"]) for one in shown]

    def _event(self, kind: str, **data: Any) -> dict[str, Any]:
        self._sent += 1
        return event(kind, self._user, f"{self._session}-{self._sent}", session=self._session, **data)

    def _related(self, item: str) -> Step:
        rng, explain, slots = self._rng, self._rng.random() < _EXPLAIN, self._rng.randint(5, 20)
        excluded = [one for one in self._seen if one != item][-50:]
        body: dict[str, Any] = {**self._asked, "item": item, "slots": slots, "exclude": excluded, "explain": explain}
        if self._audience.categories and rng.random() < _LIMITED:
            body["categories"] = rng.sample(self._audience.categories, min(3, len(self._audience.categories)))

        def check(answer: Answer) -> Iterable[str]:
            out = faults_of_list(answer.content["items"], slots=slots, excluded=[*excluded, item])
            return out + (faults_of_explained(answer.content, "items") if explain else [])

        return post(_RELATED, body, check)

    def _reviews(self, item: str) -> Step:
        asked = self._rng.choice(self._audience.reviewed) if self._rng.random() < 0.5 else item

        def check(answer: Answer) -> Iterable[str]:
            return faults_of_list(answer.content["reviews"], slots=5)

        return post(_REVIEWS, {**self._asked, "item": asked, "slots": 5}, check)

    def _widgets(self) -> Step:
        known = self._audience.widgets
        among = self._rng.sample(known, self._rng.randint(1, len(known))) if known and self._rng.random() < 0.5 else None

        def check(answer: Answer) -> Iterable[str]:
            return faults_of_list(answer.content["widgets"], slots=5, among=among)

        return post(_WIDGETS, {**self._asked, "slots": 5, **({"widgets": among} if among else {})}, check)

    def _adds(self, item: str) -> Behaviour:
        amount = float(self._rng.randint(1, 100) * 1000)
        self._waiting.append(self._event("add_to_cart", item=item, quantity=1))
        if self._rng.random() < _BUYS:
            yield from self._tells()
            self._waiting.append(self._event("conversion", item=item, quantity=1, amount=amount, currency="KRW"))

    def _tells(self) -> Behaviour:
        """Send what happened; now and then twice, as a client does that missed the answer."""
        told, self._waiting = self._waiting, []
        if not told:
            return
        answer = yield post(_EVENTS, told, lambda answer: _counted(answer, accepted=len(told)))
        if answer.good and self._rng.random() < _AGAIN:
            yield post(_EVENTS, told, lambda answer: _counted(answer, duplicates=len(told)))

    def _wrong(self) -> Step:
        """A request that must be refused, and say what is wrong."""
        if self._rng.random() < 0.5:
            body: dict[str, Any] = {**self._asked, "item": f"no-such-item-{self._rng.getrandbits(32):x}"}
            return post(_RELATED, body, lambda answer: _names(answer, "item"), expect=404)
        body = {**self._asked, "item": self._seen[-1], "slot": 5}
        return post(_RELATED, body, lambda answer: _names(answer, "slot"), expect=422)


def _counted(answer: Answer, *, accepted: int = 0, duplicates: int = 0) -> list[str]:
    said = answer.content
    if (said["accepted"], said["duplicates"], said["refused"]) == (accepted, duplicates, 0):
        return []
    return [f"accepted {said['accepted']}, duplicates {said['duplicates']}, refused {said['refused']}: {said['errors'][:2]}"]


def _names(answer: Answer, field: str) -> list[str]:
    said = answer.content.get("field")
    return [] if said == field else [f"the problem names field {said!r}, wrong is {field!r}"]
