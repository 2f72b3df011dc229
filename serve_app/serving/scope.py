"""Whose work is under way: the calls and requests that log lines and spans name. Follows tasks, as context variables do.

A micro-batch works for several calls at once; its lines name all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

__all__ = ["CallScope", "current", "joined", "note_request", "of_call", "of_requests"]

_MOST = 8  # request ids in one line


@dataclass(slots=True)
class CallScope:
    """call: id of the HTTP call, "" outside of one; caller: name of its key; request_ids: what it was admitted under."""

    call: str
    caller: str = ""
    request_ids: list[str] = field(default_factory=list)


_scopes: ContextVar[tuple[CallScope, ...]] = ContextVar("hindcast_scope", default=())


def current() -> tuple[CallScope, ...]:
    """What is worked for now."""
    return _scopes.get()


class _Entered:
    """The block works for these. Why it is a class: see serve_app.serving.threads."""

    __slots__ = ("_scopes", "_token")

    def __init__(self, scopes: tuple[CallScope, ...]) -> None:
        self._scopes = scopes

    def __enter__(self) -> CallScope:
        self._token = _scopes.set(self._scopes)
        return self._scopes[0]

    def __exit__(self, *_: object) -> None:
        _scopes.reset(self._token)


def of_call(call: str) -> AbstractContextManager[CallScope]:
    """One HTTP call."""
    return _Entered((CallScope(call),))


def note_request(request_id: int) -> None:
    """The call under way was admitted under this id."""
    for scope in _scopes.get():
        if len(scope.request_ids) < _MOST:
            scope.request_ids.append(f"{request_id:016x}")


@contextmanager
def joined(scopes: Iterable[tuple[CallScope, ...]]) -> Iterator[None]:
    """Work for several calls at once."""
    token = _scopes.set(tuple(one for several in scopes for one in several))
    try:
        yield
    finally:
        _scopes.reset(token)


def of_requests(request_ids: npt.NDArray[np.uint64]) -> AbstractContextManager[CallScope]:
    """Work in another process than the call's, which knows its requests by id."""
    return _Entered((CallScope("", request_ids=[f"{one:016x}" for one in request_ids[:_MOST].tolist()]),))
