"""Ray's metrics as the sink of `serve_app.serving.meters`, and where each node shows them."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence

from ray.util.metrics import Counter, Gauge, Histogram

from serve_app.serving.meters import COUNTERS, GAUGES, TIMERS

__all__ = ["RayMeters", "metrics_pages"]

_LOG = logging.getLogger("hindcast.serving")
_HAND_OVER_S = 0.25
_MOST = 1 << 16  # timings kept at the most, should Ray not take them
_MS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000]


class RayMeters:
    """One Ray metric per declared name. What is measured is handed over a few times a second, counters added up: a request
    measures dozens of values, and to tell Ray of each in its midst takes twenty times as long as many after one another."""

    def __init__(self) -> None:
        self._counters = {name: Counter(name, text, tags) for name, (text, tags) in COUNTERS.items()}
        self._timers = {name: Histogram(name, text, _MS, tags) for name, (text, tags) in TIMERS.items()}
        self._gauges = {name: Gauge(name, text, tags) for name, (text, tags) in GAUGES.items()}
        self._lock = threading.Lock()
        self._sums: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self._observed = deque[tuple[str, float, Mapping[str, str]]](maxlen=_MOST)
        threading.Thread(target=self._hand_over, name="meters", daemon=True).start()

    def add(self, name: str, amount: float, tags: Mapping[str, str]) -> None:
        """See Sink."""
        if amount > 0:
            key = name, tuple(tags.items())
            with self._lock:
                self._sums[key] = self._sums.get(key, 0.0) + amount

    def observe(self, name: str, value: float, tags: Mapping[str, str]) -> None:
        """See Sink."""
        self._observed.append((name, value, tags))

    def set(self, name: str, value: float, tags: Mapping[str, str]) -> None:
        """See Sink."""
        self._gauges[name].set(value, dict(tags))

    def flush(self) -> None:
        """Hand over what was added up."""
        with self._lock:
            sums, self._sums = self._sums, {}
        for (name, tags), amount in sums.items():
            self._counters[name].inc(amount, dict(tags))
        for _ in range(len(self._observed)):
            timer, value, own = self._observed.popleft()
            self._timers[timer].observe(value, dict(own))

    def _hand_over(self) -> None:
        while True:
            time.sleep(_HAND_OVER_S)
            try:
                self.flush()
            except Exception:  # noqa: BLE001 - whatever it was, what comes later is told
                _LOG.exception("metrics could not be handed to Ray")


def metrics_pages() -> Sequence[str]:
    """Address of every living node's metrics page. Asks Ray's head: not for the event loop."""
    import ray

    return [
        f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        for node in ray.nodes()
        if node["Alive"] and node.get("MetricsExportPort")
    ]
