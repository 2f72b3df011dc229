"""Sample ratio mismatch: are users split over arms as designed? If not, the randomisation or the trigger is broken, and no
effect should be read (Fabijan et al. 2019, "Diagnosing sample ratio mismatch in online controlled experiments")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serve_app.errors import InvalidInput

__all__ = ["SampleRatio", "sample_ratio"]


@dataclass(frozen=True, slots=True)
class SampleRatio:
    """Users by arm, as designed, chi-square with its p, and whether the split is believed (p >= alpha)."""

    observed: tuple[int, ...]
    expected: tuple[float, ...]
    chi_square: float
    p_value: float
    matches: bool


def sample_ratio(observed: Sequence[int], shares: Sequence[float], *, alpha: float = 0.001) -> SampleRatio:
    """Pearson's chi-square test of users by arm against the design's shares (positive, summing to 1)."""
    from scipy import stats  # a second to import

    total = sum(observed)
    if len(observed) != len(shares) or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-9:
        raise InvalidInput(
            f"{list(shares)} for {len(observed)} arms", field="shares", hint="one positive share an arm, sum 1"
        )
    if total <= 0:
        raise InvalidInput("no users", field="observed")
    expected = np.array(shares) * total
    statistic = float(((np.array(observed) - expected) ** 2 / expected).sum())
    p = float(stats.chi2.sf(statistic, len(observed) - 1))
    return SampleRatio(tuple(observed), tuple(expected.tolist()), statistic, p, p >= alpha)
