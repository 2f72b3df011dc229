"""How fast a surface's requests are answered, and what follows: how many may be under way, how long another would wait.

Only time in which requests wait counts, for only then is the pace what can be done and not what was asked. By Little's law
as many requests may be under way as are answered in the time a micro-batch should take: where the stages are slow, more of
them under way would only all be late together. Where even the shortest micro-batches of late took long, too few under way
would be what makes the pace slow: then the time is twice the shortest (as BBR bounds what is in flight by pace and the
shortest round trip: Cardwell et al. 2016), which lets the pace double until it is the stages' own.

No clock is read here; times are the event loop's and come with every call.
"""

from __future__ import annotations

import math

__all__ = ["Pace"]

_MEMORY_S = 1.0  # of time with requests waiting: older answers weigh less by a factor of e for each
_FORGET_S = 5.0  # without any waiting: what was slow then may not be slow now
_LEAST = 4.0  # under way at once, whatever the pace
_WINDOW_S = 5.0  # the shortest micro-batch of this long, or twice
_STEP = 0.1  # of the usual time of a micro-batch towards that of the last one
_SLOWER = 1.25  # times the usual: what a micro-batch may well take
_PRIOR = (8.0, 0.05)  # requests and seconds that the first answers are added to: one slow answer is no pace


class Pace:
    """Requests a second while requests wait; unknown until some have waited."""

    def __init__(self) -> None:
        self._since_s: float | None = None
        self._last_s = -math.inf
        self._requests, self._seconds = _PRIOR
        self._shortest_s = self._shortest_before_s = math.inf
        self._window_ends_s = -math.inf
        self._usual_s = 0.0

    def waiting(self, now_s: float, any_waiting: bool) -> None:
        """Whether requests wait from now on."""
        if not any_waiting:
            self._since_s = None
        elif self._since_s is None:
            self._since_s = now_s

    def answered(self, requests: int, took_s: float, now_s: float) -> None:
        """A micro-batch of so many requests, which took so long, was answered just now."""
        if now_s >= self._window_ends_s:
            self._shortest_before_s, self._shortest_s = self._shortest_s, math.inf
            self._window_ends_s = now_s + _WINDOW_S
        self._shortest_s = min(self._shortest_s, took_s)
        self._usual_s += (took_s - self._usual_s) * _STEP
        if self._since_s is None:
            return
        gap = max(now_s - self._since_s, 1e-6)
        kept = math.exp(-gap / _MEMORY_S)
        self._requests, self._seconds = self._requests * kept + requests, self._seconds * kept + gap
        self._since_s = self._last_s = now_s

    def forget(self, now_s: float) -> None:
        """Nothing went on for a while, so that the pace is that of nothing. How long micro-batches take is kept."""
        self._last_s, (self._requests, self._seconds) = -math.inf, _PRIOR
        if self._since_s is not None:
            self._since_s = now_s

    def per_s(self, now_s: float) -> float | None:
        """Requests a second; None: unknown."""
        if self._since_s is None and now_s - self._last_s > _FORGET_S:
            self.forget(now_s)
        return self._requests / self._seconds if self._last_s > -math.inf else None

    def room(self, within_s: float, now_s: float) -> float:
        """Requests that may be under way so that they are done `within_s`, or in up to twice that where none is done
        sooner. A few at least."""
        known = self.per_s(now_s)
        if known is None:
            return math.inf
        twice_s = 2 * min(self._shortest_s, self._shortest_before_s)
        return max(_LEAST, math.floor(known * min(max(within_s, twice_s), 2 * within_s)))

    @property
    def usual_s(self) -> float:
        """What micro-batches of late took."""
        return self._usual_s

    @property
    def run_s(self) -> float:
        """What a micro-batch may well take, as those of late did."""
        return _SLOWER * self._usual_s

    def wait_s(self, ahead: int, now_s: float) -> float:
        """How long a request waits behind `ahead` others."""
        known = self.per_s(now_s)
        return 0.0 if known is None else ahead / known
