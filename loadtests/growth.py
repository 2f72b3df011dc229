"""Does a series of samples grow? Robust to noise, to steps of a collector, and to a warm-up.

The first fifth is left out. The slope is Theil and Sen's (the median of the slopes of all pairs), so that no single sample
counts; *growth* is the slope times the judged time. It is a fault where it passes what is allowed and the trend is one by
Mann and Kendall's test at z = 3 (a sawtooth of a garbage collector is none).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["Growth", "Limits", "Series", "judged", "trend"]

_WARM_UP = 0.2
_LEAST_SAMPLES = 8
_MOST_SAMPLES = 400
_Z = 3.0
_TOLD_ONLY = {"log", "ledger"}  # they grow with traffic by design


@dataclass
class Series:
    """Values over time (seconds)."""

    times: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, at: float, value: float) -> None:
        """One sample."""
        self.times.append(at)
        self.values.append(float(value))


@dataclass(frozen=True)
class Limits:
    """Growth that is still none: of memory (MB, or a share of what there is), of handles, threads, and files."""

    memory_mb: float = 32.0
    memory_share: float = 0.05
    handles: float = 8.0
    threads: float = 4.0
    files: float = 20.0
    size_mb: float = 64.0

    def of(self, what: str, level: float) -> float:
        """The limit of one series at its level."""
        if what == "memory":
            return max(self.memory_mb, self.memory_share * level)
        return {"handles": self.handles, "threads": self.threads, "files": self.files, "size": self.size_mb}[what]


@dataclass(frozen=True)
class Growth:
    """One series, judged. growth: over the judged time, in the series' own unit."""

    name: str
    what: str
    level: float
    growth: float
    limit: float
    z: float
    samples: int
    told_only: bool

    @property
    def fault(self) -> bool:
        """Whether it grew."""
        return not self.told_only and self.samples >= _LEAST_SAMPLES and self.growth > self.limit and self.z > _Z

    @property
    def words(self) -> str:
        """What grew, and by how much."""
        unit = {"memory": " MB", "size": " MB"}.get(self.what, "")
        return (
            f"{self.what} of {self.name} grew by {self.growth:.1f}{unit} from {self.level:.0f}, {self.limit:.0f} is allowed"
        )

    @property
    def told(self) -> dict[str, Any]:
        """Plain values."""
        return {"name": self.name, "what": self.what, "level": self.level, "growth": self.growth, "limit": self.limit,
                "z": self.z, "samples": self.samples, "fault": self.fault, "told_only": self.told_only}  # fmt: skip


def trend(times: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """(slope of Theil and Sen, z of Mann and Kendall with ties) of at least two samples."""
    first, second = np.triu_indices(len(times), k=1)
    rises = values[second] - values[first]
    slope = float(np.median(rises / (times[second] - times[first])))
    n, score = len(values), float(np.sign(rises).sum())
    _, ties = np.unique(values, return_counts=True)
    variance = (n * (n - 1) * (2 * n + 5) - float((ties * (ties - 1) * (2 * ties + 5)).sum())) / 18
    return slope, 0.0 if variance <= 0 else float((score - np.sign(score)) / variance**0.5)


def judged(name: str, what: str, series: Series, limits: Limits) -> Growth:
    """Judge one series. Too short ones are told and never a fault."""
    times, values = np.array(series.times), np.array(series.values)
    kept = times >= times[0] + _WARM_UP * (times[-1] - times[0])
    times, values = times[kept], values[kept]
    step = max(1, len(times) // _MOST_SAMPLES)
    times, values = times[::step], values[::step]
    level = float(np.median(values[: max(1, len(values) // 4)]))
    slope, z = trend(times, values) if len(times) > 1 else (0.0, 0.0)
    growth = slope * float(times[-1] - times[0])
    return Growth(name, what, level, growth, limits.of(what, level), z, len(times), name in _TOLD_ONLY)
