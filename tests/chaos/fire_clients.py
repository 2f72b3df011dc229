"""Clients that never give up: 64 connections that ask for decisions on the same users while things die around them.

Most ask for one user at a time, a quarter for hundreds of rows in a call: the 50 users of everybody twice, and others once.

A row with an idempotency key is asked for again, with the same key, until it is answered. A row without one is asked for
once: where its answer is lost, that is written down. Every answer is kept, and every failure with what it claimed.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

import httpx
import orjson
import xxhash

from tests.chaos.exactness_checker import Answer, Lost, Send
from tests.chaos.exactness_rules import CHANNELS

PROBLEM = "application/problem+json"
UNKNOWN = "urn:hindcast:problem:outcome-unknown"
NOTHING_DONE = frozenset(f"urn:hindcast:problem:{kind}" for kind in ("not-ready", "overloaded", "ledger-unavailable"))
TIMEOUT_S = 30.0
LARGE = 200
"""Users of a large call beside the hot ones."""


def hashed(name: str) -> int:
    """What the server calls a user or a campaign."""
    return xxhash.xxh3_64_intdigest(name.encode())


def wall_us() -> int:
    """The test's own clock."""
    return time.time_ns() // 1000


@dataclass(frozen=True)
class Row:
    """One decision to ask for."""

    user: str
    key: str
    fields: tuple[tuple[str, Any], ...]

    def body(self) -> dict[str, Any]:
        """As the API takes it."""
        own = {"idempotency_key": self.key} if self.key else {}
        return {"user": self.user, **own, **dict(self.fields)}


@dataclass(frozen=True)
class CallMade:
    """One HTTP call: when it was sent and ended (monotonic seconds), decisions it brought, what went wrong."""

    sent_s: float
    done_s: float
    decisions: int
    failure: str


@dataclass
class Book:
    """All that clients saw."""

    answers: list[Answer] = field(default_factory=list)
    lost: list[Lost] = field(default_factory=list)
    owned: set[tuple[int, str]] = field(default_factory=set)
    calls: list[CallMade] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    strange: list[str] = field(default_factory=list)
    decisions: int = 0
    repeats: int = 0
    retried: int = 0

    def took(self, row: Row, said: dict[str, Any], policy: str) -> None:
        """One row's answer."""
        user = hashed(row.user)
        sends = tuple(
            Send(one["slot"], hashed(one["campaign"]), CHANNELS.index(one["channel"]))
            for one in sorted(said["sends"], key=lambda one: one["slot"])
        )
        request_id = int(said["request_id"], 16)
        if said["user"] != row.user or said["decision_id"] != f"d{user:016x}{request_id:016x}0000":
            self.strange.append(f"{row} was answered {said}")
        replayed = said["replayed"]
        self.answers.append(Answer(user, row.key, request_id, said["action"], sends, "" if replayed else policy, replayed))
        self.repeats += replayed
        self.decisions += not replayed


