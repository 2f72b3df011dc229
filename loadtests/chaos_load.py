"""A steady open-loop load of lists and send decisions, from a client that tries again: as a well-made caller does.

A call leaves when it is due, whatever became of those before it. It is tried again after 429, 503 and failures of the
connection, with pauses that double, not before the Retry-After it was given, and given up after a stated time. A decision
carries one idempotency key through all its attempts.

The client must stay quick while hundreds of calls try again, else its own turns are what is measured: hence aiohttp, at a
fraction of HTTPX's cost a request.
"""

from __future__ import annotations

import asyncio
import random
import re
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson

from loadtests.chaos_figures import Attempt, Call
from loadtests.scenarios.answers import PROBLEM, Contract
from loadtests.scenarios.step import Answer

__all__ = ["ChaosLoad", "Patience", "Shop"]

RELATED, DECIDE = "/v1/recommendations/related", "/v1/notifications/decide"
_AGAIN = (429, 503)
_CONNECTIONS = 400


@dataclass(frozen=True)
class Patience:
    """What the client bears. attempt_s: for one attempt, longer than the server takes for one at most. gives_up_s: after the
    first no attempt begins later than this. pause_s, longest_pause_s: between attempts, doubled each time; shortened by up
    to a half at random."""

    attempt_s: float = 8.0
    gives_up_s: float = 20.0
    pause_s: float = 0.1
    longest_pause_s: float = 2.0

    def pause(self, failures: int, retry_after: str | None, rng: random.Random) -> float:
        """Seconds before the next attempt."""
        own = min(self.longest_pause_s, self.pause_s * 2.0 ** (failures - 1)) * rng.uniform(0.5, 1.0)
        return max(own, float(retry_after) if retry_after and retry_after.isdigit() else 0.0)


@dataclass(frozen=True)
class Shop:
    """What may be asked about."""

    items: Sequence[str]
    users: Sequence[str]
    campaigns: Sequence[str]


class ChaosLoad:
    """`rate` calls a second, lists and decisions in turns, until `stop`. `calls` grows as they become due."""

    def __init__(self, url: str, shop: Shop, contract: Contract, *, rate: float, patience: Patience, seed: int = 7) -> None:
        self.calls: list[Call] = []
        self._url, self._shop, self._contract = url, shop, contract
        self._rate, self._patience = rate, patience
        self._rng = random.Random(seed)
        self._run = secrets.token_hex(4)  # a key of an earlier run would bring its decision
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """No call becomes due after this; those under way are brought to an end."""
        self._stopping.set()

    async def run(self) -> None:
        """Until `stop`."""
        timeout = aiohttp.ClientTimeout(self._patience.attempt_s)
        connections = aiohttp.TCPConnector(limit=_CONNECTIONS)
        async with aiohttp.ClientSession(self._url, timeout=timeout, connector=connections) as http:
            began, number = time.monotonic(), 0
            async with asyncio.TaskGroup() as under_way:  # a fault of ours ends the run
                while not self._stopping.is_set():
                    intended = began + number / self._rate
                    await asyncio.sleep(intended - time.monotonic())
                    under_way.create_task(self._call(http, number, intended))
                    number += 1

    async def _call(self, http: aiohttp.ClientSession, number: int, intended: float) -> None:
        path, body, check = self._related() if number % 2 else self._decide(number)
        call = Call(path.rsplit("/", 1)[-1], intended, key=body.get("idempotency_key", ""))
        self.calls.append(call)
        content = orjson.dumps(body)
        while True:
            answer = await self._attempt(http, call, path, content)
            failed = call.attempts[-1].failure
            if not failed:
                call.faults = self._contract.faults(f"POST {path}", answer) or check(answer.content)
                call.degraded = tuple(answer.content.get("degraded", ()))
                call.request_id = int(answer.content["request_id"], 16)
                break
            pause = self._patience.pause(len(call.attempts), answer.retry_after, self._rng)
            if not _worth_another(answer) or time.monotonic() + pause > intended + self._patience.gives_up_s:
                break
            await asyncio.sleep(pause)
        call.over = True

    async def _attempt(self, http: aiohttp.ClientSession, call: Call, path: str, content: bytes) -> Answer:
        began = time.monotonic()
        try:
            async with http.post(path, data=content, headers={"Content-Type": "application/json"}) as said:
                raw = await said.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            call.attempts.append(Attempt(began, time.monotonic(), type(error).__name__))
            return Answer(0)
        media = said.headers.get("Content-Type", "")
        answer = Answer(said.status, _json(raw), media, said.headers.get("Retry-After"), raw=raw)
        foreign = not answer.good and (not media.startswith(PROBLEM) or not isinstance(answer.content, dict))
        call.attempts.append(Attempt(began, time.monotonic(), _failure(answer, foreign=foreign), foreign))
        return answer

    def _related(self) -> tuple[str, dict[str, Any], Callable[[Any], list[str]]]:
        item = self._rng.choice(self._shop.items)
        body = {"item": item, "user": self._rng.choice(self._shop.users), "slots": 6}

        def check(said: Any) -> list[str]:
            shown = [one["id"] for one in said["items"]]
            out = [] if 0 < len(shown) <= 6 else [f"{len(shown)} related items"]
            out += [f"{item} is shown beside itself"] if item in shown else []
            return out + (["an item is shown twice"] if len(set(shown)) < len(shown) else [])

        return RELATED, body, check

    def _decide(self, number: int) -> tuple[str, dict[str, Any], Callable[[Any], list[str]]]:
        user = self._rng.choice(self._shop.users)
        asked = self._rng.sample(self._shop.campaigns, min(5, len(self._shop.campaigns)))
        body = {"user": user, "idempotency_key": f"{self._run}-{number}", "candidates": [{"campaign": one} for one in asked]}

        def check(said: Any) -> list[str]:
            sent = [one["campaign"] for one in said["sends"]]
            out = [] if said["user"] == user else [f"asked for {user}, answered about {said['user']}"]
            out += [f"{one} was not asked for" for one in sent if one not in asked]
            return out + ([f"{len(sent)} sends where one was asked for"] if len(sent) > 1 else [])

        return DECIDE, body, check


def _json(raw: bytes) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None


def _worth_another(answer: Answer) -> bool:
    return answer.status == 0 or answer.status in _AGAIN


def _failure(answer: Answer, *, foreign: bool) -> str:
    if answer.status == 200:
        return ""
    if foreign:
        return f"{answer.status} {answer.raw[:40].decode(errors='replace')!r}"
    kind, detail = (str(answer.content.get(name, "")) for name in ("type", "detail"))
    return f"{answer.status} {kind.rsplit(':', 1)[-1]} ({re.sub('[0-9]+', 'N', detail)[:60]})"
