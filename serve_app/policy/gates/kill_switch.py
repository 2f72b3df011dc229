"""Gate 1: switched off, wholly, by channel, by category, by campaign, or because the campaign is out of its dates."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch
from serve_app.kernels import inlined, kernel
from serve_app.policy.compile import CompiledPolicy
from serve_app.policy.gates.result import GateResult, HistoryView, column
from serve_app.stages.stage import Context
from serve_app.vocabulary import GateOutcome, Reason

__all__ = ["contains", "is_off", "kill_switch"]

_SUPPRESS, _REASON = int(GateOutcome.suppress), int(Reason.kill_switch)
U64 = npt.NDArray[np.uint64]
I8 = npt.NDArray[np.int8]


@inlined
def contains(values: U64, begin: int, end: int, key: np.uint64) -> bool:
    """Scalar, inside kernels: is `key` among the sorted values begin..end?"""
    low, high = begin, end
    while low < high:
        middle = (low + high) >> 1
        if values[middle] < key:
            low = middle + 1
        else:
            high = middle
    return low < end and values[low] == key


@inlined
def is_off(channel: int, killed: bool, everything: bool, channels: int) -> bool:
    """Scalar, inside kernels: is a candidate switched off, whatever its category and campaign?"""
    return everything or killed or (channel >= 0 and (channels >> channel) & 1 == 1)


@kernel
def _kill_switch(
    channel: I8, category: U64, campaign: U64, killed: npt.NDArray[np.bool_], everything: bool, channels: int,
    categories: U64, campaigns: U64, outcome: I8, reason: I8, used: npt.NDArray[np.float64],
    limit: npt.NDArray[np.float64], next_free: npt.NDArray[np.int64],
) -> None:  # fmt: skip
    for c in range(len(channel)):
        off = is_off(channel[c], killed[c], everything, channels)
        off = off or contains(categories, 0, len(categories), category[c])
        off = off or contains(campaigns, 0, len(campaigns), campaign[c])
        outcome[c] = _SUPPRESS if off else 0
        reason[c] = _REASON if off else 0
        used[c], limit[c], next_free[c] = (1.0 if off else 0.0), 0.0, 0


def kill_switch(
    batch: Batch, histories: HistoryView, policy: CompiledPolicy, context: Context, out: GateResult | None = None
) -> GateResult:
    """used: 1 when a switch is off; limit: 0."""
    del histories, context
    out = out or GateResult.empty(batch.candidates.rows)
    rows, rules = batch.candidates, policy.rules
    _kill_switch(
        column(rows, "channel"), column(rows, "category"), column(rows, "campaign"), column(rows, "campaign_killed"),
        rules.kill_all, rules.kill_channels, rules.kill_categories, rules.kill_campaigns, *out.arrays,
    )  # fmt: skip
    return out
