"""The closed loop: policies acting on a world's people, who answer, tire and leave. A model, not a measurement.

Every policy meets the same people and the same noise, so differences are paired user by user and two equal policies differ
by exactly 0. What is least known of real people is how they tire: the same comparison is made with the world's fatigue
taken away, halved and doubled, and a conclusion that hangs on it is none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.policy.document import PolicyDocument
from serve_app.vocabulary import EventType
from simulators.world.driver import World, world_policy
from simulators.world.settings import WorldSettings

__all__ = ["BASELINE", "FATIGUE", "METRICS", "Difference", "Simulated", "lived", "simulate"]

F64 = npt.NDArray[np.float64]

METRICS = ("sends", "clicks", "conversions", "revenue", "opt_outs")
"""Of a user over all days, whatever caused them; clicks are those on messages."""
BASELINE = "world's own"
FATIGUE = (0.0, 0.5, 1.0, 2.0)
_FATIGUED = ("fatigue_click", "fatigue_optout", "fatigue_activity")
_COUNTED = {EventType.conversion: 2, EventType.opt_out: 4}
_REACH = 1.959963984540054  # normal quantile of 95 %


@dataclass(frozen=True, slots=True)
class Difference:
    """A policy's mean a user, the baseline's, their paired difference and its 95 % interval over users."""

    policy: str
    metric: str
    fatigue: float
    value: float
    baseline: float
    difference: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Simulated:
    """users: people of the world, without bots. differences: every policy, metric and fatigue."""

    users: int
    days: int
    differences: list[Difference]

    def plain(self) -> dict[str, Any]:
        """For a file."""
        rows = [{name: getattr(one, name) for name in Difference.__slots__} for one in self.differences]
        return {"kind": "model", "users": self.users, "days": self.days, "differences": rows}


def with_fatigue(settings: WorldSettings, factor: float) -> WorldSettings:
    """The same world whose people tire `factor` times as much."""
    response = settings.response
    tired = {name: getattr(response, name) * factor for name in _FATIGUED}
    return settings.model_copy(update={"response": response.model_copy(update=tired)})


def lived(world: World, document: PolicyDocument, days: int, *, progress: Callable[[], None] = lambda: None) -> F64:
    """f64[users, METRICS]: what each person (bots left out) was sent and did in the first `days` days. progress() is called
    after each day."""
    people = world.model.population
    totals = np.zeros((len(people), len(METRICS)))
    for day in world.run(world_policy(document), days):
        for decided in day.decided:
            np.add.at(totals[:, 0], decided.sent.user[decided.granted], 1.0)
        events = day.events
        of_message = (events["type"] == EventType.click) & (events["request_id"] != 0) & (events["campaign"] >= 0)
        np.add.at(totals[:, 1], events["user"][of_message], 1.0)
        for kind, column in _COUNTED.items():
            np.add.at(totals[:, column], events["user"][events["type"] == kind], 1.0)
        bought = events[events["type"] == EventType.conversion]
        np.add.at(totals[:, 3], bought["user"], np.nan_to_num(bought["amount"]))
        progress()
    kept: F64 = totals[~people.bot]
    return kept


def simulate(
    settings: WorldSettings,
    baseline: PolicyDocument,
    policies: Mapping[str, PolicyDocument],
    *,
    days: int,
    fatigue: Sequence[float] = FATIGUE,
    progress: Callable[[], None] = lambda: None,
) -> Simulated:
    """Every policy against the baseline, at every fatigue. progress() is called after each day of each of
    ``(1 + len(policies)) * len(fatigue)`` lives."""
    found: list[Difference] = []
    users = 0
    for factor in fatigue:
        world = World(with_fatigue(settings, factor))
        before = lived(world, baseline, days, progress=progress)
        users = len(before)
        for name, document in policies.items():
            after = lived(world, document, days, progress=progress)
            found += _differences(name, factor, after, before)
    return Simulated(users, min(days, settings.days), found)


def _differences(name: str, factor: float, after: F64, before: F64) -> list[Difference]:
    out, n = [], len(after)
    for k, metric in enumerate(METRICS):
        moved = after[:, k] - before[:, k]
        mean = float(moved.mean())
        reach = float(_REACH * moved.std(ddof=1) / np.sqrt(n)) if n > 1 else float("inf")
        means = float(after[:, k].mean()), float(before[:, k].mean())
        out.append(Difference(name, metric, factor, *means, mean, mean - reach, mean + reach))
    return out
