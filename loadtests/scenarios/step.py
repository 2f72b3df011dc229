"""What behaviours are made of: steps they ask for, answers they get. A behaviour is a generator of steps; it does no I/O."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any

import orjson

__all__ = ["REFUSED", "Answer", "Behaviour", "Step", "post"]

REFUSED = (429, 503)
"""Statuses of a proper refusal, of an answer or of a batch's row."""


@dataclass(slots=True)
class Answer:
    """What came back. status 0: nothing did; `error` then says why. content: the JSON, where it was JSON."""

    status: int
    content: Any = None
    media: str = ""
    retry_after: str | None = None
    error: str = ""
    raw: bytes = b""

    @property
    def good(self) -> bool:
        """A result, not a problem."""
        return 200 <= self.status < 300


@dataclass(slots=True)
class Step:
    """One request. route: method and path template, as OpenAPI names them. check: what must not be, of a good answer.
    expect: the status that a request wrong on purpose must get."""

    route: str
    path: str
    body: bytes | None = None
    check: Callable[[Answer], Iterable[str]] | None = None
    expect: int | None = None

    @property
    def method(self) -> str:
        """GET or POST."""
        return self.route.split(" ", 1)[0]


Behaviour = Generator[Step, Answer, None]


def post(path: str, content: Any, check: Callable[[Answer], Iterable[str]] | None = None, expect: int | None = None) -> Step:
    """A POST of JSON."""
    return Step(f"POST {path}", path, orjson.dumps(content), check, expect)
