"""Thresholds and levels of estimates: typed, bounded, each with its meaning. Defaults are those of the design."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["EstimateSettings", "VerdictSettings"]


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class VerdictSettings(_Group):
    """When an estimate is refused, weak or usable. Effective sample sizes (ESS) are of users and of rows whose reward is not
    structurally zero; the smaller one counts."""

    refuse_ess_below: float = Field(200.0, ge=0)
    """Refused below this ESS."""
    usable_ess_from: float = Field(1000.0, ge=0)
    """Usable only from this ESS on."""
    refuse_unsupported_above: float = Field(0.05, ge=0, le=1)
    """Refused above this share of the target's probability on choices the logged policy could not make."""
    usable_unsupported_to: float = Field(0.01, ge=0, le=1)
    """Usable only up to this share."""
    refuse_unsupported_change_above: float = Field(0.5, ge=0, le=1)
    """A difference is refused above this share of what the target changes on choices the logged policy could not make: what
    remains says nothing of the change."""
    usable_unsupported_change_to: float = Field(0.1, ge=0, le=1)
    """A difference is usable only up to this share."""
    refuse_user_share_above: float = Field(0.10, ge=0, le=1)
    """Refused where one user carries more than this share of the weight."""
    usable_user_share_to: float = Field(0.02, ge=0, le=1)
    """Usable only up to this share."""
    refuse_mean_weight_beyond: float = Field(4.0, gt=0)
    """Refused where the mean weight is further than this many standard errors from the supported mass."""
    usable_earners_from: float = Field(30.0, ge=0)
    """Usable only where at least this many users, by the same formula on their weighted rewards, earned the metric: below it
    an interval that leans on the normal distribution is too short."""
    refuse_excluded_above: float = Field(0.05, ge=0, le=1)
    """Refused where more than this share of rows had to be left out (propensity missing, 0, above 1, ...)."""
    usable_excluded_to: float = Field(0.001, ge=0, le=1)
    """Usable only up to this share of rows left out."""


class EstimateSettings(_Group):
    """How estimates are reported."""

    level: float = Field(0.95, gt=0.5, lt=1)
    """Coverage the intervals aim at."""
    verdict: VerdictSettings = VerdictSettings()
    """Thresholds of verdicts."""
