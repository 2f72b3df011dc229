"""`hindcast top`: rates, percentiles and present values from two texts of /metrics."""

from __future__ import annotations

import io
import random
import re

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from rich.console import Console

from hindcast.commands.top import frame
from hindcast.watching import Board, board, percentile, read_metrics
from serve_app.ingress.metrics_page import merged

WORKER = ["NodeAddress", "WorkerId"]


class Process:
    """One replica's metrics, as Ray shows them."""

    def __init__(self, name: str) -> None:
        self.labels = ("10.0.0.1", name)
        self.registry = CollectorRegistry()
        buckets = [1, 2, 5, 10, 20, 50, 100]
        self.requests = Counter("ray_hindcast_requests", "", ["path", "status", *WORKER], registry=self.registry)
        self.times = Histogram("ray_hindcast_request_ms", "", ["path", *WORKER], buckets=buckets, registry=self.registry)
        self.gates = Counter("ray_hindcast_gate_outcomes", "", ["gate", "outcome", *WORKER], registry=self.registry)
        self.queued = Gauge("ray_hindcast_batcher_queued", "", ["lane", *WORKER], registry=self.registry)
        self.waiting = Gauge("ray_hindcast_stage_waiting", "", ["stage", *WORKER], registry=self.registry)
        self.values = Counter("ray_hindcast_feature_values", "", ["status", *WORKER], registry=self.registry)
        self.lag = Gauge("ray_hindcast_log_lag_s", "", WORKER, registry=self.registry)

    def answer(self, path: str, status: str, ms: float) -> None:
        self.requests.labels(path, status, *self.labels).inc()
        self.times.labels(path, *self.labels).observe(ms)

    def text(self) -> str:
        return generate_latest(self.registry).decode()


def between(before: list[str], after: list[str], seconds: float = 10.0) -> Board:
    return board(read_metrics(merged(before), 5.0), read_metrics(merged(after), 5.0 + seconds))


def test_rates_add_up_over_processes_and_states_do_not_grow() -> None:
    one, two = Process("a"), Process("b")
    one.answer("/x", "200", 3)
    before = [one.text(), two.text()]
    for _ in range(30):
        one.answer("/x", "200", 3)
    for _ in range(10):
        two.answer("/x", "503", 3)
    two.gates.labels("caps", "suppress", *two.labels).inc(50)
    for process in (one, two):
        process.queued.labels("related", *process.labels).set(4)
        process.waiting.labels("ranking", *process.labels).set(2)
        process.lag.labels(*process.labels).set(7)
    made = between(before, [one.text(), two.text()])
    (route,) = made.routes
    assert (route.name, route.per_s, route.refused_s) == ("/x", pytest.approx(4.0), pytest.approx(1.0))
    assert made.gates == {"caps": {"suppress": pytest.approx(5.0)}}
    assert made.queued == {"related": 8}
    assert made.waiting == {"ranking": 4}
    assert made.log_lag_s == 7


def test_a_process_that_ends_or_begins_makes_no_spike() -> None:
    old, new, kept = Process("a"), Process("b"), Process("c")
    for process in (old, kept):
        for _ in range(1000):
            process.answer("/x", "200", 3)
    before = [old.text(), kept.text()]
    for _ in range(20):
        new.answer("/x", "200", 3)
    assert between(before, [kept.text(), new.text()]).routes[0].per_s == pytest.approx(2.0)


def test_percentiles_are_right_to_a_bucket() -> None:
    draw = random.Random(5)
    times = [draw.lognormvariate(2.0, 0.8) for _ in range(5000)]
    process = Process("a")
    process.answer("/x", "200", 0.5)
    before = [process.text()]
    for ms in times:
        process.answer("/x", "200", ms)
    route = between(before, [process.text()]).routes[0]
    bounds = np.array([0, 1, 2, 5, 10, 20, 50, 100])
    for found, share in ((route.p50, 50), (route.p99, 99)):
        true = float(np.percentile(times, share))
        at = int(np.searchsorted(bounds, true))
        assert found is not None
        assert bounds[at - 1] <= found <= bounds[at]


@pytest.mark.parametrize(
    ("buckets", "share", "expected"),
    [
        ({}, 0.5, None),
        ({1.0: 0.0, float("inf"): 0.0}, 0.5, None),
        ({1.0: 10.0, float("inf"): 10.0}, 0.5, 0.5),
        ({1.0: 0.0, 2.0: 10.0, float("inf"): 10.0}, 0.5, 1.5),
        ({1.0: 5.0, float("inf"): 10.0}, 0.99, 1.0),
    ],
)
def test_percentiles_at_the_edges(buckets: dict[float, float], share: float, expected: float | None) -> None:
    assert percentile(buckets, share) == expected


def test_pages_of_several_nodes_are_one_valid_text() -> None:
    one, two = Process("a"), Process("b")
    for process in (one, two):
        process.answer("/x", "200", 3)
    text = merged([one.text(), two.text()])
    assert text.count("# TYPE ray_hindcast_request_ms histogram") == 1
    assert sum(value for (name, _, _), value in read_metrics(text, 0).values.items() if name == "request_ms_count") == 2


def test_a_frame_shows_what_is_wrong() -> None:
    process = Process("a")
    before = [process.text()]
    for _ in range(10):
        process.answer("/v1/recommendations/related", "503", 8)
    process.values.labels("stale", *process.labels).inc(80)
    console = Console(file=io.StringIO(), width=160)
    console.print(frame("http://x", read_metrics(merged(before), 0.0), read_metrics(process.text(), 2.0)))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "5.0 requests/s" in shown
    assert "5.0 of them refused or failed" in shown
    assert "/v1/recommendations/related" in shown
    assert re.search(r"feature values stale +40/s", shown)


def test_nothing_measured_yet_is_no_error() -> None:
    empty = read_metrics("", 0.0)
    console = Console(file=io.StringIO(), width=100)
    console.print(frame("http://x", empty, empty))
    assert "measuring" in console.file.getvalue()  # type: ignore[attr-defined]
