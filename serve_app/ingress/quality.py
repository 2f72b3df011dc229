"""How wide to look, by load: a factor that narrows candidates before anything is refused.

Additive increase, multiplicative decrease (Chiu, Jain 1989), as networks share a line: while answers are in time the factor
rises by steps, and after an interval in which too many were late, or any was refused, it falls by a share. What is late is
judged by a request's whole stay, its wait for a micro-batch included, because that is where overload shows first.

The statistic is a share (how many were late) and not a mean: one slow answer among a hundred says nothing, and nothing
needs to be kept but two counts. No clock is read here; times are the event loop's and come with every call.
"""

from __future__ import annotations

import math

from serve_app.settings import QualitySettings

__all__ = ["Quality"]

_WHOLE, _LEAST = 1.0, 0.01


class Quality:
    """The factor of one surface in one ingress: 1 when idle, at least 0.01."""

    def __init__(self, settings: QualitySettings, budget_ms: float) -> None:
        """budget_ms: time from admission to answer; `settings.target_share` of it is in time."""
        self._settings = settings
        self._target_s = settings.target_share * budget_ms / 1000
        self._interval_s = settings.interval_ms / 1000
        self._factor = _WHOLE
        self._ends_s = -math.inf
        self._requests = self._late = 0

    def answered(self, stay_s: float, now_s: float) -> None:
        """A request left after `stay_s`, with whatever answer."""
        self.factor(now_s)
        self._requests += 1
        self._late += stay_s > self._target_s

    def refused(self, now_s: float) -> None:
        """A request was turned away, or gave up waiting: the interval is late, whatever else was in time."""
        self.answered(math.inf, now_s)
        self._late = max(self._late, self._requests)

    def factor(self, now_s: float, *, busy: bool = False) -> float:
        """The factor at `now_s`. busy: requests are under way, so that an interval without answers is no rest."""
        if not self._settings.enabled:
            return _WHOLE
        if now_s >= self._ends_s:
            self._close(1 + math.floor((now_s - self._ends_s) / self._interval_s) if self._ends_s > -math.inf else 0, busy)
            self._ends_s = now_s + self._interval_s
        return self._factor

    def _close(self, intervals: int, busy: bool) -> None:
        """So many intervals are over; all that was heard was heard in the first."""
        own = self._settings
        if intervals and self._requests:
            late = self._late > own.late_share * self._requests
            self._factor = max(_LEAST, self._factor * own.decrease) if late else self._raised(1)
            intervals -= 1
        if not busy:
            self._factor = self._raised(intervals)
        self._requests = self._late = 0

    def _raised(self, times: int) -> float:
        return min(_WHOLE, self._factor + times * self._settings.increase)
