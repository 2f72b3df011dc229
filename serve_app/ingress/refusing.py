"""Refusals leave at a pace: callers that ask again at once must not take the processor from those who are served.

While fewer are refused than the pace allows, each hears at once. Beyond that they hear one after the other, none later than
`most_s`: a caller that waits for its answer before it asks again is slowed down; another costs no more than before.
"""

from __future__ import annotations

import asyncio

__all__ = ["RefusalPace"]


class RefusalPace:
    """A leaky bucket of refusals, shared by the calls of one ingress."""

    def __init__(self, per_s: float, most_s: float) -> None:
        """per_s: refusals a second that are told at once. most_s: the longest wait."""
        self._each_s, self._most_s = 1 / per_s, most_s
        self._free_s = 0.0

    def delay_s(self, now_s: float) -> float:
        """How long a refusal made at `now_s` waits."""
        leaves = max(self._free_s, now_s)
        self._free_s = min(leaves + self._each_s, now_s + self._most_s)
        return min(leaves - now_s, self._most_s)

    async def wait(self) -> None:
        """Until a refusal made now may leave."""
        if (delay := self.delay_s(asyncio.get_running_loop().time())) > 0:
            await asyncio.sleep(delay)
