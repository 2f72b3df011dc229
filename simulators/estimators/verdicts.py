"""Verdicts, and estimates that carry them: a refused estimate has no value to print.

`Estimate` is `Estimated | Refused`; only the first has `value` and `interval`, so a report cannot show a refused number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from simulators.estimators.diagnostics import PolicyDiagnostics
from simulators.estimators.intervals import Interval
from simulators.estimators.settings import VerdictSettings

__all__ = [
    "Estimate",
    "Estimated",
    "Per",
    "Refused",
    "Standing",
    "Subject",
    "Trust",
    "Verdict",
    "judge",
    "judge_change",
    "worse",
]


class Standing(StrEnum):
    """How far an estimate may be trusted."""

    usable = "usable"
    weak = "weak"
    refused = "refused"


class Trust(StrEnum):
    """What an estimator rests on, and so the best standing it can have."""

    unbiased = "unbiased"  # known probabilities alone: may be usable
    model = "model"  # an outcome model must be right: at best weak
    biased = "biased"  # a known bias is accepted for less variance: at best weak


class Per(StrEnum):
    """What a value is a mean over. `send`: the ratio of a total to the expected number of sends."""

    user = "user"
    decision = "decision"
    send = "send"


@dataclass(frozen=True, slots=True)
class Verdict:
    """standing, and why it is not better: one clause a reason."""

    standing: Standing
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Subject:
    """What an estimate is of. versus: the other policy of a paired difference. group: (grouping, label)."""

    estimator: str
    policy: str
    metric: str
    per: Per
    versus: str | None = None
    group: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Estimated:
    """A number with its interval (None: none is claimed) and how far to trust it. comparisons: how many like it were made
    together, for the reader to weigh a single striking one against."""

    subject: Subject
    value: float
    interval: Interval | None
    verdict: Verdict
    notes: tuple[str, ...] = ()
    comparisons: int = 1


@dataclass(frozen=True, slots=True)
class Refused:
    """No number: the log cannot answer this, for the verdict's reasons."""

    subject: Subject
    verdict: Verdict
    comparisons: int = 1


Estimate = Estimated | Refused


def judge(
    found: PolicyDiagnostics,
    settings: VerdictSettings,
    *,
    trust: Trust = Trust.unbiased,
    clean: bool | None = None,
    mean_weight_is_one: bool = True,
    flags: Sequence[str] = (),
) -> Verdict:
    """The verdict on one target policy.

    clean: whether the A/A control was (None: not run; then at best weak). mean_weight_is_one: whether it should be
    (it is not among rows picked by what was chosen). flags: further reasons for at best weak.
    """
    refused, weak = _faults(found, settings)
    if mean_weight_is_one and found.rows > 0 and not abs(found.mean_weight_distance) <= settings.refuse_mean_weight_beyond:
        refused.append(
            f"mean weight {found.mean_weight:.4g} is {abs(found.mean_weight_distance):.1f} standard errors from the "
            f"supported mass {1 - found.unsupported:.4g}"
        )
    if refused:
        return Verdict(Standing.refused, tuple(refused))
    if clean is False:
        weak.append("the A/A control is not clean")
    if clean is None:
        weak.append("no A/A control was run")
    if trust is Trust.model:
        weak.append("rests on an outcome model")
    if trust is Trust.biased:
        weak.append("biased by construction")
    weak.extend(flags)
    return Verdict(Standing.weak, tuple(weak)) if weak else Verdict(Standing.usable)


def judge_change(found: PolicyDiagnostics, settings: VerdictSettings) -> Verdict:
    """What must hold for a difference from the log, beside `judge`: that the log tried what the target changes."""
    refused: list[str] = []
    weak: list[str] = []
    _compare(refused, weak, found.unsupported_change, settings.refuse_unsupported_change_above,
             settings.usable_unsupported_change_to,
             f"{found.unsupported_change:.0%} of what the policy changes could not be logged")  # fmt: skip
    standing = Standing.refused if refused else Standing.weak if weak else Standing.usable
    return Verdict(standing, tuple(refused or weak))


def worse(one: Verdict, other: Verdict) -> Verdict:
    """The verdict on a difference of two: the worse standing, and the reasons of both."""
    standing = max(one.standing, other.standing, key=list(Standing).index)
    return Verdict(standing, tuple(dict.fromkeys([*one.reasons, *other.reasons])))


def _faults(found: PolicyDiagnostics, limits: VerdictSettings) -> tuple[list[str], list[str]]:
    refused: list[str] = []
    weak: list[str] = []
    if found.rows <= 0:
        return ["no usable row"], weak
    if found.live_weight <= 0:
        return ["no row with weight could earn the reward"], weak
    _compare(refused, weak, -found.ess, -limits.refuse_ess_below, -limits.usable_ess_from,
             f"effective sample size {found.ess:.0f}")  # fmt: skip
    _compare(refused, weak, found.unsupported, limits.refuse_unsupported_above, limits.usable_unsupported_to,
             f"{found.unsupported:.2%} of the target's choices could not be logged")  # fmt: skip
    _compare(refused, weak, found.largest_user, limits.refuse_user_share_above, limits.usable_user_share_to,
             f"one user carries {found.largest_user:.1%} of the weight")  # fmt: skip
    _compare(refused, weak, found.excluded_share, limits.refuse_excluded_above, limits.usable_excluded_to,
             f"{found.excluded_share:.2%} of rows were left out")  # fmt: skip
    return refused, weak


def _compare(refused: list[str], weak: list[str], value: float, refuse_above: float, usable_to: float, clause: str) -> None:
    if value > refuse_above:
        refused.append(clause)
    elif value > usable_to:
        weak.append(clause)
