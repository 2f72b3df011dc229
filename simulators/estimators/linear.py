"""Smooth functions of totals with their gradients: what linearised variances and paired differences are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Linear", "monomial"]

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Linear:
    """value of a function at the totals S, and its gradient f64[K] there."""

    value: float
    gradient: F64

    def __add__(self, other: Linear) -> Linear:
        return Linear(self.value + other.value, self.gradient + other.gradient)

    def __sub__(self, other: Linear) -> Linear:
        return Linear(self.value - other.value, self.gradient - other.gradient)

    def scaled(self, factor: float) -> Linear:
        """This times a constant."""
        return Linear(self.value * factor, self.gradient * factor)


def monomial(total: F64, powers: Mapping[int, int], constant: float = 1.0) -> Linear:
    """constant * product of total[i] ** power over `powers`; NaN where a divisor is 0. A column may be named once."""
    gradient = np.zeros(len(total))
    value = constant
    for i, power in powers.items():
        value *= _power(float(total[i]), power)
        partial = constant * power * _power(float(total[i]), power - 1)
        for j, other in powers.items():
            if j != i:
                partial *= _power(float(total[j]), other)
        gradient[i] = partial
    return Linear(value, gradient)


def _power(base: float, exponent: int) -> float:
    if exponent >= 0:
        return base**exponent
    return base**exponent if base != 0.0 else np.nan
