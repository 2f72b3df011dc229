"""What time it is by a ledger's commits: the ledger reads no clock, and some writer's may be wrong."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

__all__ = ["LAST_COMMITS", "CommitTimes"]

LAST_COMMITS = 16


class CommitTimes:
    """The earliest of the last `LAST_COMMITS` commits' times (i64 microseconds; 0 before the first). So a commit dated days
    ahead moves nothing; what is kept for a time is kept until so many later commits agree that it has passed."""

    def __init__(self, last: Iterable[int] = ()) -> None:
        self._last = deque(last, maxlen=LAST_COMMITS)

    def add(self, at: int) -> None:
        """A commit was decided at this time."""
        self._last.append(at)

    @property
    def now(self) -> int:
        """See the class."""
        return min(self._last, default=0)
