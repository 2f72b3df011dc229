"""What an ingress's micro-batchers say of themselves, told to the meters every second or two."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from serve_app.ingress.batcher import BatcherStats
from serve_app.ingress.quality import Quality
from serve_app.serving.meters import count, gauge

__all__ = ["BatcherGauges"]

_EVERY_S = 2.0
_OUTCOMES = {"requests": "batched", "refused": "refused", "abandoned": "abandoned", "expired": "expired", "late": "late"}


class BatcherGauges:
    """Queue, batches under way, what became of requests, and how widely lists look, by lane (surface)."""

    def __init__(self, lanes: Mapping[str, BatcherStats], qualities: Mapping[str, Quality]) -> None:
        self._lanes, self._qualities = lanes, qualities
        self._told = {(lane, field): 0 for lane in lanes for field in _OUTCOMES}

    def tell(self) -> None:
        """Tell the present state, and what was added since the last time."""
        for lane, stats in self._lanes.items():
            gauge("hindcast_batcher_queued", stats.queued, lane=lane)
            gauge("hindcast_batcher_in_flight", stats.in_flight, lane=lane)
            for field, outcome in _OUTCOMES.items():
                total = getattr(stats, field)
                count("hindcast_batcher_requests", total - self._told[lane, field], lane=lane, outcome=outcome)
                self._told[lane, field] = total
        for lane, quality in self._qualities.items():
            stats = self._lanes[lane]
            factor = quality.factor(asyncio.get_running_loop().time(), busy=stats.in_flight > 0 or stats.queued > 0)
            gauge("hindcast_quality", factor, lane=lane)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self.tell()
            await asyncio.sleep(_EVERY_S)
