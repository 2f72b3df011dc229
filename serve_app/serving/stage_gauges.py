"""What a process says of the calls it has: how many wait, and how many are under way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from serve_app.serving.meters import gauge
from serve_app.serving.threads import WorkThreads

__all__ = ["tell_calls"]

_EVERY_S = 2.0


async def tell_calls(stage: str, pools: Sequence[WorkThreads], queued: Callable[[], int] = lambda: 0) -> None:
    """Until cancelled. pools: threads that do the stage's work; queued: what waits elsewhere."""
    while True:
        gauge("hindcast_stage_waiting", sum(pool.waiting for pool in pools) + queued(), stage=stage)
        gauge("hindcast_stage_under_way", sum(pool.turns.under_way for pool in pools), stage=stage)
        await asyncio.sleep(_EVERY_S)
