"""What a run measured, as things that add up: over workers, phases and routes.

Two histograms a route: *response* from the moment a request was meant to leave, *service* from the moment it left. They
differ by what the load generator or a full connection pool kept back; only the first is what a user would have felt (Tene,
"How NOT to measure latency": a generator that waits for a slow answer before it sends the next request omits what the pause
did to others).
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hdrh.histogram import HdrHistogram

__all__ = ["CAPS", "Cell", "Health", "Outcome", "Recording", "Second", "histogram", "percentile_ms"]

CAPS = "sends counted against caps"
"""A check that is there, if only with a nought, where caps were judged."""
_MOST_US = 600_000_000
_FINE, _COARSE = 3, 2
_KEPT_VIOLATIONS = 200
_SUMS = ("degraded", "verified", "violations", "bytes")
Outcome = str
"""`ok`, `refused` (429 or 503, said properly), `failed` (anything else, violations included)."""


def histogram(digits: int = _FINE) -> HdrHistogram:
    """Microseconds from 1 to ten minutes."""
    return HdrHistogram(1, _MOST_US, digits)


def percentile_ms(one: HdrHistogram, percent: float) -> float | None:
    """Milliseconds; None of nothing."""
    return one.get_value_at_percentile(percent) / 1e3 if one.get_total_count() else None


def _add(one: HdrHistogram, seconds: float) -> None:
    one.record_value(min(max(1, round(seconds * 1e6)), _MOST_US))


def _encoded(one: HdrHistogram) -> str:
    return base64.b64encode(one.encode()).decode() if one.get_total_count() else ""


def _decoded_into(target: HdrHistogram, text: str) -> None:
    if text:
        target.decode_and_add(base64.b64decode(text))


@dataclass
class Cell:
    """One route in one phase."""

    response: HdrHistogram = field(default_factory=histogram)
    service: HdrHistogram = field(default_factory=histogram)
    refusal: HdrHistogram = field(default_factory=lambda: histogram(_COARSE))
    """Of refused requests, from when they left: what saying no costs."""
    outcomes: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    degraded: int = 0
    verified: int = 0
    violations: int = 0
    bytes: int = 0

    def to_wire(self) -> dict[str, Any]:
        return {
            "response": _encoded(self.response),
            "service": _encoded(self.service),
            "refusal": _encoded(self.refusal),
            "outcomes": dict(self.outcomes),
            "statuses": dict(self.statuses),
            "degraded": self.degraded,
            "verified": self.verified,
            "violations": self.violations,
            "bytes": self.bytes,
        }

    def add_wire(self, wire: Mapping[str, Any]) -> None:
        _decoded_into(self.response, wire["response"])
        _decoded_into(self.service, wire["service"])
        _decoded_into(self.refusal, wire["refusal"])
        self.outcomes.update(wire["outcomes"])
        self.statuses.update(wire["statuses"])
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + wire[name])

    def __iadd__(self, other: Cell) -> Cell:
        self.response.add(other.response)
        self.service.add(other.service)
        self.refusal.add(other.refusal)
        self.outcomes.update(other.outcomes)
        self.statuses.update(other.statuses)
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        return self


@dataclass
class Second:
    """Requests meant for one second since the start, whenever they were answered."""

    planned: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    response: HdrHistogram = field(default_factory=lambda: histogram(_COARSE))
    """Of those answered with a result."""


@dataclass
class Health:
    """Whether the generator did what it was asked. lateness: of leaving, against the plan."""

    lateness: HdrHistogram = field(default_factory=histogram)
    planned: int = 0
    sent: int = 0
    unsent: int = 0
    """Planned and never sent: too many were under way, or the run was over."""
    unanswered: int = 0
    """Sent, and no answer was read: it was still on its way when the run was over, or could not be read."""
    workers: list[dict[str, Any]] = field(default_factory=list)


class Recording:
    """A worker's measurements, or those of several."""

    def __init__(self) -> None:
        self.cells: dict[tuple[str, str], Cell] = {}
        self.seconds: dict[int, Second] = {}
        self.health = Health()
        self.violations: list[dict[str, Any]] = []
        self.violations_total = 0
        self.checks: Counter[str] = Counter()

    def cell(self, phase: str, route: str) -> Cell:
        """The cell, made when it is missing."""
        cell = self.cells.get((phase, route))
        if cell is None:
            cell = self.cells[phase, route] = Cell()
        return cell

    def second(self, at_s: float) -> Second:
        """The second of a time since the start."""
        second = self.seconds.get(int(at_s))
        if second is None:
            second = self.seconds[int(at_s)] = Second()
        return second

    def answered(
        self, phase: str, route: str, at_s: float, *, outcome: Outcome, status: str, response_s: float, service_s: float,
        size: int, degraded: bool,
    ) -> Cell:  # fmt: skip
        """One request is over. at_s: when it was meant to leave, since the start."""
        cell = self.cell(phase, route)
        _add(cell.response, response_s)
        _add(cell.service, service_s)
        if outcome == "refused":
            _add(cell.refusal, service_s)
        cell.outcomes[outcome] += 1
        cell.statuses[status] += 1
        cell.degraded += degraded
        cell.bytes += size
        second = self.second(at_s)
        second.outcomes[outcome] += 1
        if outcome == "ok":
            _add(second.response, response_s)
        return cell

    def left(self, lateness_s: float) -> None:
        """One request leaves."""
        self.health.sent += 1
        _add(self.health.lateness, lateness_s)

    def lost(self, phase: str, route: str, at_s: float) -> None:
        """No answer to a request was read. It failed; how long it would have taken nobody knows."""
        self.health.unanswered += 1
        cell = self.cell(phase, route)
        cell.outcomes["failed"] += 1
        cell.statuses["no answer read"] += 1
        self.second(at_s).outcomes["failed"] += 1

    def violated(self, route: str, what: str, request: str, answer: str) -> None:
        """An answer that must not be. The first ones are kept whole."""
        self.violations_total += 1
        if len(self.violations) < _KEPT_VIOLATIONS:
            self.violations.append({"route": route, "what": what, "request": request[:2000], "answer": answer[:2000]})

    def to_wire(self) -> dict[str, Any]:
        """Plain values for JSON or msgpack."""
        health = self.health
        return {
            "cells": [{"phase": phase, "route": route, **cell.to_wire()} for (phase, route), cell in self.cells.items()],
            "seconds": [
                {
                    "second": at,
                    "planned": one.planned,
                    "outcomes": dict(one.outcomes),
                    "response": _encoded(one.response),
                }
                for at, one in sorted(self.seconds.items())
            ],
            "health": {
                "lateness": _encoded(health.lateness),
                "planned": health.planned,
                "sent": health.sent,
                "unsent": health.unsent,
                "unanswered": health.unanswered,
                "workers": health.workers,
            },
            "violations": self.violations,
            "violations_total": self.violations_total,
            "checks": dict(self.checks),
        }

    def add_wire(self, wire: Mapping[str, Any]) -> None:
        """Add another recording."""
        for one in wire["cells"]:
            self.cell(one["phase"], one["route"]).add_wire(one)
        for one in wire["seconds"]:
            second = self.second(one["second"])
            second.planned += one["planned"]
            second.outcomes.update(one["outcomes"])
            _decoded_into(second.response, one["response"])
        health = wire["health"]
        _decoded_into(self.health.lateness, health["lateness"])
        for name in ("planned", "sent", "unsent", "unanswered"):
            setattr(self.health, name, getattr(self.health, name) + health.get(name, 0))  # older results lack some
        self.health.workers += health["workers"]
        room = _KEPT_VIOLATIONS - len(self.violations)
        self.violations += wire["violations"][:room]
        self.violations_total += wire["violations_total"]
        self.checks.update(wire["checks"])
