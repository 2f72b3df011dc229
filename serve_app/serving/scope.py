"""Whose work is under way: the calls and requests that log lines and spans name. Follows tasks, as context variables do.

A micro-batch works for several calls at once; its lines name all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
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


@contextmanager
def of_call(call: str) -> Iterator[CallScope]:
    """One HTTP call."""
    scope = CallScope(call)
    token = _scopes.set((scope,))
    try:
        yield scope
    finally:
        _scopes.reset(token)


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


@contextmanager
def of_requests(request_ids: npt.NDArray[np.uint64]) -> Iterator[None]:
    """Work in another process than the call's, which knows its requests by id."""
    token = _scopes.set((CallScope("", request_ids=[f"{one:016x}" for one in request_ids[:_MOST].tolist()]),))
    try:
        yield
    finally:
        _scopes.reset(token)
