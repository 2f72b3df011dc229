"""What a run is: which behaviours, at which rate, for how long. Pure; the same plan and seed give the same arrivals.

Words: the *rate* is requests a second over all workers. A *shape* is a row of *phases*, each with a multiple of the rate at
its start and at its end. *Open loop*: requests leave at scheduled times, whatever became of those before. *Closed loop*: a
number of users, each of whom waits for the answer and thinks before the next request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from loadtests.scenarios.errors import LoadError
from loadtests.scenarios.names import Scenario

__all__ = ["Phase", "Plan", "Scenario", "arrivals", "expected_requests", "phase_at", "phases_of", "read_plan"]

F64 = npt.NDArray[np.float64]


_STEPS = 10


class Plan(BaseModel):
    """One run, whole. Times in seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    scenario: Scenario
    rate: float | None = Field(None, gt=0, le=1e6, description="open loop: requests a second")
    users: int | None = Field(None, ge=1, le=100_000, description="closed loop: users at a time")
    duration_s: float = Field(60, gt=0, le=30 * 86_400)
    shoppers: float = Field(0.8, ge=0, le=1, description="share of requests (closed loop: of users) that shoppers make")
    factor: float = Field(10, gt=1, le=1000, description="of a spike")
    spike_s: float = Field(30, gt=0, le=3600)
    arrivals: Literal["poisson", "even"] = "poisson"
    think_s: float = Field(1.0, ge=0, le=600, description="mean time between a user's answer and their next request")
    batch_share: float = Field(0.1, ge=0, le=1, description="share of senders' calls that are batches")
    batch_rows: int = Field(50, ge=1, le=10_000)
    verify: float = Field(1.0, ge=0, le=1, description="share of answers whose content is verified")
    connections: int = Field(2_000, ge=1, le=60_000, description="open loop: most requests under way, of one worker")
    timeout_s: float = Field(30, gt=0, le=600)
    speed: float = Field(1.0, gt=0, le=1e6, description="replay: so many times faster than it was")
    seed: int = Field(0, ge=0)
    audience: Path | None = None
    trace: Path | None = None

    @model_validator(mode="after")
    def _runnable(self) -> Self:
        if self.scenario is Scenario.replay:
            if self.trace is None:
                raise ValueError("a replay needs a trace; make one with `hindcast load trace`")
            if self.rate is not None or self.users is not None:
                raise ValueError("a replay has the trace's own times; say how fast with speed, not with rate or users")
            return self
        if (self.rate is None) == (self.users is None):
            raise ValueError("say either rate (open loop) or users (closed loop)")
        if self.audience is None:
            raise ValueError("an audience is needed: who asks, for what")
        if self.users is not None and self.scenario is Scenario.spike:
            raise ValueError("a spike needs a rate: users who wait for answers cannot make one")
        return self

    @property
    def open_loop(self) -> bool:
        """Whether requests leave at scheduled times."""
        return self.users is None

    @property
    def shopper_share(self) -> float:
        """Share of requests that are shoppers'."""
        return {Scenario.shoppers: 1.0, Scenario.senders: 0.0}.get(self.scenario, self.shoppers)


def read_plan(**said: Any) -> Plan:
    """A plan, or LoadError in words that name the field."""
    try:
        return Plan(**said)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise LoadError(f"{where + ': ' if where else ''}{first['msg'].removeprefix('Value error, ')}") from None


@dataclass(frozen=True)
class Phase:
    """A stretch of a run. low, high: multiples of the plan's rate at its start and end."""

    name: str
    start_s: float
    seconds: float
    low: float
    high: float

    @property
    def end_s(self) -> float:
        """When it is over."""
        return self.start_s + self.seconds


def phases_of(plan: Plan) -> tuple[Phase, ...]:
    """The plan's shape. A spike's `duration_s` is what lies around it, half before and half after."""
    if plan.scenario is Scenario.ramp:
        each = plan.duration_s / _STEPS
        parts = [(f"step {n}", each, n / _STEPS, n / _STEPS) for n in range(1, _STEPS + 1)]
    elif plan.scenario is Scenario.spike:
        half = plan.duration_s / 2
        parts = [("before", half, 1.0, 1.0), ("spike", plan.spike_s, plan.factor, plan.factor), ("after", half, 1.0, 1.0)]
    else:
        parts = [("steady", plan.duration_s, 1.0, 1.0)]
    starts = np.concatenate([[0.0], np.cumsum([seconds for _, seconds, _, _ in parts])])
    return tuple(
        Phase(name, float(start), seconds, low, high)
        for (name, seconds, low, high), start in zip(parts, starts[:-1], strict=True)
    )


def phase_at(phases: Sequence[Phase], at_s: float) -> Phase:
    """The phase of a time since the start; the last one from its end on."""
    return next((phase for phase in phases if at_s < phase.end_s), phases[-1])


def expected_requests(phases: Sequence[Phase], rate: float) -> float:
    """How many requests the shape asks for on average."""
    return sum(rate * phase.seconds * (phase.low + phase.high) / 2 for phase in phases)


def arrivals(
    phases: Sequence[Phase], rate: float, *, kind: str = "poisson", seed: int = 0, worker: int = 0, workers: int = 1
) -> F64:
    """Times of requests in seconds since the start, ascending. f64[n].

    Poisson: unit exponential steps of the expected count, carried through the inverse of its integral, which gives the exact
    process of a changing rate. Each worker draws its own at its share of the rate; together they are one at the whole rate.
    Even: the same without chance, workers interleaved.
    """
    total = expected_requests(phases, rate) / workers
    if kind == "even":
        counts: npt.NDArray[Any] = (np.arange(int(np.ceil(total - worker / workers))) + worker / workers) + 0.5 / workers
    else:
        rng = np.random.default_rng((seed, worker, 7))
        steps = rng.exponential(size=int(total + 10 * np.sqrt(total) + 50))
        counts = np.cumsum(steps)
    times = _inverse(phases, rate / workers, counts[counts < total])
    return np.sort(times)


def _inverse(phases: Sequence[Phase], rate: float, counts: npt.NDArray[Any]) -> F64:
    """When the expected number of requests reaches each count."""
    times = np.empty(len(counts))
    before = 0.0
    for phase in phases:
        own = rate * phase.seconds * (phase.low + phase.high) / 2
        here = (counts >= before) & (counts < before + own)
        asked, slope = counts[here] - before, rate * (phase.high - phase.low) / phase.seconds
        low = rate * phase.low
        # count(t) = low t + slope t^2 / 2; the form of the root that holds for a slope of nought, too
        root = np.sqrt(np.maximum(low * low + 2 * slope * asked, 0.0))
        times[here] = phase.start_s + 2 * asked / (low + root)
        before += own
    return times
