"""How much more is needed: the smallest effect a log of this size would show, and the log that a verdict would need."""

from __future__ import annotations

from dataclasses import dataclass

from serve_app.errors import InvalidInput
from simulators.estimators.diagnostics import PolicyDiagnostics
from simulators.estimators.settings import VerdictSettings

__all__ = ["Plan", "minimum_detectable", "plan_for"]


@dataclass(frozen=True, slots=True)
class Plan:
    """times: by how much the log must grow, with new users like these, for each standing; None where no growth helps, with
    the reason. The same by exploring more: effective sample size grows about as the flip probability does."""

    times_for_weak: float | None
    times_for_usable: float | None
    reason: str = ""


def minimum_detectable(standard_error: float, *, level: float = 0.95, power: float = 0.8) -> float:
    """The true difference that an interval of this standard error would tell from 0 with probability `power`."""
    from scipy import stats  # a second to import

    if not standard_error >= 0 or not 0 < power < 1:
        raise InvalidInput(f"{standard_error}, {power}", field="standard_error, power")
    return float((stats.norm.ppf((1 + level) / 2) + stats.norm.ppf(power)) * standard_error)


def plan_for(found: PolicyDiagnostics, limits: VerdictSettings) -> Plan:
    """From the diagnostics of one target: effective sample sizes grow with users, shares of unsupported choices do not."""
    if found.unsupported > limits.refuse_unsupported_above:
        return Plan(None, None, "the log never makes some of the target's choices: explore them, or give them a cell")
    if abs(found.mean_weight_distance) > limits.refuse_mean_weight_beyond:
        return Plan(None, None, "the logged probabilities do not fit the log: mend them first")
    if found.excluded_share > limits.refuse_excluded_above:
        return Plan(None, None, "too many rows cannot be used: mend the log first")
    if found.ess <= 0 or found.live_weight <= 0:
        return Plan(None, None, "nothing with weight was sent")
    weak = _times(found, limits.refuse_ess_below, limits.refuse_user_share_above)
    usable = _times(found, limits.usable_ess_from, limits.usable_user_share_to)
    if found.unsupported > limits.usable_unsupported_to or found.excluded_share > limits.usable_excluded_to:
        return Plan(weak, None, "more of the same log leaves the share of unsupported or unusable rows as it is")
    return Plan(weak, usable)


def _times(found: PolicyDiagnostics, ess: float, share: float) -> float:
    return max(1.0, ess / found.ess, found.largest_user / share)
