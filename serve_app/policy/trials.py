"""What is randomized on purpose: holdouts, experiments, policy cells, flips."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, StrictBool, StrictFloat, StrictInt, model_validator

from serve_app.policy.base import ClassName, Identifier, Instant, Percent, Probability, Salt, Strict

__all__ = ["Arm", "Cell", "Cells", "Experiment", "Flips", "Holdout", "Override"]

Override = StrictBool | StrictInt | StrictFloat | str | None | tuple[str, ...]
Overrides = dict[Annotated[str, Field(min_length=1, max_length=200)], Override]


class Holdout(Strict):
    """Users from whom messages are withheld to measure what the messages do (`percent` of them, by salted hash)."""

    id: Identifier
    scope: Literal["global", "campaign"]
    campaigns: tuple[Annotated[str, Field(min_length=1, max_length=256)], ...] = Field(default=(), max_length=256)
    """Campaign ids (scope campaign)."""
    percent: Percent
    salt: Salt
    classes: tuple[ClassName, ...] = ("informational", "advertising")
    blocking: StrictBool = False
    """When a withheld message would have been sent, nothing else is sent in its place: nothing at all where it would have
    been the first, one message fewer where it would have been a later one."""
    starts_at: Instant | None = None
    ends_at: Instant | None = None

    @model_validator(mode="after")
    def _scope_names_campaigns(self) -> Self:
        if (self.scope == "campaign") != bool(self.campaigns):
            raise ValueError("scope campaign needs `campaigns`, scope global must not have them")
        return self


class Arm(Strict):
    """One arm: a share of users, and the settings it changes."""

    id: Identifier
    percent: Percent
    overrides: Overrides = Field(default_factory=dict, max_length=64)
    """Dotted path -> value, parts of lists addressed by id: `caps.global-day.limit: 2`. A list of names is one value."""


class Experiment(Strict):
    """A test between arms, assigned by salted hash of the user; percents must sum to 100."""

    id: Identifier
    salt: Salt
    arms: tuple[Arm, ...] = Field(min_length=2, max_length=15)
    starts_at: Instant | None = None
    ends_at: Instant | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        total = sum(round(arm.percent * 100) for arm in self.arms)
        if total != 10_000:
            raise ValueError(f"the arms' percents sum to {total / 100:g}, not to 100")
        return self


class Cell(Strict):
    """One declared variant of caps, quiet hours or threshold, drawn with a known probability."""

    id: Identifier
    probability: Annotated[StrictFloat, Field(gt=0.0, le=1.0)]
    overrides: Overrides = Field(default_factory=dict, max_length=64)
    """Empty: the policy as it stands."""


class Cells(Strict):
    """hash(user, epoch) draws one cell for each epoch; an epoch is at least as long as the longest window of the caps."""

    salt: Salt = "cells"
    epoch_hours: Annotated[StrictFloat, Field(gt=0, le=24 * 366)]
    variants: tuple[Cell, ...] = Field(min_length=2, max_length=32)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        total = sum(cell.probability for cell in self.variants)
        if abs(total - 1.0) > 1e-9:
            raise ValueError(
                f"the cells' probabilities sum to {total:g}, not to 1; add a cell without overrides for the rest"
            )
        return self


class Flips(Strict):
    """After all gates, with `probability`, something else than the best candidate is chosen, uniformly among `to`."""

    probability: Probability = 0.0
    to: Literal["other_passing", "none", "either"] = "either"
    classes: tuple[ClassName, ...] = ("informational", "advertising")
    """A best candidate of another class is never flipped away, and never flipped to."""
    salt: Salt = "flips"
