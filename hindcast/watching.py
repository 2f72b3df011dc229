"""What `hindcast top` shows: two readings of `/metrics` made into rates, percentiles and present values.

Words: a *reading* is one text of `/metrics`, with a value for every process; a *board* is what happened between two of them.
Percentiles come from the histograms' buckets, by straight lines inside a bucket: as exact as the buckets are narrow.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Board", "Reading", "Route", "board", "percentile", "read_metrics"]

_PREFIX = "ray_hindcast_"
_OWN_LABELS = frozenset(
    {"path", "status", "stage", "lane", "outcome", "queue", "role", "gate", "action", "reason", "cause", "known", "le"}
)
_LARGEST = frozenset({"log_lag_s", "log_waiting_bytes", "replicas", "queue_rows", "segment_age_s", "sweep_lag_s"})
"""Gauges that say the same from every process: the largest counts, they are not added up."""

Labels = tuple[tuple[str, str], ...]


Key = tuple[str, Labels, str]


@dataclass(frozen=True)
class Reading:
    """values: (name without prefix, our own labels, process) -> value. at_s: seconds of a clock that never goes back."""

    at_s: float
    values: Mapping[Key, float]


def read_metrics(text: str, at_s: float) -> Reading:
    """A reading of Prometheus text."""
    from prometheus_client.parser import text_string_to_metric_families

    values: dict[Key, float] = {}
    for family in text_string_to_metric_families(text):
        if family.name.startswith(_PREFIX):
            for sample in family.samples:
                labels = tuple(sorted((key, value) for key, value in sample.labels.items() if key in _OWN_LABELS))
                process = f"{sample.labels.get('NodeAddress', '')}/{sample.labels.get('WorkerId', '')}"
                values[sample.name.removeprefix(_PREFIX).removesuffix("_total"), labels, process] = sample.value
    return Reading(at_s, values)


@dataclass(frozen=True)
class Route:
    """One path, or one stage. per_s: calls (batches) a second; p50, p99: ms; None: nothing happened. refused_s: answers of
    429 or 5xx a second; wrong_s: other 4xx."""

    name: str
    per_s: float
    p50: float | None
    p99: float | None
    refused_s: float = 0.0
    wrong_s: float = 0.0


@dataclass(frozen=True)
class Board:
    """What happened in `seconds`. Rates are per second."""

    seconds: float
    routes: tuple[Route, ...]
    stages: tuple[Route, ...]
    degraded: Mapping[str, float]
    queued: Mapping[str, float]
    in_flight: Mapping[str, float]
    waiting: Mapping[str, float]
    """Stage -> calls that wait for their turn."""
    batch_rows: float | None
    """Requests in a micro-batch, on average."""
    replicas: Mapping[str, float]
    actions: Mapping[str, float]
    gates: Mapping[str, Mapping[str, float]]
    """Gate -> outcome -> candidates a second."""
    features: Mapping[str, float]
    conflicts: float
    queues: Mapping[str, float]
    log_lag_s: float | None
    log_waiting_bytes: float | None


def board(before: Reading, after: Reading) -> Board:
    """What happened between two readings."""
    seconds = max(after.at_s - before.at_s, 1e-9)
    grown = _Grown(before, after, seconds)
    requests = grown.by("requests", "path", "status")
    batches = sum(grown.by("batch_requests_count").values())
    return Board(
        seconds=seconds,
        routes=tuple(
            Route(path, *grown.times("request_ms", "path", path), *_failed(requests, path))
            for path in sorted(grown.names("request_ms_count", "path"))
        ),
        stages=tuple(
            Route(stage, *grown.times("stage_ms", "stage", stage))
            for stage in sorted(grown.names("stage_ms_count", "stage"))
        ),
        degraded=grown.one("degraded", "stage"),
        queued=_now(after, "batcher_queued", "lane"),
        in_flight=_now(after, "batcher_in_flight", "lane"),
        waiting=_now(after, "stage_waiting", "stage"),
        batch_rows=sum(grown.by("batch_requests_sum").values()) / batches if batches else None,
        replicas=_now(after, "replicas", "role"),
        actions=grown.one("decisions", "action"),
        gates=_gates(grown.by("gate_outcomes", "gate", "outcome")),
        features=grown.one("feature_values", "status"),
        conflicts=sum(grown.by("ledger_conflicts").values()),
        queues=_now(after, "queue_rows", "queue"),
        log_lag_s=_now(after, "log_lag_s", "").get(""),
        log_waiting_bytes=_now(after, "log_waiting_bytes", "").get(""),
    )


class _Grown:
    """How much each series grew, per second. One that is new, or fell because its process began anew, grew from 0; one that
    is gone with its process did not grow."""

    def __init__(self, before: Reading, after: Reading, seconds: float) -> None:
        self._rates: defaultdict[tuple[str, Labels], float] = defaultdict(float)
        for key, value in after.values.items():
            was = before.values.get(key, 0.0)
            self._rates[key[:2]] += (value - was if value >= was else value) / seconds

    def by(self, name: str, *labels: str) -> dict[tuple[str, ...], float]:
        """Growth of a name, summed by some labels."""
        out: defaultdict[tuple[str, ...], float] = defaultdict(float)
        for (one, own), rate in self._rates.items():
            if one == name:
                known = dict(own)
                out[tuple(known.get(label, "") for label in labels)] += rate
        return dict(out)

    def one(self, name: str, label: str) -> dict[str, float]:
        """Growth by one label."""
        return {key[0]: rate for key, rate in sorted(self.by(name, label).items())}

    def names(self, name: str, label: str) -> set[str]:
        """Values that a label has."""
        return set(self.one(name, label))

    def times(self, name: str, label: str, value: str) -> tuple[float, float | None, float | None]:
        """Rate, median and 99th percentile of a distribution."""
        buckets: dict[float, float] = {}
        for (own, upper), rate in self.by(f"{name}_bucket", label, "le").items():
            if own == value:
                buckets[float(upper)] = rate
        per_s = self.by(f"{name}_count", label).get((value,), 0.0)
        return per_s, percentile(buckets, 0.5), percentile(buckets, 0.99)


def percentile(buckets: Mapping[float, float], share: float) -> float | None:
    """The value below which `share` of the observations lie. buckets: upper bound -> observations at or below it (the last
    bound is infinity). None without observations; the largest finite bound where it lies beyond."""
    bounds = sorted(buckets)
    counts = [buckets[bound] for bound in bounds]
    if not counts or counts[-1] <= 0:
        return None
    wanted = share * counts[-1]
    at = min(bisect_left(counts, wanted), len(bounds) - 1)
    low = bounds[at - 1] if at else 0.0
    if bounds[at] == float("inf"):
        return low
    below = counts[at - 1] if at else 0.0
    return low + (bounds[at] - low) * (wanted - below) / (counts[at] - below)


def _failed(requests: Mapping[tuple[str, ...], float], path: str) -> tuple[float, float]:
    refused = wrong = 0.0
    for (own, status), rate in requests.items():
        if own == path and (status.startswith("5") or status == "429"):
            refused += rate
        elif own == path and status.startswith("4"):
            wrong += rate
    return refused, wrong


def _gates(rates: Mapping[tuple[str, ...], float]) -> dict[str, dict[str, float]]:
    out: defaultdict[str, dict[str, float]] = defaultdict(dict)
    for (gate, outcome), rate in rates.items():
        out[gate][outcome] = rate
    return dict(out)


def _now(reading: Reading, name: str, label: str) -> dict[str, float]:
    out: dict[str, float] = {}
    for (one, labels, _), value in sorted(reading.values.items()):
        if one == name:
            of = dict(labels).get(label, "")
            out[of] = max(out.get(of, 0.0), value) if name in _LARGEST else out.get(of, 0.0) + value
    return out
