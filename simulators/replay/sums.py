"""Everything a replay adds up besides counts: suites of estimates and trials of holdouts, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from simulators.estimators import Suite, Trial
from simulators.replay.estimation import new_suites
from simulators.replay.spec import ReplaySpec
from simulators.replay.trials import holdouts_of, new_sample, new_trial
from simulators.replay.uplift import TrialSample

__all__ = ["Sums"]

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Sums:
    """suites by name (`estimation.MAIN` always); trials, and samples of their users, by holdout. Adds up."""

    suites: dict[str, Suite]
    trials: dict[str, Trial]
    samples: dict[str, TrialSample]

    @classmethod
    def empty(cls, spec: ReplaySpec) -> Sums:
        """Nothing yet."""
        names = [one.name for one in holdouts_of([one.document for one in spec.behaviour])]
        return cls(new_suites(spec), {name: new_trial() for name in names}, {name: new_sample(spec.heads) for name in names})

    def __add__(self, other: Sums) -> Sums:
        suites = {name: one + other.suites[name] for name, one in self.suites.items()}
        trials = {name: one + other.trials[name] for name, one in self.trials.items()}
        return Sums(suites, trials, {name: one + other.samples[name] for name, one in self.samples.items()})

    def to_arrays(self) -> Arrays:
        """Flat arrays by path."""
        out: Arrays = {}
        for kind, parts in (("suites", self.suites), ("trials", self.trials), ("samples", self.samples)):
            for name, one in parts.items():
                out |= {f"{kind}/{name}/{key}": array for key, array in one.to_arrays().items()}
        return out

    def load(self, arrays: Mapping[str, npt.NDArray[Any]]) -> Sums:
        """Like this one, with the sums of `to_arrays`. Raises DamagedArtifact where they do not fit."""
        suites = {name: one.load(_below(arrays, f"suites/{name}/")) for name, one in self.suites.items()}
        trials = {name: one.load(_below(arrays, f"trials/{name}/")) for name, one in self.trials.items()}
        samples = {name: one.load(_below(arrays, f"samples/{name}/")) for name, one in self.samples.items()}
        return Sums(suites, trials, samples)


def _below(arrays: Mapping[str, npt.NDArray[Any]], path: str) -> Arrays:
    return {name.removeprefix(path): one for name, one in arrays.items() if name.startswith(path)}
