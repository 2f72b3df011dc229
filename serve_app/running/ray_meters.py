"""Ray's metrics as the sink of `serve_app.serving.meters`, and where each node shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ray.util.metrics import Counter, Gauge, Histogram

from serve_app.serving.meters import COUNTERS, GAUGES, TIMERS

__all__ = ["RayMeters", "metrics_pages"]

_MS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000]


class RayMeters:
    """One Ray metric per declared name."""

    def __init__(self) -> None:
        self._counters = {name: Counter(name, text, tags) for name, (text, tags) in COUNTERS.items()}
        self._timers = {name: Histogram(name, text, _MS, tags) for name, (text, tags) in TIMERS.items()}
        self._gauges = {name: Gauge(name, text, tags) for name, (text, tags) in GAUGES.items()}

    def add(self, name: str, amount: float, tags: Mapping[str, str]) -> None:
        """See Sink."""
        if amount > 0:
            self._counters[name].inc(amount, dict(tags))

    def observe(self, name: str, value: float, tags: Mapping[str, str]) -> None:
        """See Sink."""
        self._timers[name].observe(value, dict(tags))

    def set(self, name: str, value: float, tags: Mapping[str, str]) -> None:
        """See Sink."""
        self._gauges[name].set(value, dict(tags))


def metrics_pages() -> Sequence[str]:
    """Address of every living node's metrics page. Asks Ray's head: not for the event loop."""
    import ray

    return [
        f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        for node in ray.nodes()
        if node["Alive"] and node.get("MetricsExportPort")
    ]
