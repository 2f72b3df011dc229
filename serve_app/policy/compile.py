"""From the document to plain arrays for kernels: one row per variant (arms x cell) of every setting a trial may change."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt

from serve_app.errors import InvalidInput
from serve_app.policy.assign import TrialArrays, compile_trials
from serve_app.policy.base import SurfaceName
from serve_app.policy.document import PolicyDocument
from serve_app.policy.holdouts import HoldoutArrays, compile_holdouts
from serve_app.policy.overrides import CELL_ROOTS, EXPERIMENT_ROOTS, apply_overrides
from serve_app.policy.tables import (
    RuleArrays,
    VariantArrays,
    compile_rules,
    compile_variants,
)
from serve_app.policy.zones import zone_index
from serve_app.vocabulary import MessageClass, Surface

if TYPE_CHECKING:
    from serve_app.stages.ranking.settings import ListSettings
    from serve_app.stages.retrieval.stage import SurfaceRetrieval

__all__ = ["CompiledPolicy", "compile_policy"]

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class CompiledPolicy:
    """An immutable policy ready for kernels.

    revision: the document's content hash. variants: the document each variant index stands for (0: as written). heads:
    per surface the names the weights stand for. weights: f8[V, 3, H] of the notification heads by message class.
    longest_window_us: how far back the rules look, in any variant.
    """

    document: PolicyDocument
    revision: str
    variants: tuple[PolicyDocument, ...]
    heads: Mapping[str, tuple[str, ...]]
    weights: F64
    default_zone: int
    rules: RuleArrays
    settings: VariantArrays
    trials: TrialArrays
    holdouts: HoldoutArrays
    segment_ids: tuple[str, ...]
    longest_window_us: int
    _lists: dict[tuple[str, int], ListSettings] = field(default_factory=dict, repr=False, compare=False)
    _retrieval: dict[tuple[str, int], SurfaceRetrieval | None] = field(default_factory=dict, repr=False, compare=False)

    def segment_index(self, name: str) -> int:
        """Bit of a segment. Raises InvalidInput for one the policy does not define."""
        if name not in self.segment_ids:
            known = ", ".join(self.segment_ids) or "none"
            raise InvalidInput(f"no segment {name!r} in policy {self.revision}", field="segment", hint=f"known: {known}")
        return self.segment_ids.index(name)

    def list_settings(self, surface: Surface | str, variant: int = 0) -> ListSettings:
        """How the ranking stage makes this surface's lists."""
        name = _surface_name(surface)
        if (name, variant) not in self._lists:
            from serve_app.policy.adapt import list_settings

            self._lists[name, variant] = list_settings(self.variants[variant], name)
        return self._lists[name, variant]

    def retrieval(self, surface: Surface | str, variant: int = 0) -> SurfaceRetrieval | None:
        """Quotas and filters of this surface; None where the document names no sources for it."""
        name = _surface_name(surface)
        if (name, variant) not in self._retrieval:
            from serve_app.policy.adapt import retrieval_settings

            self._retrieval[name, variant] = retrieval_settings(self.variants[variant], name)
        return self._retrieval[name, variant]


def compile_policy(document: PolicyDocument, *, heads: Sequence[str] | Mapping[str, Sequence[str]]) -> CompiledPolicy:
    """Compile for a release that provides `heads` (names; or per surface, where only the surfaces given are checked).

    Raises InvalidInput naming a head that the document weighs and nobody provides.
    """
    by_surface = _heads_by_surface(heads)
    variants = _variants(document)
    for variant in variants:
        _check_heads(variant, by_surface)
    return CompiledPolicy(
        document=document,
        revision=document.revision,
        variants=variants,
        heads=by_surface,
        weights=_weights(variants, by_surface.get("notification", ())),
        default_zone=zone_index(document.default_zone),
        rules=compile_rules(document),
        settings=compile_variants(variants),
        trials=compile_trials(document),
        holdouts=compile_holdouts(document),
        segment_ids=tuple(one.id for one in document.segments),
        longest_window_us=max(round(one.own_window_hours * 3_600e6) for one in variants),
    )


def _surface_name(surface: Surface | str) -> SurfaceName:
    name = surface if isinstance(surface, str) else Surface(surface).name
    return cast("SurfaceName", name)


def _heads_by_surface(heads: Sequence[str] | Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    if isinstance(heads, Mapping):
        unknown = sorted(set(heads) - set(Surface.__members__))
        if unknown:
            raise InvalidInput(f"no surface {unknown[0]!r}", field="heads", hint=f"one of {', '.join(Surface.__members__)}")
        return {name: tuple(names) for name, names in heads.items()}
    return {name: tuple(heads) for name in Surface.__members__}


def _check_heads(document: PolicyDocument, heads: Mapping[str, Sequence[str]]) -> None:
    for surface, provided in heads.items():
        weighed = {f"surfaces.{surface}": document.surfaces.by_name(cast("SurfaceName", surface)).head_weights}
        if surface == "notification":
            for one in MessageClass:
                own = getattr(document.message_classes, one.name).head_weights
                weighed |= {f"message_classes.{one.name}": own} if own else {}
        for field_name, weights in weighed.items():
            for head in weights:
                if head not in provided:
                    hint = f"provided for {surface}: {', '.join(provided) or 'none'}"
                    raise InvalidInput("no model provides this head", field=f"{field_name}.head_weights.{head}", hint=hint)


def _variants(document: PolicyDocument) -> tuple[PolicyDocument, ...]:
    """Index = mixed radix over (arm + 1 of each experiment, first the slowest; cell the fastest)."""
    choices = [[{}, *(arm.overrides for arm in one.arms)] for one in document.experiments]
    cells = document.cells.variants if document.cells else ()
    result = []
    for combination in itertools.product(*choices):
        changed = document
        merged: dict[str, object] = {}
        for overrides in combination:
            merged |= overrides
        if merged:
            changed = apply_overrides(document, merged, field="experiments", roots=EXPERIMENT_ROOTS)
        result += [
            apply_overrides(changed, cell.overrides, field=f"cells.{cell.id}", roots=CELL_ROOTS)
            if cell.overrides
            else changed
            for cell in cells
        ] or [changed]
    return tuple(result)


def _weights(variants: Sequence[PolicyDocument], heads: Sequence[str]) -> F64:
    weights = np.zeros((len(variants), len(MessageClass), len(heads)))
    for v, variant in enumerate(variants):
        for one in MessageClass:
            own = getattr(variant.message_classes, one.name).head_weights
            chosen = variant.surfaces.notification.head_weights if own is None else own
            weights[v, one] = [chosen.get(head, 0.0) for head in heads]
    return weights
