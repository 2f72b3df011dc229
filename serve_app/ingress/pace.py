"""How fast a surface's requests are answered, and what follows: how many may be under way, how long another would wait.

Only time in which requests wait counts, for only then is the pace what can be done and not what was asked. By Little's law
as many requests may be under way as are answered in the time a micro-batch should take: where the stages are slow, more of
them under way would only all be late together.

No clock is read here; times are the event loop's and come with every call.
"""

from __future__ import annotations

import math

__all__ = ["Pace"]

_MEMORY_S = 1.0  # of time with requests waiting: older answers weigh less by a factor of e for each
_FORGET_S = 5.0  # without any waiting: what was slow then may not be slow now
_PRIOR = (8.0, 0.05)  # requests and seconds that the first answers are added to: one slow answer is no pace


class Pace:
    """Requests a second while requests wait; unknown until some have waited."""

    def __init__(self) -> None:
        self._since_s: float | None = None
        self._last_s = -math.inf
        self._requests, self._seconds = _PRIOR

    def waiting(self, now_s: float, any_waiting: bool) -> None:
        """Whether requests wait from now on."""
        if not any_waiting:
            self._since_s = None
        elif self._since_s is None:
            self._since_s = now_s

    def answered(self, requests: int, now_s: float) -> None:
        """So many requests were answered just now."""
        if self._since_s is None:
            return
        gap = max(now_s - self._since_s, 1e-6)
        kept = math.exp(-gap / _MEMORY_S)
        self._requests, self._seconds = self._requests * kept + requests, self._seconds * kept + gap
        self._since_s = self._last_s = now_s

    def per_s(self, now_s: float) -> float | None:
        """Requests a second; None: unknown."""
        if self._since_s is None and now_s - self._last_s > _FORGET_S:
            self._last_s, (self._requests, self._seconds) = -math.inf, _PRIOR
        return self._requests / self._seconds if self._last_s > -math.inf else None

    def room(self, within_s: float, now_s: float) -> float:
        """Requests that may be under way so that they are done `within_s`: at least one."""
        known = self.per_s(now_s)
        return math.inf if known is None else max(1.0, math.floor(known * within_s))

    def wait_s(self, ahead: int, now_s: float) -> float:
        """How long a request waits behind `ahead` others."""
        known = self.per_s(now_s)
        return 0.0 if known is None else ahead / known
