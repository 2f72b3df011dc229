"""What messages caused, from the log's holdouts: effects on users, the split of users, net value."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from serve_app.errors import InvalidInput
from simulators.estimators import Trial
from simulators.estimators.incrementality import Effect
from simulators.replay.spec import ReplaySpec
from simulators.replay.sums import Sums
from simulators.replay.trials import ARMS, COVARIATES, OUTCOMES, Holdout, holdouts_of, known_of
from simulators.replay.uplift import TrialSample
from simulators.report.tally import Tally
from simulators.report.uplift import uplift_of

__all__ = ["Worth", "incrementality"]

_BEFORE = {"conversions": "conversions before", "revenue": "revenue before", "views": "views before"}
_SENT = ARMS[1]


@dataclass(frozen=True, slots=True)
class Worth:
    """What outcomes are worth, in the currency of revenue: the share of revenue that is margin, the cost of one opt-out.
    A send costs what its campaign says."""

    margin: float = 1.0
    opt_out_cost: float = 0.0

    def weights(self) -> dict[str, float]:
        """Of the outcomes of a trial."""
        return {"revenue": self.margin, "send_cost": -1.0, "opt_outs": -self.opt_out_cost}


def incrementality(sums: Sums, spec: ReplaySpec, tally: Tally, worth: Worth) -> list[dict[str, Any]]:
    """One entry a holdout of the policies that logged; those with too few users say so and have no effects."""
    found = holdouts_of([one.document for one in spec.behaviour])
    return [_of(sums.trials[one.name], sums.samples[one.name], one, spec, tally, worth) for one in found]


def _of(trial: Trial, sample: TrialSample, holdout: Holdout, spec: ReplaySpec, tally: Tally, worth: Worth) -> dict[str, Any]:
    users = trial.users()
    left = {why: tally.by("logged", f"trial_{why}", "holdout").get(holdout.key, 0) for why in _LEFT}
    said: dict[str, Any] = {
        "holdout": holdout.name, "share": holdout.share, "window_days": spec.outcome_us / 86_400e6, "users": users,
        "left_out": left, "margin": worth.margin, "opt_out_cost": worth.opt_out_cost, "refused": "", "effects": [],
    }  # fmt: skip
    if min(users.values()) < _FEWEST:
        return {**said, "refused": f"{min(users.values())} users in the smaller arm; {_FEWEST} are needed"}
    ratio = trial.sample_ratio([holdout.share, 1 - holdout.share])
    said["sample_ratio"] = {"p_value": ratio.p_value, "matches": ratio.matches, "expected": list(ratio.expected)}
    if not ratio.matches:
        return {
            **said,
            "refused": f"users are not split as designed (p = {ratio.p_value:.2g}): the arms differ otherwise too",
        }
    uplift = uplift_of(sample, known_of(spec.heads))
    return {**said, "effects": list(_effects(trial, worth)), "uplift": uplift}


_LEFT = ("before_log", "too_young", "short_history")
_FEWEST = 30


def _effects(trial: Trial, worth: Worth) -> Iterator[dict[str, Any]]:
    for outcome in OUTCOMES:
        yield {"outcome": outcome, "method": "difference of means", **_plain(trial.effect(_SENT, outcome))}
        if outcome in _BEFORE:
            adjusted = trial.cuped(_SENT, outcome, [_BEFORE[outcome]])
            said = _plain(adjusted.effect)
            yield {"outcome": outcome, "method": "CUPED", "variance_removed": adjusted.variance_removed, **said}
    yield {"outcome": "net value", "method": "difference of means", **_plain(trial.combined(_SENT, worth.weights()))}
    for outcome in ("conversions", "revenue"):
        try:
            yield {"outcome": f"{outcome}, relative", "method": "delta method", **_plain(trial.lift(_SENT, outcome))}
        except InvalidInput:
            continue  # nobody in the control arm had any: a relative effect does not exist


def _plain(effect: Effect) -> dict[str, float]:
    return {
        "value": effect.value,
        "low": effect.interval.low,
        "high": effect.interval.high,
        "p_value": effect.p_value,
        "sent": effect.treated_mean,
        "held_out": effect.control_mean,
    }


def covariates() -> Sequence[str]:
    """What CUPED looks at, all of it from before the trigger."""
    return COVARIATES
