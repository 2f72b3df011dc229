"""Faults that a test plants in a running server: a named point of the serving path is slow, hangs, fails or never returns.

Off unless `testing.faults` names a file, which settings refuse but on loopback and a data folder marked as expendable; off,
a point costs one look at a module attribute. The file is JSON and is read again whenever it changes, so faults come and go
without a restart; no file, or {}, is no fault::

    {"features": {"do": "hang"}, "journal": {"do": "error", "share": 0.5}, "ranking": {"do": "delay", "delay_ms": 300}}

A file that cannot be read, or that names what is not there, is an error at start; later it leaves in force what was, and is
said in the log. Every point stands in a worker thread, where the work it stands for would hang. What was struck is written,
a point a line, to a file beside it that ends in `.struck`, so that a test can wait for it.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError, model_validator

from serve_app.errors import InvalidInput
from serve_app.vocabulary import Surface

if TYPE_CHECKING:
    from serve_app.batch import Batch
    from serve_app.stages.retrieval.neighbours import Neighbours

__all__ = ["Fault", "FaultySearch", "InjectedFault", "Point", "before", "install", "plant", "planted", "strike"]

_LOG = logging.getLogger("hindcast.serving")
_LOOK_S = 0.02
P = ParamSpec("P")
T = TypeVar("T")


class Point(StrEnum):
    """Where a fault can be planted."""

    retrieval = "retrieval"  # before candidates are collected
    search = "search"  # the search by embedding, inside retrieval
    features = "features"  # reading the feature tables
    ranking = "ranking"  # heads, value, selector
    decision = "decision"  # before the ledger is read
    ledger_read = "ledger_read"  # in the process that owns the ledger, as the two below
    ledger_commit = "ledger_commit"
    availability = "availability"  # head and gap of the live catalogue changes
    journal = "journal"  # the append that answers wait for


class InjectedFault(Exception):
    """What a point with `do: error` raises: of no kind the server knows."""


class Fault(BaseModel):
    """What happens at one point."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    do: Literal["delay", "hang", "error", "stick"]
    """delay: by `delay_ms`. hang: until the fault is taken away. error: InjectedFault. stick: until the process ends."""
    delay_ms: float | None = Field(None, gt=0, le=600_000)
    share: float = Field(1.0, gt=0, le=1)
    """Share of calls it happens to, evenly spread."""
    surface: str | None = None
    """Only batches of this surface."""

    @model_validator(mode="after")
    def _whole(self) -> Fault:
        if (self.do == "delay") != (self.delay_ms is not None):
            raise ValueError("delay_ms belongs to delay, and delay needs it")
        if self.surface is not None and self.surface not in Surface.__members__:
            raise ValueError(f"no surface {self.surface!r}")
        return self


class _File(RootModel[dict[Point, Fault]]):
    pass


class _Planted:
    """The faults of one file as one process sees them. Thread-safe."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        self._seen: tuple[int, int] | None = None
        self._calls: dict[Point, int] = {}
        self._faults: Mapping[Point, Fault] = {}
        self._read_again(strict=True)

    def of(self, point: Point) -> Fault | None:
        """What is planted at `point` now."""
        with self._lock:
            self._read_again(strict=False)
            return self._faults.get(point)

    def strike(self, point: Point, batch: Batch | None) -> None:
        """Do what is planted, if it is this call's turn."""
        fault = self.of(point)
        if fault is None or not self._turn(point, fault, batch):
            return
        _LOG.warning("TEST: fault at %s: %s", point.value, fault.do)
        with self._path.with_suffix(".struck").open("a") as struck:
            struck.write(f"{point.value}\n")
        if fault.do == "error":
            raise InjectedFault(f"planted at {point.value}")
        if fault.delay_ms is not None:
            time.sleep(fault.delay_ms / 1000)
        while fault.do == "stick" or (fault.do == "hang" and self.of(point) == fault):
            time.sleep(_LOOK_S)

    def _turn(self, point: Point, fault: Fault, batch: Batch | None) -> bool:
        if fault.surface is not None:
            if batch is None or not len(batch):
                return False
            if Surface(int(batch.requests["surface"][0])).name != fault.surface:
                return False
        with self._lock:
            n = self._calls[point] = self._calls.get(point, 0) + 1
        return int(n * fault.share) > int((n - 1) * fault.share)

    def _read_again(self, *, strict: bool) -> None:
        try:
            stat = os.stat(self._path)
            seen = stat.st_mtime_ns, stat.st_ino
        except FileNotFoundError:
            seen = 0, 0
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._faults = _parse(self._path.read_bytes()) if seen != (0, 0) else {}
        except (InvalidInput, OSError) as error:
            if strict:
                raise
            _LOG.error("the file of faults is not understood, those before stay: %s", error)


_planted: _Planted | None = None


def install(path: Path | None) -> None:
    """Let this process do what the file says from now on; None: nothing. InvalidInput where it is not understood."""
    global _planted
    _planted = None if path is None else _Planted(path)


def planted() -> bool:
    """Whether this process looks for faults at all."""
    return _planted is not None


def strike(point: Point, batch: Batch | None = None) -> None:
    """A point of the serving path. batch: what it works on, where it knows."""
    if _planted is not None:
        _planted.strike(point, batch)


def before(point: Point, function: Callable[P, T]) -> Callable[P, T]:
    """`function` with a point before it."""
    if _planted is None:
        return function

    def struck(*arguments: P.args, **keywords: P.kwargs) -> T:
        strike(point)
        return function(*arguments, **keywords)

    return struck


class FaultySearch:
    """A search by embedding with a point before it."""

    def __init__(self, search: Neighbours) -> None:
        self._search = search

    def search(self, queries: npt.NDArray[np.float32], count: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """See Neighbours."""
        strike(Point.search)
        return self._search.search(queries, count)


def plant(path: Path, faults: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the file of faults, whole or not at all. InvalidInput for what `install` would not understand."""
    content = json.dumps({point: dict(fault) for point, fault in faults.items()}).encode()
    _parse(content)
    aside = path.with_suffix(".new")
    aside.write_bytes(content)
    aside.replace(path)


def _parse(content: bytes) -> Mapping[Point, Fault]:
    try:
        return _File.model_validate_json(content).root
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidInput(first["msg"], field=f"faults.{where}", hint="see serve_app/serving/faults.py") from error
