"""The three spans of a log: tables from the first, examples for the heads from the second, figures from the third.

::

    begin ---- tables ---- examples_from ---- examples ---- measured_from ---- figures ---- end
"""

from __future__ import annotations

from dataclasses import dataclass

from serve_app.release.build.interactions import Interactions
from serve_app.release.build.settings import BuildSettings
from serve_app.release.build.timeline import DAY_US

__all__ = ["Spans"]


@dataclass(frozen=True, slots=True)
class Spans:
    """Times in microseconds UTC: everything before `end` had been received."""

    begin: int
    examples_from: int
    measured_from: int
    end: int

    @classmethod
    def of(cls, log: Interactions, settings: BuildSettings) -> Spans:
        """Days as the settings ask, shortened where the log is: at most a fifth of it for figures, 3/10 for examples."""
        if len(log) == 0:
            return cls(0, 0, 0, 0)
        begin, end = int(log.at.min()), int(log.known_at.max()) + 1
        whole = end - begin
        measured = int(min(settings.holdout_days * DAY_US, 0.2 * whole))
        examples = int(min(settings.example_days * DAY_US, 0.3 * whole))
        return cls(begin, end - measured - examples, end - measured, end)
