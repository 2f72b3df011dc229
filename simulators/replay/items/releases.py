"""Releases as a replay of lists uses them: their vectors, their models, their retrieval."""

from __future__ import annotations

from simulators.replay.items.scoring import LoggedScores, Scorer
from simulators.replay.items.spec import ListsSpec

__all__ = ["scorer_for"]


def scorer_for(spec: ListsSpec) -> Scorer:
    """Where the targets' scores come from."""
    del spec
    return LoggedScores()
