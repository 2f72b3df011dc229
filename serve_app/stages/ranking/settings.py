"""How a policy wants lists made: weights of the heads, temperature, diversity. Produced by the compiled policy's
`list_settings(surface)`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from serve_app.errors import InvalidInput

__all__ = ["ListSettings", "Redundancy", "Relax"]


class Redundancy(IntEnum):
    """What MMR calls similar, on a scale of 0 to 1."""

    category = 0  # 1 for the same known category, else 0
    embedding = 1  # cosine of the items' embeddings, negative ones counted 0


class Relax(IntEnum):
    """What happens to a slot for which the window rule leaves no candidate."""

    least_violating = 0  # the candidates that exceed the rule by the least are allowed for this slot
    end_list = 1  # the list ends: this slot and the later ones stay empty


@dataclass(frozen=True, slots=True)
class ListSettings:
    """Settings of one surface's lists under one policy.

    weights: (head, weight) pairs; value = their sum over heads, in the models' order of heads.
    temperature, in units of value: a slot is drawn from softmax(score / temperature); 0: the best score, p = 1.
    salt: u64 that keys the noise (`serve_app.noise.salt_of`).
    window, per_window: at most `per_window` candidates of one category in any `window` consecutive slots; window 0: no
    rule. Candidates without a category are free of it. relax says what an impossible slot does.
    mmr_lambda: score = lambda * value - (1 - lambda) * spread * redundancy, where spread is the request's largest value
    less its smallest, and redundancy the largest similarity to a chosen candidate (maximal marginal relevance; Carbonell
    and Goldstein 1998). 1: value alone.
    """

    weights: tuple[tuple[str, float], ...]
    temperature: float = 0.0
    salt: int = 0
    window: int = 0
    per_window: int = 1
    mmr_lambda: float = 1.0
    redundancy: Redundancy = Redundancy.category
    relax: Relax = Relax.least_violating

    def __post_init__(self) -> None:
        if isinstance(self.weights, Mapping):
            object.__setattr__(self, "weights", tuple(self.weights.items()))
        names = [head for head, _ in self.weights]
        for head, weight in self.weights:
            if not math.isfinite(weight) or names.count(head) > 1:
                raise InvalidInput("a head's weight must be finite and given once", field=f"weights.{head}")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise InvalidInput(f"is {self.temperature}, must be 0 or above", field="temperature")
        if not 0 <= self.salt < 2**64:
            raise InvalidInput("must be an unsigned 64-bit number", field="salt")
        if self.window < 0 or (self.window > 0 and not 1 <= self.per_window <= self.window):
            raise InvalidInput("per_window must lie between 1 and window", field="window")
        if not 0 <= self.mmr_lambda <= 1:
            raise InvalidInput(f"is {self.mmr_lambda}, must lie between 0 and 1", field="mmr_lambda")
