"""The feature plan: what a model reads, compiled once per release into columns and tables to gather from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serve_app.errors import InvalidInput
from serve_app.stages.features.tables import Entity, FeatureSpec

__all__ = ["FeaturePlan"]


@dataclass(frozen=True, slots=True)
class FeaturePlan:
    """Features in the order of the matrix's columns. Build it with `compile`."""

    specs: tuple[FeatureSpec, ...]

    @classmethod
    def compile(cls, wanted: Sequence[str], provided: Iterable[FeatureSpec], *, position: float = 0.0) -> FeaturePlan:
        """Resolve the `wanted` names against what is `provided`.

        provided: the specs of every table and of the computed features (`serve_app.stages.features.COMPUTED`, and
        `source_specs` for the release's sources). position: the constant served as the feature `position`, which is
        always provided. InvalidInput names a feature nobody provides, one wanted twice, or one provided twice.
        """
        known = {"position": FeatureSpec("position", Entity.position, default=position, writer="serving constant")}
        for spec in provided:
            if spec.name in known:
                raise InvalidInput("is provided twice", field=spec.name, hint="a feature has one writer")
            known[spec.name] = spec
        for name in wanted:
            if name not in known:
                raise InvalidInput(
                    "a model asks for this feature and nobody provides it",
                    field=name,
                    hint=f"provided are {', '.join(sorted(known))}",
                )
            if list(wanted).count(name) > 1:
                raise InvalidInput("is wanted twice", field=name)
        return cls(tuple(known[name] for name in wanted))

    @property
    def names(self) -> tuple[str, ...]:
        """Column names of the feature matrix."""
        return tuple(spec.name for spec in self.specs)

    def __len__(self) -> int:
        return len(self.specs)

    def entities(self) -> tuple[Entity, ...]:
        """Entity kinds read, each once, in order of first use."""
        return tuple(dict.fromkeys(spec.entity for spec in self.specs))

    def columns(self, entity: Entity) -> npt.NDArray[np.int32]:
        """i32[j]: matrix columns fed by `entity`."""
        return np.array([i for i, spec in enumerate(self.specs) if spec.entity == entity], np.int32)

    def defaults(self) -> npt.NDArray[np.float32]:
        """f32[F], NaN where none is declared."""
        return np.array([np.nan if spec.default is None else spec.default for spec in self.specs], np.float32)

    def max_age_us(self) -> npt.NDArray[np.int64]:
        """i64[F] microseconds, the largest i64 where a value never grows stale."""
        never = np.iinfo(np.int64).max
        return np.array([never if s.max_age_s is None else int(s.max_age_s * 1e6) for s in self.specs], np.int64)
