"""What happens to the shop itself: the policy's promotion, items launched, sold out, back in stock."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulators.world.model import Model
from simulators.world.settings import DAY_US

__all__ = ["Environment", "environment_of"]


@dataclass(frozen=True, slots=True)
class Environment:
    """Rows of the environment table in order; row i has env_seq i. `last` i64[days]: the last one in force on each day."""

    ts: npt.NDArray[np.int64]
    kind: list[str]
    payload: list[str]
    last: npt.NDArray[np.int64]


def environment_of(model: Model, policy_revision: str) -> Environment:
    """Everything happens at the start of its day (UTC)."""
    settings, items = model.settings, model.items
    days: list[int] = [0]
    kinds = ["promotion"]
    payloads = [json.dumps({"policy_revision": policy_revision})]
    for day in range(settings.days):
        changes = (
            (items.launch_day == day, True),
            (items.sold_out_day == day, False),
            (items.restock_day == day, True),
        )
        for happens, available in changes:
            for row in np.flatnonzero(happens):
                days.append(day)
                kinds.append("availability")
                payloads.append(json.dumps({"item_id": items.item_id[row], "available": available}))
    at = np.asarray(days, np.int64)
    last = np.searchsorted(at, np.arange(settings.days), side="right").astype(np.int64) - 1
    return Environment(settings.start_us + at * DAY_US, kinds, payloads, last)