class Clients:
    """`connections` clients of one server, all on the `hot` users; `others` fill up the large calls. They ask for new
    decisions until `target` of them are answered and `finish` was called."""

    def __init__(
        self,
        url: str,
        hot: list[str],
        others: list[str],
        campaigns: list[str],
        *,
        connections: int,
        target: int,
        seed: int,
    ) -> None:
        self.book = Book()
        self._url, self._hot, self._others, self._campaigns = url, hot, others, campaigns
        self._connections, self._target, self._seed = connections, target, seed
        self._answered_keys: deque[Row] = deque(maxlen=2_000)
        self._number = 0
        self._finish = False

    def finish(self) -> None:
        """Nothing more will happen to the server: stop once the target is reached."""
        self._finish = True

    @property
    def done(self) -> bool:
        """Whether enough has been decided."""
        return self._finish and self.book.decisions >= self._target

    async def run(self) -> None:
        """Until the target is reached and every key is answered."""
        limits = httpx.Limits(max_connections=2 * self._connections, max_keepalive_connections=2 * self._connections)
        async with httpx.AsyncClient(base_url=self._url, timeout=TIMEOUT_S, limits=limits) as http:
            clients = [self._many, self._one, self._one, self._one]
            await asyncio.gather(*(clients[number % 4](http, number) for number in range(self._connections)))

    async def _many(self, http: httpx.AsyncClient, number: int) -> None:
        """Large calls, one after the other."""
        rng = random.Random(self._seed * 1_000 + number)
        while not self.done:
            users = 2 * self._hot + rng.sample(self._others, LARGE)
            rng.shuffle(users)
            rows = [self._row(rng, keyed=rng.random() < 0.05, user=user) for user in users]
            if self._answered_keys:
                rows[0] = rng.choice(self._answered_keys)
            await self._until_answered(http, rows, rng)

    async def _one(self, http: httpx.AsyncClient, number: int) -> None:
        """One user at a time: with a key, without, and now and then a key that was answered before."""
        rng = random.Random(self._seed * 1_000 + number)
        while not self.done:
            draw = rng.random()
            if draw < 0.1 and self._answered_keys:
                await self._until_answered(http, [rng.choice(self._answered_keys)], rng)
            elif draw < 0.4:
                await self._until_answered(http, [self._row(rng, keyed=False)], rng)
            else:
                row = self._row(rng, keyed=True)
                # Now and then twice at the same time, like a caller to whom the first try seems slow.
                await asyncio.gather(*(self._until_answered(http, [row], rng) for _ in range(rng.choice((1, 1, 2)))))
            await asyncio.sleep(rng.uniform(0.0, 0.2))  # a caller thinks

    def _row(self, rng: random.Random, *, keyed: bool, user: str | None = None) -> Row:
        self._number += 1
        chosen = rng.sample(self._campaigns, 3)
        fields = (("candidates", [{"campaign": one} for one in chosen]), ("max_sends", rng.choice((1, 2))))
        return Row(user or rng.choice(self._hot), f"key-{self._number}" if keyed else "", fields)

    async def _until_answered(self, http: httpx.AsyncClient, rows: list[Row], rng: random.Random) -> None:
        for row in rows:
            if row.key:
                self.book.owned.add((hashed(row.user), row.key))
        while rows:
            rows = await self._ask(http, rows)
            if rows:
                self.book.retried += len(rows)
                await asyncio.sleep(rng.uniform(0.1, 0.5))  # and does not try again at once

    async def _ask(self, http: httpx.AsyncClient, rows: list[Row]) -> list[Row]:
        """One call; returns the keyed rows to ask for again."""
        single = len(rows) == 1
        path = "/v1/notifications/decide" if single else "/v1/notifications/decide-batch"
        body = rows[0].body() if single else {"rows": [row.body() for row in rows]}
        since_us, sent_s = wall_us(), time.monotonic()
        decisions, failure = 0, ""
        try:
            answer = await http.post(path, content=orjson.dumps(body))
        except httpx.TransportError as error:
            failure = f"connection: {type(error).__name__}"
            again = self._failed(rows, failure, since_us)
        else:
            if answer.status_code != 200:
                failure = self._said(answer)
                again = self._failed(rows, failure, since_us)
            else:
                before = self.book.decisions  # nothing else runs until they are compared
                again = self._answered(rows, orjson.loads(answer.content), since_us, single=single)
                decisions = self.book.decisions - before
        self.book.calls.append(CallMade(sent_s, time.monotonic(), decisions, failure))
        return again

    def _said(self, answer: httpx.Response) -> str:
        """The kind of a refusal; whatever is no 503 with a problem document is strange."""
        if answer.status_code != 503 or answer.headers.get("content-type") != PROBLEM:
            self.book.strange.append(f"{answer.status_code} {answer.headers.get('content-type')}: {answer.text[:200]}")
            return f"status {answer.status_code}"
        return str(answer.json()["type"])

    def _failed(self, rows: list[Row], failure: str, since_us: int) -> list[Row]:
        self.book.failures[failure] += 1
        again = []
        for row in rows:
            if row.key:
                again.append(row)
            elif failure not in NOTHING_DONE:
                self.book.lost.append(Lost(hashed(row.user), since_us, wall_us()))
        return again

    def _answered(self, rows: list[Row], said: dict[str, Any], since_us: int, *, single: bool) -> list[Row]:
        again = []
        decisions = [said] if single else said["decisions"]
        problems = {} if single else {one["row"]: one["type"] for one in said["errors"]}
        for place, (row, decision) in enumerate(zip(rows, decisions, strict=True)):
            if decision is not None:
                self.book.took(row, decision, said["policy"])
                if row.key:
                    self._answered_keys.append(row)
            else:
                again += self._failed([row], problems[place], since_us)
        return again
