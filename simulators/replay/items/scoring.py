"""Where targets' candidates and scores come from: the log, or a release (`releases`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from serve_app.errors import InvalidInput
from serve_app.policy.compile import CompiledPolicy
from serve_app.vocabulary import Surface
from simulators.replay.items.logged import Lists
from simulators.replay.items.making import Vectors, drawn_variants

__all__ = ["Compile", "Considered", "LoggedScores", "Scored", "Scorer", "stricter"]

Bools = npt.NDArray[np.bool_]

Compile = Callable[[Sequence[str]], Mapping[str, CompiledPolicy]]
"""Every target, compiled for heads of these names."""


@dataclass(frozen=True)
class Considered:
    """What one target chooses among. lists: the logged ones, with the scores it weighs. allowed bool[m]: None: all."""

    policy: CompiledPolicy
    lists: Lists
    allowed: Bools | None = None


@dataclass(frozen=True)
class Scored:
    """lists: as logged, perhaps with further candidates behind each list's logged ones. targets: by name, over the same
    candidates. notes: counts of what could not be had, by name (`simulators.report.items.NOTES`)."""

    lists: Lists
    targets: Mapping[str, Considered]
    notes: Mapping[str, int] = field(default_factory=dict)


class Scorer(Protocol):
    """Gives lists their scores under the targets."""

    reads_features: bool
    reads_requests: bool
    vectors: Vectors | None

    def score(self, lists: Lists, behaviour: Sequence[CompiledPolicy], compiled: Compile) -> Scored:
        """behaviour: the policies of `lists.revisions`."""


class LoggedScores:
    """Policy-only replays: the scores that served."""

    reads_features = False
    reads_requests = False

    def __init__(self, vectors: Vectors | None = None) -> None:
        self.vectors = vectors

    def score(self, lists: Lists, behaviour: Sequence[CompiledPolicy], compiled: Compile) -> Scored:
        """The lists themselves, under the targets' stricter filters."""
        return considered(lists, lists, behaviour, compiled)


def considered(lists: Lists, scored: Lists, behaviour: Sequence[CompiledPolicy], compiled: Compile) -> Scored:
    """Targets that weigh the heads of `scored`, which holds the candidates of `lists`."""
    notes: dict[str, int] = {}
    targets = {}
    for name, policy in compiled(scored.head_names).items():
        allowed = stricter(lists, policy, behaviour, name)
        if allowed is not None:
            notes["filtered"] = notes.get("filtered", 0) + int((~allowed).sum())
        targets[name] = Considered(policy, scored, allowed)
    return Scored(lists, targets, notes)


def stricter(lists: Lists, policy: CompiledPolicy, behaviour: Sequence[CompiledPolicy], name: str) -> Bools | None:
    """bool[m]: candidates that the target's filters of seen and bought items leave; None: all of them. Raises InvalidInput
    where the target asks retrieval for what the log cannot hold: other sources, or fewer filters."""
    if lists.surface not in (Surface.related, Surface.gateway):
        return None
    seen, bought = np.zeros(len(lists), np.bool_), np.zeros(len(lists), np.bool_)
    for place, arm in _pairs(lists, policy):
        rows = (lists.policy == place) & (drawn_variants(lists, policy) == arm)
        mine = policy.retrieval(lists.surface, arm)
        for variant in np.unique(lists.requests["variant"][rows]).tolist():
            old = behaviour[place].retrieval(lists.surface, variant)
            same = (mine.quotas if mine else None) == (old.quotas if old else None)
            fewer = old is not None and mine is not None and _fewer(mine, old)
            if not same or fewer:
                raise InvalidInput(
                    f"policy {name} asks for other candidates on {lists.surface.name}: other sources, or fewer filters",
                    field=f"surfaces.{lists.surface.name}.sources",
                    hint="candidates must be found anew: pass --release R --retrieval",
                )
        seen[rows], bought[rows] = mine is not None and mine.drop_seen, mine is not None and mine.drop_bought
    if not (seen.any() or bought.any()):
        return None
    owner = lists.owner
    return ~((seen[owner] & lists.candidates["seen"]) | (bought[owner] & lists.candidates["bought"]))


def _fewer(mine: object, old: object) -> bool:
    return any(getattr(old, name) and not getattr(mine, name) for name in ("drop_seen", "drop_bought"))


def _pairs(lists: Lists, policy: CompiledPolicy) -> list[tuple[int, int]]:
    """Distinct (logged policy, target's variant)."""
    both = np.stack([lists.policy.astype(np.int64), drawn_variants(lists, policy).astype(np.int64)], axis=1)
    return [(int(place), int(arm)) for place, arm in np.unique(both, axis=0).tolist()]
