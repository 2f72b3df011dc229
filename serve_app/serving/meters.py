"""What the serving path counts and times. Nothing is measured until a process installs a sink.

A deployment's sink is Ray's metrics: every replica's numbers then reach one place, and `/metrics` is not one random
replica's.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from serve_app.serving import spans

__all__ = ["COUNTERS", "GAUGES", "TIMERS", "Sink", "count", "gauge", "install", "observe", "timed"]

COUNTERS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "hindcast_requests": ("HTTP calls answered", ("path", "status")),
    "hindcast_degraded": ("Batches in which a stage fell back", ("stage",)),
    "hindcast_decisions": ("Send decisions by outcome", ("action", "reason")),
    "hindcast_gate_outcomes": ("Candidates of decisions by what each gate said of them", ("gate", "outcome")),
    "hindcast_ledger_outcomes": ("Rows of decisions by what the ledger said", ("status",)),
    "hindcast_ledger_conflicts": ("Decisions that lost their compare-and-set and were made anew", ()),
    "hindcast_users": ("Requests for lists, by whether recent items of the user were at hand in memory", ("known",)),
    "hindcast_batcher_requests": ("Requests that waited for a micro-batch, by what became of them", ("lane", "outcome")),
    "hindcast_key_refusals": ("Calls refused for their API key, by cause", ("cause",)),
    "hindcast_events": ("Events by what became of them", ("outcome",)),
    "hindcast_deferrals": ("Deferrals whose time had come, by what became of them", ("outcome",)),
    "hindcast_outbox": ("Outbox rows taken, by what became of them", ("outcome",)),
    "hindcast_unledgered": ("Transactional messages sent while the ledger was down", ()),
    "hindcast_feature_values": ("Feature values read, by status", ("status",)),
    "hindcast_upkeep": ("Runs that keep log and ledger one truth, by outcome", ("outcome",)),
    "hindcast_segment_sets": ("Segment membership sets by what became of them", ("outcome",)),
}
"""Counters: name -> (meaning, tags)."""

TIMERS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "hindcast_request_ms": ("Time from the first byte of a call to its answer, ms", ("path",)),
    "hindcast_stage_ms": ("Time one batch spends in a stage, ms", ("stage",)),
    "hindcast_sweep_lag_ms": ("Time from a deferral's end to the decision that answers it, ms", ()),
    "hindcast_delivery_ms": ("Time one attempt to hand a message over takes, ms", ()),
    "hindcast_batch_requests": ("Requests in one micro-batch", ("stage",)),
}
"""Distributions: name -> (meaning, tags)."""

GAUGES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "hindcast_batcher_queued": ("Requests waiting for a micro-batch", ("lane",)),
    "hindcast_batcher_in_flight": ("Micro-batches under way", ("lane",)),
    "hindcast_stage_waiting": ("Calls that wait for their turn in a stage", ("stage",)),
    "hindcast_stage_under_way": ("Calls under way in a stage", ("stage",)),
    "hindcast_quality": ("Share of the policy's width that lists look at; overload lowers it", ("lane",)),
    "hindcast_replicas": ("Replicas that report to the promotion board", ("role",)),
    "hindcast_log_lag_s": ("Age of the oldest rows that are in the journal and not in the log yet, s", ()),
    "hindcast_log_waiting_bytes": ("Bytes of the journal that are not in the log yet", ()),
    "hindcast_queue_rows": ("Deferrals and outbox rows that wait, are due, are ready, are dead", ("queue",)),
    "hindcast_sweep_lag_s": ("How long the earliest open deferral has been due, s", ()),
    "hindcast_segment_age_s": ("Age of the segment memberships in force, s", ()),
}
"""Present values: name -> (meaning, tags)."""


class Sink(Protocol):
    """Takes what is measured."""

    def add(self, name: str, amount: float, tags: Mapping[str, str]) -> None:
        """Raise a counter."""

    def observe(self, name: str, value: float, tags: Mapping[str, str]) -> None:
        """Put a value into a distribution."""

    def set(self, name: str, value: float, tags: Mapping[str, str]) -> None:
        """Say what a gauge stands at."""


_sinks: list[Sink] = []


def install(sink: Sink) -> None:
    """Send what this process measures to `sink` (the one installed last)."""
    _sinks[:] = [sink]


def count(name: str, amount: float = 1, **tags: str) -> None:
    """Raise a counter."""
    for sink in _sinks:
        sink.add(name, amount, tags)


def observe(name: str, value: float, **tags: str) -> None:
    """Put a value into a distribution."""
    for sink in _sinks:
        sink.observe(name, value, tags)


def gauge(name: str, value: float, **tags: str) -> None:
    """Say what a gauge stands at."""
    for sink in _sinks:
        sink.set(name, value, tags)


class timed:
    """Observe how long the block takes, in milliseconds, also where it fails. It is a span too, where spans are made."""

    __slots__ = ("_began", "_name", "_span", "_tags")

    def __init__(self, name: str, **tags: str) -> None:
        self._name, self._tags = name, tags
        self._span: AbstractContextManager[None] | None = None

    def __enter__(self) -> None:
        self._began = time.perf_counter()
        if spans.active():
            self._span = spans.span(" ".join(self._tags.values()) or self._name)
            self._span.__enter__()

    def __exit__(self, *error: Any) -> None:
        try:
            if self._span is not None:
                self._span.__exit__(*error)
        finally:
            observe(self._name, (time.perf_counter() - self._began) * 1e3, **self._tags)
