"""Where a target's scores come from: the log, a release's models on logged features, or a release's own retrieval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from serve_app.policy.compile import CompiledPolicy
from simulators.replay.items.logged import Lists
from simulators.replay.items.making import Vectors

__all__ = ["LoggedScores", "Scored", "Scorer"]

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Scored:
    """lists: as logged, perhaps with further candidates behind the logged ones. for_targets: the same candidates with the
    scores that targets weigh. allowed bool[m]: which of them targets may show; None: all. notes: counts by name."""

    lists: Lists
    for_targets: Lists
    allowed: Bools | None = None
    notes: dict[str, int] = field(default_factory=dict)
    retrieved: bool = False

    def head_names_of(self, target: str) -> tuple[str, ...]:
        """What the target can weigh."""
        del target
        return self.for_targets.head_names

    def candidates_for(self, target: str, policy: CompiledPolicy) -> tuple[Lists, Bools | None]:
        """What the target chooses among: its stricter filters are applied to what was logged."""
        del target, policy
        return self.for_targets, self.allowed


class Scorer(Protocol):
    """Gives lists their scores under the targets."""

    reads_features: bool
    reads_requests: bool
    vectors: Vectors | None

    def score(self, lists: Lists, policies: Sequence[CompiledPolicy]) -> Scored:
        """policies: those that made the lists."""


class LoggedScores:
    """Policy-only replays: the scores that served."""

    reads_features = False
    reads_requests = False

    def __init__(self, vectors: Vectors | None = None) -> None:
        self.vectors = vectors

    def score(self, lists: Lists, policies: Sequence[CompiledPolicy]) -> Scored:
        """The lists themselves."""
        del policies
        return Scored(lists, lists)
