"""How long a stage may take for a batch of a given size."""

from __future__ import annotations

__all__ = ["stretched"]

_MICRO_BATCH = 64


def stretched(budget_s: float, rows: int) -> float:
    """A stage's budget for `rows` requests: budgets are meant for micro-batches, and grow for what is larger."""
    return budget_s * max(1.0, rows / _MICRO_BATCH)
