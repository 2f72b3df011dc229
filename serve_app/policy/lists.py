"""How lists of items are made: sources and quotas, filters, head weights, temperature, diversity."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, StrictBool, StrictFloat, StrictInt, model_validator

from serve_app.policy.base import Identifier, Salt, Strict, SurfaceName
from serve_app.vocabulary import Source

__all__ = ["Diversity", "Filters", "Surface", "Surfaces", "WindowRule"]

Weight = Annotated[StrictFloat, Field(ge=-1e6, le=1e6)]


class WindowRule(Strict):
    """Among any `window` consecutive slots, at most `max` share one value of `attribute`."""

    attribute: Literal["category"] = "category"
    window: Annotated[StrictInt, Field(ge=2, le=200)]
    max: Annotated[StrictInt, Field(ge=1, le=200)]

    @model_validator(mode="after")
    def _binds(self) -> Self:
        if self.max >= self.window:
            raise ValueError("max must be smaller than window, or the rule forbids nothing")
        return self


class Diversity(Strict):
    """Rules on what may follow what. MMR is maximal marginal relevance (Carbonell, Goldstein 1998)."""

    rules: tuple[WindowRule, ...] = Field(default=(), max_length=8)
    """One at most: lists are made under one rule. Two would be read as one, so they are refused."""
    relax: Literal["least_violating", "end_list"] = "least_violating"
    """What becomes of a slot for which the rule leaves no candidate."""
    mmr_lambda: Annotated[StrictFloat, Field(ge=0.0, le=1.0)] = 1.0
    """1: value alone."""
    redundancy: Literal["category", "embedding"] = "category"
    """What counts as similar."""

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if len(self.rules) > 1:
            raise ValueError(f"{len(self.rules)} window rules on one surface, and lists obey one; keep the strictest")
        return self


class Filters(Strict):
    """What a list leaves out beside what is unavailable or excluded by the request."""

    seen: StrictBool = False
    bought: StrictBool = False


class Surface(Strict):
    """Settings of one surface."""

    head_weights: dict[Identifier, Weight] = Field(default_factory=dict, max_length=32)
    """value = sum of weight * head over calibrated heads."""
    temperature: Annotated[StrictFloat, Field(ge=0.0, le=100.0)] = 0.0
    """Of the softmax that draws each slot; 0: the best one, certainly."""
    salt: Salt = "slots"
    """Keys the noise of the draws."""
    diversity: Diversity = Diversity()
    sources: dict[Identifier, Annotated[StrictInt, Field(ge=0, le=2000)]] = Field(default_factory=dict)
    """Source -> how many candidates it may give."""
    filters: Filters = Filters()
    width: Annotated[StrictInt, Field(ge=1, le=2000)] = 200
    """Candidates ranked for one request."""
    min_width: Annotated[StrictInt, Field(ge=1, le=2000)] = 50
    """Overload narrows the width no further than this."""
    slots: Annotated[StrictInt, Field(ge=1, le=200)] = 20
    """Length of the list where the request does not say."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name in self.sources:
            if name not in Source.__members__:
                raise ValueError(f"unknown source {name!r}; one of {', '.join(Source.__members__)}")
        if self.min_width > self.width:
            raise ValueError("min_width is larger than width")
        return self


class Surfaces(Strict):
    """One `Surface` for each of the five."""

    related: Surface = Surface()
    gateway: Surface = Surface()
    widgets: Surface = Surface()
    reviews: Surface = Surface()
    notification: Surface = Surface()

    def by_name(self, name: SurfaceName) -> Surface:
        """The settings of one surface."""
        surface: Surface = getattr(self, name)
        return surface
