"""A suite: every wanted estimator over the same rows, with their diagnostics; merged, saved and judged together.

::

    suite = Suite([IPS(policies, metrics), SNIPS(policies, metrics)])      # one configuration everywhere
    suite.update(rows)                                                     # once per user bucket
    total = reduce(operator.add, suites)                                   # any order: the same bytes
    for estimate in total.estimates(settings, control="baseline"): ...
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from serve_app.errors import InvalidInput
from simulators.estimators.diagnostics import Diagnostics, PolicyDiagnostics
from simulators.estimators.estimator import LOGGED, Estimator
from simulators.estimators.rows import Rows
from simulators.estimators.settings import EstimateSettings
from simulators.estimators.shrinkage import ShrunkDR
from simulators.estimators.verdicts import (
    Estimate,
    Estimated,
    Per,
    Refused,
    Standing,
    Subject,
    Verdict,
    judge,
    judge_change,
    worse,
)

__all__ = ["Suite"]

_ROUNDING = 1e-9


class Suite:
    """Estimators of one set of policies and metrics, and the diagnostics of the row weights that most of them share."""

    def __init__(self, estimators: Sequence[Estimator]) -> None:
        if not estimators:
            raise InvalidInput("name at least one", field="estimators")
        self.policies, self.metrics = estimators[0].policies, estimators[0].metrics
        self._by_label: dict[str, Estimator] = {}
        for one in estimators:
            if (one.policies, one.metrics) != (self.policies, self.metrics):
                raise InvalidInput("all estimators of a suite share policies and metrics", field=one.label)
            if one.label in self._by_label:
                raise InvalidInput("stands twice in the suite", field=one.label)
            self._by_label[one.label] = one
        self.diagnostics = Diagnostics(self.policies[1:])

    @property
    def labels(self) -> tuple[str, ...]:
        """Of the estimators, in order."""
        return tuple(self._by_label)

    def __getitem__(self, label: str) -> Estimator:
        return self._by_label[label]

    def update(self, rows: Rows) -> None:
        """Add rows; all rows of a user in one call."""
        for block in rows.blocks():
            for one in self._by_label.values():
                one.update(block)
            self.diagnostics.update(
                block.user, block.weight, block.send, block.unsupported, block.excluded, factors=block.trust_factors
            )

    def __add__(self, other: Self) -> Self:
        if self.labels != other.labels:
            raise InvalidInput("suites of different estimators cannot be added", field="estimators")
        out = type(self)([one + other[label] for label, one in self._by_label.items()])
        out.diagnostics = self.diagnostics + other.diagnostics
        return out

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Flat arrays by name, for one file a shard (`numpy.savez`, or Arrow)."""
        out = {f"weights/{name}": array for name, array in self.diagnostics.to_arrays().items()}
        for label, one in self._by_label.items():
            out.update({f"{label}/{name}": array for name, array in one.to_arrays().items()})
        return out

    def load(self, arrays: Mapping[str, npt.NDArray[Any]]) -> Self:
        """A suite of this configuration with the sums of `to_arrays`. DamagedArtifact where they do not fit."""
        out = type(self)([one.load(arrays, f"{label}/") for label, one in self._by_label.items()])
        out.diagnostics.load(arrays, "weights/")
        return out

    # --- answers ---

    def weights_of(self, label: str, policy: str, group: int = 0) -> PolicyDiagnostics:
        """Diagnostics of the weights that an estimator uses for a target policy."""
        own = self._by_label[label].diagnostics
        return (self.diagnostics if own is None else own).of(self.policies.index(policy) - 1, group)

    def control_is_clean(self, label: str, control: str, metric: str, settings: EstimateSettings) -> bool | None:
        """The A/A control: the policy that logged, estimated as if it were a target, must agree with what happened (equal
        but for rounding, or 0 within the paired interval). A breakdown rests on its ungrouped estimator's; None without."""
        label = self._by_label[label].name if self._by_label[label].grouping else label
        if label not in self._by_label:
            return None
        value, interval = self._by_label[label].interval(control, metric, versus=LOGGED, level=settings.level)
        logged = self._by_label[label].point(LOGGED, metric).value
        return bool(abs(value) <= _ROUNDING * max(abs(logged), _ROUNDING)) or interval.covers(0.0)

    def verdict(
        self, label: str, policy: str, metric: str, settings: EstimateSettings, control: str | None = None, group: int = 0
    ) -> Verdict:
        """How far to trust one estimator on one policy and metric. control: the target that is the logging policy."""
        one = self._by_label[label]
        clean = None if control is None else self.control_is_clean(label, control, metric, settings)
        flags, earners = list(one.flags(policy, metric)), self._earners(one, policy, metric, group)
        if earners is not None and earners < settings.verdict.usable_earners_from:
            flags.append(f"only about {earners:.0f} users earned it")
        return judge(
            self.weights_of(label, policy, group), settings.verdict, trust=one.trust, clean=clean,
            mean_weight_is_one=one.grouping is None or one.grouping.of != "choice", flags=flags,
        )  # fmt: skip

    def _earners(self, one: Estimator, policy: str, metric: str, group: int) -> float | None:
        """Those of the estimator; where its values rest on a model, those that another of the suite counts."""
        found = one.earners(policy, metric, group)
        if found is None and one.grouping is None:
            others = (other.earners(policy, metric) for other in self._by_label.values() if other.grouping is None)
            found = next((count for count in others if count is not None), None)
        return found

    def _of_change(self, label: str, policy: str, settings: EstimateSettings, group: int) -> Verdict:
        """Of what sets the policy apart from the log, in which a difference lies."""
        return judge_change(self.weights_of(label, policy, group), settings.verdict)

    def estimates(
        self,
        settings: EstimateSettings | None = None,
        *,
        per: Sequence[Per] = (Per.user,),
        versus: str | None = LOGGED,
        control: str | None = None,
    ) -> Iterator[Estimate]:
        """Every estimator x target policy x metric x `per` x group: its value, then (where `versus` is named) the paired
        difference from that policy. control: the target policy that is the one which logged."""
        settings = settings or EstimateSettings()
        for label, one in self._by_label.items():
            groups = len(one.grouping.labels) if one.grouping else 1
            offered = [what for what in per if one.offers(what)]
            asked = groups * len(self.metrics) * (len(self.policies) - 1)
            for policy, metric, group in product(self.policies[1:], self.metrics, range(groups)):
                verdict = self.verdict(label, policy, metric, settings, control, group)
                paired = worse(verdict, self._of_change(label, policy, settings, group))
                if versus not in (None, LOGGED, policy):
                    other = self.verdict(label, str(versus), metric, settings, control, group)
                    paired = worse(worse(paired, other), self._of_change(label, str(versus), settings, group))
                for what in offered:
                    yield self._estimate(one, policy, metric, what, None, group, verdict, settings, asked)
                    if versus is not None and versus != policy:
                        yield self._estimate(one, policy, metric, what, versus, group, paired, settings, asked)

    def _estimate(
        self, one: Estimator, policy: str, metric: str, per: Per, versus: str | None, group: int, verdict: Verdict,
        settings: EstimateSettings, comparisons: int,
    ) -> Estimate:  # fmt: skip
        where = (one.grouping.name, one.grouping.labels[group]) if one.grouping else None
        subject = Subject(one.label, policy, metric, per, versus, where)
        if verdict.standing is Standing.refused:
            return Refused(subject, verdict, comparisons)
        value, interval = one.interval(policy, metric, per, versus=versus, group=group, level=settings.level)
        if versus is not None:
            logged = abs(one.point(LOGGED, metric, per, group=group).value)
            if max(abs(value), abs(interval.low), abs(interval.high)) <= _ROUNDING * logged:
                value, interval = 0.0, replace(interval, low=0.0, high=0.0)  # the last bits of two equal sums
        if not np.isfinite(value):
            return Refused(subject, Verdict(Standing.refused, ("nothing to divide by",)), comparisons)
        claims = not (isinstance(one, ShrunkDR) and len(one.grid) > 1)
        return Estimated(subject, value, interval if claims else None, verdict, one.notes(policy, metric), comparisons)
